#!/bin/sh
# Builds images with the first of docker, podman and buildah that is here.
# Usage: scripts/build-image.sh [NAME ...]      NAME: a folder of images/; all when left out
#
# BUILDER      docker, podman or buildah
# IMAGE_PREFIX what the tags begin with (localhost/istio-hsm)
# TAG          the tag (the version in pyproject.toml)
# BASE         the base image, with its digest for a release (see the Dockerfiles)
# BUILD_BASE   the base of the build stage, where BASE has no pip
# WHEELHOUSE   a folder of wheels, to build without a package index (podman and buildah)
# SOURCE_DATE_EPOCH   the time in the images (that of the last commit)
set -eu
cd "$(dirname "$0")/.."

fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

first_of() {
    for tool in "$@"; do
        if command -v "$tool" >/dev/null; then printf '%s' "$tool"; return; fi
    done
    fail "none of $* is installed" "on Debian: apt-get install buildah"
}

BUILDER=${BUILDER:-$(first_of docker podman buildah)}
IMAGE_PREFIX=${IMAGE_PREFIX:-localhost/istio-hsm}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG=${TAG:-$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

if [ $# = 0 ]; then
    for file in images/*/Dockerfile; do
        set -- "$@" "$(basename "$(dirname "$file")")"
    done
fi

build() {
    name=$1
    [ -f "images/$name/Dockerfile" ] || fail "there is no images/$name" "$(ls images)"
    set -- --file "images/$name/Dockerfile" --tag "$IMAGE_PREFIX/$name:$TAG" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
    [ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
    [ -z "${BUILD_BASE:-}" ] || set -- "$@" --build-arg "BUILD_BASE=$BUILD_BASE"
    case $BUILDER in
    docker)
        [ -z "${WHEELHOUSE:-}" ] || fail "docker has no WHEELHOUSE" "use BUILDER=buildah"
        docker build "$@" .
        ;;
    podman | buildah)
        # OCI's own format has no HEALTHCHECK.
        set -- --format docker --timestamp "$SOURCE_DATE_EPOCH" "$@"
        [ -z "${WHEELHOUSE:-}" ] || set -- --volume "$WHEELHOUSE:/wheels:ro" \
            --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels "$@"
        "$BUILDER" build "$@" .
        ;;
    *) fail "BUILDER is $BUILDER" "use docker, podman or buildah" ;;
    esac
}

for image in "$@"; do
    build "$image"
done
