# Sourced by build and deb: how the program in a package is compiled, and where.
# shellcheck shell=bash

export CARGO_TARGET_DIR=$PWD/target
# The package strips the program and keeps its symbols apart.
export CARGO_PROFILE_RELEASE_DEBUG=line-tables-only CARGO_PROFILE_RELEASE_STRIP=none
package=target/package
if [ -n "${QUICK:-}" ]; then
	# For tests of the package, not for boards: sooner compiled, and slower; kept apart so that nobody ships it.
	export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1
	export CARGO_PROFILE_RELEASE_DEBUG=0
	package=target/package-quick
fi
