#!/bin/sh
# Makes .venv from the locked requirements and installs the Debian packages that are missing.
# Usage: scripts/setup.sh [PACKAGE ...]   Run it again at will: it does only what is left to do.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=.venv

say() { printf '%s\n' "setup: $*" >&2; }
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "$* needs root" "run it as root once, then start again"
    fi
}

install_missing() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' \
            || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null \
        || fail "missing:$missing" "install them with this system's package manager"
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of package names
    as_root apt-get install -y -qq $missing >/dev/null 2>&1 || {
        as_root apt-get update -qq
        as_root apt-get install -y -qq $missing >/dev/null
    }
}

command -v "$PYTHON" >/dev/null || fail "$PYTHON is missing" "apt-get install python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$("$PYTHON" --version) is too old" "install Python 3.11 or later, or set PYTHON"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || install_missing python3-venv
[ $# = 0 ] || install_missing "$@"

stamp=$VENV/.locked
wanted=$(cat requirements/dev.lock pyproject.toml | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    say "making $VENV from requirements/dev.lock"
    [ -x $VENV/bin/pip ] || "$PYTHON" -m venv $VENV
    $VENV/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
    $VENV/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    printf '%s' "$wanted" >$stamp
fi
