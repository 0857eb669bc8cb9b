#!/bin/sh
# Install bmlpipe itself below /code/opt/bmlpipe. The Dockerfile copies it over the packages, as a small separate layer.
set -eu
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CONSTRAINT=/build/constraints.txt PIP_BUILD_CONSTRAINT=/build/constraints.txt # also pins setuptools
python=/opt/bmlpipe/bin/python
"$(readlink -f $python)" -m venv /build/pip
/build/pip/bin/pip --python $python install --no-compile --no-deps --root /code /build
PYTHONHASHSEED=0 $python -m compileall -q -f --invalidation-mode unchecked-hash -s /code /code/opt/bmlpipe/lib
rm -rf /build
