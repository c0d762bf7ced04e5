#!/bin/sh
# Asks PyPI's advisory database about each locked version; fails for a finding, and for what it
# could not ask about. It needs the network, so CI does not run it: run it before a release, and
# whenever requirements/ changes. What needs no network is tests/test_dependencies.py.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/uvx pip-audit@2.10.1 --strict --disable-pip --require-hashes \
    -r requirements/runtime.lock -r requirements/dev.lock
