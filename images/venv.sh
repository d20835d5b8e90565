#!/bin/sh
# Makes /opt/venv, which both images take over whole: first what the lock names, then, when the project's own code is in
# it, the byte code of all, which a read-only container could not keep.
set -eu
case "$1" in
install)
  python3 -m venv --without-pip /opt/venv
  python3 -m venv /tmp/installer
  PIP_DISABLE_PIP_VERSION_CHECK=1 /tmp/installer/bin/pip --python /opt/venv/bin/python install \
    --require-hashes --only-binary :all: --no-compile -r /tmp/requirements.txt
  ;;
seal)
  # Hashes instead of times, so that the same sources give the same files.
  /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib/python3.11/site-packages
  ;;
*)
  echo "usage: $0 install|seal" >&2
  exit 2
  ;;
esac
