"""Our images, built by buildah on a Debian base made here: no Docker engine, no image registry.

The base and the wheels are made once and kept in the user's cache folder, keyed by what they are
made from. The images are built by scripts/build-image.sh, into a store that goes with the test.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PREFIX = "localhost/istio-hsm"
TAG = "test"
EPOCH = 1_700_000_000

_SUITE = "bookworm"
_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
# A minimal Debian lacks libstdc++6, which grpcio needs and python:slim has.
_RUNTIME = ("python3", "ca-certificates", "libstdc++6")
# The build stage's base also brings SoftHSM2, whose files are layered on the plugin's image.
_BUILD = (*_RUNTIME, "python3-pip", "adduser", "softhsm2")
_LEFT_OUT = ("doc", "man", "locale")
_TOOLS = ("hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers")
_FORMAT = "2"
"""Part of the cache's key: count it up when the way of making changes."""


class ImageError(RuntimeError):
    """The images cannot be had; a cause line and a hint line."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(f"{cause}\nHint: {hint}")


class MissingProgramError(ImageError):
    """This machine lacks what builds images."""


@dataclass(frozen=True, slots=True)
class Images:
    """A store of images, and the wheels that they are made from."""

    folder: Path
    wheels: Path
    _roots: dict[str, Path] = field(default_factory=dict)

    def build(self, name: str, *, tag: str = TAG, **more: str) -> None:
        """Build images/<name>; settings of scripts/build-image.sh may be given."""
        environment = self._environment | {
            "BUILDER": "buildah",
            "IMAGE_PREFIX": PREFIX,
            "TAG": tag,
            "BASE": "localhost/base",
            "BUILD_BASE": "localhost/build-base",
            "WHEELHOUSE": str(self.wheels),
            "SOURCE_DATE_EPOCH": str(EPOCH),
            **more,
        }
        run([str(self.folder / "source/scripts/build-image.sh"), name], environment)

    def layer(self, base: str, instructions: str, tag: str) -> None:
        """Build an image from `base` by these lines of a Dockerfile."""
        context = self.folder / f"context-{tag.rpartition('/')[2]}"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(f"FROM {base}\n{instructions}")
        self.buildah("build", "-q", "--format", "docker", "--tag", tag, str(context))

    def inspect(self, image: str) -> Mapping[str, Any]:
        """Return what the image says of itself, as Docker has it."""
        document: Mapping[str, Any] = json.loads(self.buildah("inspect", "--type", "image", image))
        return document

    def root(self, image: str) -> Path:
        """Return the root file system of a new container; with the vfs driver it is a folder."""
        if image not in self._roots:
            container = self.buildah("from", "--pull-never", image).strip()
            self._roots[image] = Path(self.buildah("mount", container).strip())
        return self._roots[image]

    def buildah(self, *arguments: str) -> str:
        """Return a buildah command's standard output."""
        return run(["buildah", *arguments], self._environment)

    @property
    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "STORAGE_DRIVER": "vfs",
            "BUILDAH_ISOLATION": "chroot",
        }


def plugin_with_softhsm(images: Images) -> str:
    """Return the plugin's image with SoftHSM2 in it, layered as a Luna's client would be."""
    tag = "localhost/hsm-plugin-softhsm"
    if tag in images._roots:
        return tag
    library = f"/usr/lib/{platform.machine()}-linux-gnu"
    lines = [
        "COPY --from=localhost/build-base /usr/lib/softhsm /usr/lib/softhsm",
        f"COPY --from=localhost/build-base {library}/softhsm {library}/softhsm",
        *(
            f"COPY --from=localhost/build-base {library}/{name}* {library}/"
            for name in ("libbotan-2.so", "libtspi.so", "libboost_thread.so", "libsqlite3.so")
            if list(images.root("localhost/build-base").glob(f"{library[1:]}/{name}*"))
        ),
    ]
    images.layer(f"{PREFIX}/hsm-plugin:{TAG}", "\n".join(lines) + "\n", tag)
    return tag


