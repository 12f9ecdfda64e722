# debian.sh - sourced: a clean arm64 Debian in a folder, for whoever runs inside `emulate`
# shellcheck shell=bash

cache=${EDGECAM_BOARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgecam/board}
# What every Raspberry Pi OS has besides; v4l-utils is what the tests look with.
debian_packages=systemd,systemd-sysv,dbus,udev,iproute2,kmod,procps,v4l-utils

die() { echo "${0##*/}: $*" >&2; exit 1; }

# The packages change with Debian's point releases only; delete the file for newer ones.
make_clean_debian() {
	local tar=$cache/bookworm-arm64-$(sha256sum <<<"$debian_packages" | cut -c1-8).tar
	mkdir -p "$cache/archives/partial"
	if [ ! -e "$tar" ]; then
		echo "making a clean arm64 Debian (once, two minutes)" >&2
		# check/qemu: mmdebstrap would look for another program's registration.
		mmdebstrap --quiet --mode=root --skip=check/qemu --format=tar --architectures=arm64 --variant=minbase \
			--aptopt='APT::Install-Recommends "false"' --include="$debian_packages" bookworm "$tar.part" >&2 ||
			die "mmdebstrap failed"
		mv "$tar.part" "$tar"
	fi
	clean_debian=$tar
}

# A clean Debian in folder $root, in which apt works and no service is started.
unpack_clean_debian() {
	tar -C "$root" --exclude='./dev/*' -xf "$clean_debian" # devices are made by the kernel
	cp /etc/resolv.conf "$root/etc/"
	apt-config dump Acquire | grep -i proxy >"$root/etc/apt/apt.conf.d/10proxy" || true
	# This root is thrown away when the power fails.
	echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod +x "$root/usr/sbin/policy-rc.d"
	mount --rbind /proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs tmpfs "$root/tmp"
	mount --bind "$cache/archives" "$root/var/cache/apt/archives"
	apt update
}

leave_root() { umount --lazy "$root"/{proc,dev,tmp,var/cache/apt/archives}; }

inside() { chroot "$root" /usr/bin/env -i LC_ALL=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

apt() {
	inside apt-get -qq -y -o Dpkg::Use-Pty=0 "$@" >"$root/tmp/apt.log" 2>&1 ||
		{ tail -30 "$root/tmp/apt.log" >&2; die "apt-get $*"; }
}
