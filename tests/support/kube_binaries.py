"""The programs of a Kubernetes control plane: found, or built from source once per version.

`python -m tests.support.kube_binaries` prints the folder that holds them, building it if needed.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kube_process import dying_with_parent

_MODULE = Path(__file__).parent / "kube"
_ETCD, _APISERVER, _CONTROLLERS = "etcd", "kube-apiserver", "kube-controller-manager"
_TOOLS = (_ETCD, _APISERVER, _CONTROLLERS)
_ETCD_PACKAGE_NAME = "server"  # go.etcd.io/etcd/server
_PROGRESS_EVERY_S = 10.0

Report = Callable[[str], None]


class KubeBinariesError(RuntimeError):
    """The programs cannot be had; the message is a cause line and a hint line."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(f"{cause}\nHint: {hint}")


class MissingProgramError(KubeBinariesError):
    """This machine has neither the program nor what builds it."""


class BuildError(KubeBinariesError):
    """The build failed."""


@dataclass(frozen=True, slots=True)
class KubeBinaries:
    """The three programs of a control plane without nodes."""

    etcd: Path
    apiserver: Path
    controller_manager: Path


def tell(message: str) -> None:
    """Print one line of progress."""
    sys.stderr.write(f"kube: {message}\n")
    sys.stderr.flush()


def resolve(report: Report = tell) -> KubeBinaries:
    """Return the programs of KUBEBUILDER_ASSETS when it holds all three, else ours, built once.

    They come from one folder: Kubernetes 1.36 fails watches now and then on an etcd before 3.4.31
    or 3.5.13, as distributions have it, and a controller manager must not be newer than its API
    server. A cold build takes minutes; later calls, of any process, use its result. Raises
    KubeBinariesError.
    """
    folder = _assets(report) or _cached_build(report)
    return KubeBinaries(folder / _ETCD, folder / _APISERVER, folder / _CONTROLLERS)


def _assets(report: Report) -> Path | None:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        return None
    lacking = [tool for tool in _TOOLS if not (Path(named) / tool).is_file()]
    if lacking:
        report(f"KUBEBUILDER_ASSETS is not used: it lacks {', '.join(lacking)}")
        return None
    return Path(named)


def _cached_build(report: Report) -> Path:
    version = _kubernetes_version()
    flags = _build_flags(version)
    recipe = hashlib.sha256((_MODULE / "go.mod").read_bytes() + repr(flags).encode())
    folder = _cache_root() / f"{version}-{recipe.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    go = shutil.which("go")
    if go is None:
        raise MissingProgramError(
            f"{', '.join(_TOOLS)} are neither in KUBEBUILDER_ASSETS nor built yet,"
            " and Go is not on PATH to build them.",
            f"install Go {_go_version()} or newer, or set KUBEBUILDER_ASSETS to their folder.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f"{folder.name}.lock"), report):
        if not folder.is_dir():
            _build(go, flags, folder, report)
    return folder


def _build(go: str, flags: list[str], folder: Path, report: Report) -> None:
    """Leave all tools in `folder`, which appears complete or not at all."""
    prefix = f".{folder.name}-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        _go_build(go, [*flags, "-o", f"{scratch}/", "tool"], report)
        (scratch / _ETCD_PACKAGE_NAME).rename(scratch / _ETCD)
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _go_build(go: str, arguments: list[str], report: Report) -> None:
    report(f"building {', '.join(_TOOLS)} of {_kubernetes_version()}: minutes when cold")
    started = reported = time.monotonic()
    compiled, tail = 0, deque[str](maxlen=20)
    with subprocess.Popen(
        dying_with_parent([go, "build", "-v", *arguments]),
        cwd=_MODULE,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        for line in build.stdout or ():
            tail.append(line.rstrip())
            compiled += " " not in line.strip()
            if time.monotonic() - reported >= _PROGRESS_EVERY_S:
                reported = time.monotonic()
                report(f"{compiled} packages compiled, {reported - started:.0f} s, at {tail[-1]}")
    if build.returncode != 0:
        raise BuildError(
            "\n".join([f"go build failed with exit {build.returncode}:", *tail]),
            f"it needs Go {_go_version()} or newer and, the first time, a Go module proxy.",
        )
    report(f"built in {time.monotonic() - started:.0f} s")


def _build_flags(version: str) -> list[str]:
    """Return the flags with the version stamped in: clients gate features on it."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    package = "k8s.io/component-base/version"
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    stamped = " ".join(f"-X {package}.{name}={value}" for name, value in stamps.items())
    return ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", f"-s -w {stamped}"]


def _kubernetes_version() -> str:
    return _from_go_mod(r"\tk8s\.io/kubernetes (v\S+)")


def _go_version() -> str:
    return _from_go_mod(r"^go (\S+)")


def _from_go_mod(pattern: str) -> str:
    found = re.findall(pattern, (_MODULE / "go.mod").read_text(), re.MULTILINE)
    if len(found) != 1:
        raise BuildError(
            f"go.mod has {len(found)} lines like {pattern!r}, expected exactly one.",
            f"restore {_MODULE / 'go.mod'}.",
        )
    return str(found[0])


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "istio-hsm" / "kube"


@contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is building, waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Print the programs' folder, built if needed; return 1 when it cannot be had."""
    try:
        binaries = resolve()
    except KubeBinariesError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{binaries.apiserver.parent}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
