"""The kustomize program: found, or built from source once per version."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

_MODULE = Path(__file__).parent / "kustomize"
_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w")


class KustomizeError(RuntimeError):
    """It cannot be had; the message is a cause line and a hint line."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(f"{cause}\nHint: {hint}")


class MissingProgramError(KustomizeError):
    """This machine lacks what builds it."""


def program() -> Path:
    """Return kustomize of the version in go.mod; raises KustomizeError."""
    recipe = (_MODULE / "go.sum").read_bytes() + repr(_FLAGS).encode()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "istio-hsm" / "kustomize" / hashlib.sha256(recipe).hexdigest()[:12]
    built = folder / "kustomize"
    if built.is_file():
        return built
    go = shutil.which("go")
    if go is None:
        raise MissingProgramError("kustomize is built by Go, which is not on PATH.", "install Go")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.is_file():
            _build(go, built)
    return built


def build(folder: Path) -> str:
    """Return the YAML that `kustomize build` makes of the folder."""
    result = subprocess.run(
        [program(), "build", str(folder)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise KustomizeError(f"kustomize build failed: {result.stderr}", f"look at {folder}")
    return result.stdout


def _build(go: str, target: Path) -> None:
    unfinished = target.with_name(".kustomize")
    package = "sigs.k8s.io/kustomize/kustomize/v5"
    result = subprocess.run(
        [go, "build", *_FLAGS, "-o", str(unfinished), package],
        cwd=_MODULE,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise KustomizeError(
            f"go build failed:\n{result.stderr[-2000:]}",
            "it needs the Go of its go.mod and, the first time, a Go module proxy.",
        )
    unfinished.rename(target)
