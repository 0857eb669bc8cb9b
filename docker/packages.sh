#!/bin/sh
# All third-party packages into /opt/bmlpipe: the pinned torch of the index that is given, then everything else.
#   packages.sh TORCH_INDEX
set -eu
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/build/constraints.txt
python=/opt/bmlpipe/bin/python
"$(readlink -f $python)" -m venv /build/pip # the images themselves need no pip
pip() { /build/pip/bin/pip --python $python "$@"; }

# Of this index torch alone; what torch needs comes from where everything comes from, in the versions that it names.
pip install --no-compile --no-deps --index-url "$1" torch
pip install --no-compile --requirement /build/requirements.txt
pip check

# Compiled by content, not by time: equal files whenever they are made, and never written by who runs them. Packages
# carry files for other versions of Python too, which cannot be compiled: pip passes over them as well.
PYTHONHASHSEED=0 $python -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash /opt/bmlpipe/lib || true
rm -rf /build
