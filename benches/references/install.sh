#!/bin/sh
# Brings the servers edgecam is measured against: Janus from Debian, aiortc from PyPI into target/references.
set -eu
cd "$(dirname "$0")/../.."
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
if [ ! -x /usr/bin/janus ]; then
    # Installed, not started: the benchmark runs it with its own configuration.
    $sudo apt-get install -y --no-install-recommends janus python3-venv
    $sudo systemctl disable --now janus 2>/dev/null || true
fi
python=target/references/aiortc/bin/python
if [ ! -x $python ]; then
    python3 -m venv target/references/aiortc
    $python -m pip install --quiet aiortc==1.16.0 aiohttp==3.14.5
fi
