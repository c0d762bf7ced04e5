#!/bin/sh
# Makes .venv from the locked requirements and installs the Debian packages that are missing.
# Usage: scripts/setup.sh [PACKAGE ...] [+PACKAGE ...]
# +PACKAGE: its programs alone, unpacked into .venv, for where it is installed it is a service that
# starts. Run it again at will: it does only what is left to do.
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

unpack_missing() {
    for package in "$@"; do
        folder=$VENV/debian/$package
        [ ! -e "$folder" ] || continue
        command -v apt-get >/dev/null \
            || fail "missing: the programs of $package" "put them on the PATH, and make $folder"
        say "unpacking $package"
        rm -rf "$folder.new" && mkdir -p "$folder.new"
        (
            cd "$folder.new"
            apt-get download -qq "$package" >/dev/null 2>&1 || {
                as_root apt-get update -qq
                apt-get download -qq "$package" >/dev/null
            }
            dpkg-deb -x ./*.deb .
            rm ./*.deb
        )
        mv "$folder.new" "$folder"
        for program in "$folder"/usr/bin/*; do
            ln -sf "../debian/$package/usr/bin/${program##*/}" "$VENV/bin/${program##*/}"
        done
    done
}

command -v "$PYTHON" >/dev/null || fail "$PYTHON is missing" "apt-get install python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$("$PYTHON" --version) is too old" "install Python 3.11 or later, or set PYTHON"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || install_missing python3-venv
installed='' unpacked=''
for package in "$@"; do
    case $package in
        +*) unpacked="$unpacked ${package#+}" ;;
        *) installed="$installed $package" ;;
    esac
done
# shellcheck disable=SC2086 # lists of package names
install_missing $installed

stamp=$VENV/.locked
wanted=$(cat requirements/dev.lock pyproject.toml | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    say "making $VENV from requirements/dev.lock"
    [ -x $VENV/bin/pip ] || "$PYTHON" -m venv $VENV
    $VENV/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
    $VENV/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    printf '%s' "$wanted" >$stamp
fi
# shellcheck disable=SC2086 # a list of package names
unpack_missing $unpacked
