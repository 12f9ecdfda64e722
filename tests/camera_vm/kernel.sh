# kernel.sh - sourced: Debian's kernel, its camera modules and ours, and an initrd, for a guest of $arch
# shellcheck shell=bash
#
# The packages come from the archives this machine's apt already knows, through an apt state of our own, and are only
# unpacked: nothing of the machine is changed and no root is needed.
#
# Wants: $arch (Debian's name), $work (a scratch folder), $root (the guest's root file system), $out (where kernel and
# initrd go). Sets $version.

kernel_sh=$(readlink -f "${BASH_SOURCE[0]}")
kernel_modules="vivid videobuf2_dma_contig videobuf2_vmalloc"
initrd_modules="virtio_pci virtio_blk ext4 crc32c_generic virtio_net 9pnet_virtio 9p virtio_console"

host_arch=$(dpkg --print-architecture)
case $arch in # the kernel's name for it, and its compiler
amd64) kernel_arch=x86 compiler=x86_64-linux-gnu- ;;
arm64) kernel_arch=arm64 compiler=aarch64-linux-gnu- ;;
*) die "only for amd64 and arm64" ;;
esac

private_apt() {
	apt_conf=$work/apt.conf
	mkdir -p "$work"/apt/{lists,archives}/partial
	: >"$work/apt/status" # as if nothing were installed yet
	cat >"$apt_conf" <<-CONF
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; "$host_arch"; };
		APT::Install-Recommends "false";
		APT::Sandbox::User "";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Debug::NoLocking "true";
		Dir::State "$work/apt";
		Dir::State::status "$work/apt/status";
		Dir::Cache "$work/apt";
		Dir::Log "$work/apt";
	CONF
	quietly apt-get -c "$apt_conf" update
}

quietly() { # a command whose output is worth seeing only when it fails
	"$@" >"$work/log" 2>&1 || { tail -30 "$work/log" >&2; die "failed: $*"; }
}

download() { # one package (name or name:architecture) without those it depends on; prints its file's name
	mkdir -p "$work/debs"
	(cd "$work/debs" && quietly apt-get -c "$apt_conf" download "$1")
	ls "$work/debs/${1%:*}"_*.deb
}

unpack() { # package, folder, further arguments of tar
	dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner "${@:3}"
}

depends_on() { # what a downloaded package depends on, narrowed to one name by a pattern
	dpkg-deb -f "$1" Depends | grep -oE "$2" | head -1
}

take_kernel() {
	local meta name
	meta=$(download "linux-image-$arch")
	name=$(depends_on "$meta" 'linux-image-[^ ,(]+')
	version=${name#linux-image-}
	rm "$meta"
	mkdir "$work/kernel"
	unpack "$(download "$name")" "$work/kernel"
	modules_dir=$(echo "$work"/kernel/{usr/,}lib/modules/"$version" | tr ' ' '\n' | while read -r dir; do
		if [ -d "$dir" ]; then echo "$dir"; fi
	done)
	depmod -b "${modules_dir%/lib/modules/*}" "$version"
	# shellcheck disable=SC2086 # a list of words
	copy_modules "$root" $kernel_modules
	unpack_kernel_image "$work/kernel/boot/vmlinuz-$version" "$out/kernel"
}

with_dependencies() { # names of modules → their files and those they need, needed ones first
	local name
	for name; do
		awk -v want="$name" '{
			file = $1; sub(/:$/, "", file)
			name = file; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name)
			if (name == want) { for (i = NF; i > 1; i--) print $i; print file }
		}' "$modules_dir/modules.dep"
	done | awk '!seen[$0]++'
}

copy_modules() { # destination root, names of modules (built in: skipped)
	local dest=$1/lib/modules/$version file
	mkdir -p "$dest"
	for file in $(with_dependencies "${@:2}"); do
		mkdir -p "$dest/${file%/*}"
		cp "$modules_dir/$file" "$dest/$file"
		case $file in *.xz) xz -d "$dest/$file" ;; esac
	done
	cp "$modules_dir"/modules.{builtin,builtin.modinfo,order} "$dest/"
	depmod -b "$1" "$version"
}