@contextmanager
def open_store() -> Iterator[Images]:
    """Give a store with the two bases in it, gone at the end; raises ImageError."""
    _check_programs()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "istio-hsm/images"
    base = _cached(cache, "base", (_SUITE, *_RUNTIME), lambda to: _debian(_RUNTIME, to))
    build = _cached(cache, "build", (_SUITE, *_BUILD), lambda to: _debian(_BUILD, to))
    locks = [(REPOSITORY / f"requirements/{name}.lock").read_text() for name in ("runtime", "dev")]
    wheels = _cached(cache, "wheels", tuple(locks), _wheels)
    folder = Path(tempfile.mkdtemp(prefix="images-"))
    try:
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
        )
        _take_sources(folder / "source")
        images = Images(folder, wheels)
        for name, tar in (("base", base), ("build-base", build)):
            context = folder / name
            context.mkdir()
            (context / "root.tar").hardlink_to(tar) if _same_device(tar, context) else shutil.copy(
                tar, context / "root.tar"
            )
            (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
            images.buildah(
                *("build", "-q", "--format", "docker", "--timestamp", "0"),
                *("--tag", f"localhost/{name}", str(context)),
            )
        yield images
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a command's standard output; ImageError with its last words when it fails."""
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        words = "\n".join((result.stdout + result.stderr).splitlines()[-25:])
        raise ImageError(f"`{' '.join(command[:3])} ...` failed:\n{words}", "its words are above")
    return result.stdout


def _take_sources(target: Path) -> None:
    """Copy what the images are made from: an edit during the tests is in none of them."""
    allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for name in ("scripts", ".dockerignore", *(line[1:] for line in allowed if line[:1] == "!")):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copy2(source, target / name)


def _check_programs() -> None:
    missing = [package for name, package in _PROGRAMS.items() if shutil.which(name) is None]
    if missing:
        raise MissingProgramError(
            f"missing: {', '.join(missing)}", f"apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise MissingProgramError("making root file systems needs root", "run the tests as root")


def _cached(cache: Path, kind: str, recipe: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Return the path that `make` made for this recipe, whole, now or in an earlier run."""
    key = hashlib.sha256("\0".join((_FORMAT, platform.machine(), *recipe)).encode()).hexdigest()
    target = cache / f"{kind}-{key[:12]}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                unfinished = cache / f".{target.name}"
                if unfinished.is_dir():
                    shutil.rmtree(unfinished)
                make(unfinished)
                unfinished.rename(target)
    return target


def _debian(packages: Sequence[str], target: Path) -> None:
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    run(
        [
            *("mmdebstrap", "-q", "--variant=essential", f"--include={','.join(packages)}"),
            *(*excluded, "--format=tar", _SUITE, str(target), *_mirrors()),
        ],
        os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},
    )


def _mirrors() -> list[str]:
    """Return DEBIAN_MIRROR, or this host's own mirror of the suite; else mmdebstrap's default."""
    if named := os.environ.get("DEBIAN_MIRROR"):
        return [named]
    if shutil.which("apt-get") is None:
        return []
    told = run(
        [
            *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
            *("Created-By: Packages", f"Codename: {_SUITE}", "Component: main"),
        ],
        os.environ,
    )
    return told.split()[:1]


def _wheels(target: Path) -> None:
    target.mkdir()
    tools = target / "tools.lock"
    tools.write_text(_build_tools())
    machine = platform.machine()
    platforms = [f"--platform={name}_{machine}" for name in ("manylinux_2_28", "manylinux2014")]
    for lock in (REPOSITORY / "requirements/runtime.lock", tools):
        run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"),
                *("--require-hashes", "--no-deps", "--only-binary=:all:", *platforms),
                *("--python-version=3.11", "--dest", str(target), "-r", str(lock)),
            ],
            os.environ,
        )
    tools.unlink()


def _build_tools() -> str:
    lock = (REPOSITORY / "requirements/dev.lock").read_text()
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.partition("==")[0] in _TOOLS)


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
