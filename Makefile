# The words people and CI type. `make help` lists them.

.DEFAULT_GOAL := help
.PHONY: help run build test unit browser camera-vm networks faults check fmt bench lab cross cross-all deb package-test board on-device fuzz
.PHONY: packages-run packages-test packages-bench packages-lab packages-package packages-board

CARGO := cargo
BROWSER := tests/browser

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

run: packages-run ## build if needed and show the test camera; prints the page's address
	$(CARGO) run --locked -- run $(ARGS)

build: packages-run ## the optimised program, target/release/edgecam
	$(CARGO) build --locked --release

test: unit browser camera-vm ## every test: Rust, page, a real browser, V4L2 devices in a virtual machine

unit: packages-test $(BROWSER)/node_modules ## the tests that need neither browser nor virtual machine
	$(CARGO) test --locked
	npm --prefix $(BROWSER) run --silent types
	npm --prefix $(BROWSER) run --silent unit

browser: packages-test $(BROWSER)/node_modules ## the page in Debian's Chromium, served by the real program
	$(CARGO) build --locked
	npm --prefix $(BROWSER) run --silent browser

camera-vm: packages-test ## the program on V4L2 devices: webcam, encoder, unplugging, stalls
	tests/camera_vm/camera-vm --build-only
	$(CARGO) test --locked --test camera_vm -- --ignored --test-threads=1

networks: packages-run ## the estimator on thousands of simulated networks, in virtual time (SEEDS=100: five times as many)
	NETWORK_SEEDS=$(or $(SEEDS),20) $(CARGO) test --locked --test networks

faults: packages-test ## what takes minutes, or wants the machine for itself: a broker frozen, swallowed, flooded
	$(CARGO) test --locked --test mqtt -- --ignored --nocapture --test-threads=1

check: packages-run ## formatting, lints, what the binary may link, what the tree may hold
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	scripts/check-tree

fmt: ## format the Rust code
	$(CARGO) fmt

bench: packages-bench ## what the product promises, measured beside its peers (half an hour); PARTS="load idle" for some, BEFORE=another/edgecam beside it
	benches/references/install.sh
	BEFORE=$(BEFORE) $(CARGO) bench --locked --bench promises -- $(PARTS)

lab: packages-lab $(BROWSER)/node_modules ## real networks in namespaces, a real browser, traces and plots (as root); CASES="step-down steady" for some; QUICK=1: unoptimised
	$(CARGO) build --locked $(if $(QUICK),,--release)
	LAB_PROGRAM=$(CURDIR)/target/$(if $(QUICK),debug,release)/edgecam /usr/bin/python3 lab/run.py --plots $(or $(PLOTS),target/lab) $(CASES)

cross: ## the optimised program for a board: make cross TARGET=aarch64 (Raspberry Pi 3, 4, 5, Zero 2 W) or armv7
	cross/build $(or $(TARGET),aarch64)

cross-all: ## the optimised program for every board
	cross/build aarch64
	cross/build armv7

deb: ## the Debian package: make deb TARGET=aarch64, armv7 or native
	cross/deb $(or $(TARGET),native)

package-test: packages-package ## the package in a clean Debian: install, run, upgrade, remove, purge; as root; QUICK=1: unoptimised
	tests/package/run "$$(cross/deb native)"

board: packages-board ## the arm64 package as a service on an emulated board: camera, encoder, faults (as root; DEB=… if already built)
	$(CARGO) build --locked
	@deb="$(DEB)" && deb=$${deb:-$$(cross/deb aarch64)} && tests/board/chroot "$$deb" && tests/board/board "$$deb"

on-device: ## what only a real board can show, over ssh: make on-device HOST=pi@raspberrypi.local
	scripts/on-device $(HOST)

fuzz: ## fuzz one target: make fuzz TARGET=wire SECONDS=60 (nightly Rust and cargo-fuzz)
	cd fuzz && cargo +nightly fuzz run $(or $(TARGET),wire) -- -max_total_time=$(or $(SECONDS),60)

packages-run packages-test packages-bench packages-lab packages-package packages-board:
	@scripts/install-packages $(@:packages-%=%)

$(BROWSER)/node_modules: $(BROWSER)/package-lock.json
	npm --prefix $(BROWSER) ci --no-progress
	@touch $@
