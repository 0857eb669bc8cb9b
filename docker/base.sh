#!/bin/sh
# Prepare a base image: install Python VERSION if it is missing, and further Debian packages; add a user that is not
# root and a virtual environment.
#   base.sh VERSION [PACKAGE …]
set -eu
python=python$1
shift
if ! command -v "$python" > /dev/null; then
    set -- "$python-venv" "$python-dev" ca-certificates "$@"
fi
if [ $# -gt 0 ]; then
    apt-get update
    apt-get install --yes --no-install-recommends "$@"
    rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log
fi
groupadd --gid 10001 bmlpipe
useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp bmlpipe
"$python" -m venv --without-pip /opt/bmlpipe