unpack_kernel_image() { # amd64: bzImage → ELF, so that an emulated processor need not unpack it
	cp "$1" "$2"
	[ "$arch" = amd64 ] || return 0
	local setup_sectors offset length
	setup_sectors=$(od -An -tu1 -j497 -N1 "$1") # Documentation/arch/x86/boot.rst: setup_sects,
	offset=$(od -An -tu4 -j584 -N4 "$1")        # payload_offset, payload_length
	length=$(od -An -tu4 -j588 -N4 "$1")
	tail -c +$(((setup_sectors + 1) * 512 + offset + 1)) "$1" | head -c $((length)) >"$work/payload" || true
	# the payload ends with four bytes of its own, which xz calls an error after all is written
	xz -dc <"$work/payload" >"$work/elf" 2>/dev/null || true
	if [ "$(head -c4 "$work/elf" | tail -c3)" = ELF ]; then mv "$work/elf" "$2"; fi
}

build_modules() { # our encoder, v4l2loopback, and the memory-to-memory core where Debian's kernel lacks it
	local build=$work/modules headers series module
	mkdir -p "$build"/{headers,src,loopback}
	headers=$(download "linux-headers-$version")
	unpack "$headers" "$build/headers"
	unpack "$(download "$(depends_on "$headers" 'linux-headers-[^ ,(]+-common')")" "$build/headers"
	# what is run while building is this machine's
	unpack "$(download "$(depends_on "$headers" 'linux-kbuild-[^ ,(:]+'):$host_arch")" "$build/headers"
	headers=$build/headers/usr/src/linux-headers-$version
	sed -i "s|^include /usr/src|include $build/headers/usr/src|" "$headers/Makefile"
	ln -sfn "$build/headers/usr/lib" "$build/headers/lib"

	unpack "$(download v4l2loopback-dkms)" "$build/loopback"
	cp "$build"/loopback/usr/src/v4l2loopback-*/*.[ch] "${kernel_sh%/*}/vh264.c" "$build/src/"
	echo 'obj-m += v4l2loopback.o vh264.o' >"$build/src/Kbuild"
	if [ -z "$(with_dependencies v4l2_mem2mem)" ]; then
		series=$(echo "$version" | cut -d. -f1,2)
		dpkg-deb --fsys-tarfile "$(download "linux-source-$series")" |
			tar -xO "./usr/src/linux-source-$series.tar.xz" | xz -dc -T0 |
			tar -xO "linux-source-$series/drivers/media/v4l2-core/v4l2-mem2mem.c" >"$build/src/v4l2-mem2mem.c"
		echo 'obj-m += v4l2-mem2mem.o' >>"$build/src/Kbuild"
	else
		copy_modules "$root" v4l2_mem2mem
	fi

	quietly make -C "$headers" M="$build/src" ARCH=$kernel_arch CROSS_COMPILE=$compiler CC=${compiler}gcc \
		CONFIG_DEBUG_INFO_BTF_MODULES= -j"$(nproc)" modules
	mkdir -p "$root/lib/modules/$version/extra"
	for module in "$build"/src/*.ko; do
		${compiler}strip -g -o "$root/lib/modules/$version/extra/${module##*/}" "$module"
	done
	depmod -b "$root" "$version"
}

make_initrd() { # the guest's first process; what is needed to find its root file system
	local dir=$work/initrd
	mkdir -p "$dir"/{bin,proc,sys,dev,newroot}
	unpack "$(download busybox-static)" "$work/initrd" ./bin/busybox
	# shellcheck disable=SC2086 # a list of words
	copy_modules "$dir" $initrd_modules
	# shellcheck disable=SC2086
	with_dependencies $initrd_modules | sed 's/\.xz$//' >"$dir/modules"
	cat >"$dir/init" <<-INIT
		#!/bin/busybox sh
		export PATH=/bin
		/bin/busybox --install -s /bin
		mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
		while read -r module; do insmod "/lib/modules/$version/\$module" 2>/dev/null; done </modules
		tries=0; while [ ! -b /dev/vda ] && [ \$tries -lt 500 ]; do usleep 10000; tries=\$((tries + 1)); done
		mount -t ext4 -o rw,noatime /dev/vda /newroot || { echo "no root file system"; poweroff -f; }
		for dir in dev proc sys; do mount -o move "/\$dir" "/newroot/\$dir"; done
		exec switch_root /newroot $1
	INIT
	chmod 755 "$dir/init"
	(cd "$dir" && find . | "$dir/bin/busybox" cpio -o -H newc 2>/dev/null) >"$out/initrd"
}
