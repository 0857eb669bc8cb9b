#!/bin/sh
# Install all third-party packages in /opt/bmlpipe: torch from the given index, then the rest from the default index.
#   packages.sh TORCH_INDEX
set -eu
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/build/constraints.txt
python=/opt/bmlpipe/bin/python
"$(readlink -f $python)" -m venv /build/pip # a separate one, because the images need no pip
pip() { /build/pip/bin/pip --python $python "$@"; }

# Only torch itself comes from this index. torch's requirements pin the packages that it needs.
pip install --no-compile --no-deps --index-url "$1" torch
pip install --no-compile --requirement /build/requirements.txt
pip check

# Bytecode validated by content, not by time, so that all builds have equal files. Errors are ignored, as pip ignores
# them: some packages contain files for other versions of Python, which cannot be compiled.
PYTHONHASHSEED=0 $python -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash /opt/bmlpipe/lib || true
rm -rf /build
