#!/bin/sh
# Brings aiortc from PyPI into target/references. Janus is a Debian package (scripts/install-packages bench), which starts
# it: the benchmark runs it with a configuration of its own, so the service is stopped.
#
#   install.sh webrtcsink   builds that of gst-plugins-rs, too, for the network laboratory: some minutes
set -eu
cd "$(dirname "$0")/../.."
if [ -d /run/systemd/system ] && systemctl --quiet is-active janus; then
    if [ "$(id -u)" -eq 0 ]; then systemctl disable --now janus; else sudo systemctl disable --now janus; fi
fi
python=target/references/aiortc/bin/python
if [ ! -x $python ]; then
    python3 -m venv target/references/aiortc
    $python -m pip install --quiet aiortc==1.16.0 aiohttp==3.14.5
fi
if [ "${1:-}" = webrtcsink ]; then
    cargo build --release --manifest-path benches/references/webrtcsink/Cargo.toml --target-dir target/references/webrtcsink
fi
