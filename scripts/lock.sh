#!/bin/sh
# Writes requirements/*.lock: every dependency, with its hashes, for all supported platforms.
set -eu
cd "$(dirname "$0")/.."
lock() {
    output=requirements/$1.lock
    shift
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --upgrade \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        pyproject.toml "$@" -o "$output"
}
lock runtime
lock dev --group dev
