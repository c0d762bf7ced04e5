"""The program kubectl: built once per version from the same Kubernetes as the API server.

It is no tool of kube/go.mod, whose text names the cached build of the control plane; `go mod tidy`
there drops its lines of go.sum, `go build -mod=mod k8s.io/kubernetes/cmd/kubectl` brings them back.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

_MODULE = Path(__file__).parent / "kube"
_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w")
_PACKAGE = "k8s.io/kubernetes/cmd/kubectl"


class KubectlError(RuntimeError):
    """It cannot be had; the message is a cause line and a hint line."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(f"{cause}\nHint: {hint}")


class MissingProgramError(KubectlError):
    """This machine lacks what builds it."""


@functools.cache
def program() -> Path:
    """Return kubectl of the version in go.mod; raises KubectlError."""
    recipe = (_MODULE / "go.mod").read_bytes() + repr(_FLAGS).encode()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "istio-hsm" / "kubectl" / hashlib.sha256(recipe).hexdigest()[:12]
    built = folder / "kubectl"
    if built.is_file():
        return built
    go = shutil.which("go")
    if go is None:
        raise MissingProgramError("kubectl is built by Go, which is not on PATH.", "install Go")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.is_file():
            _build(go, built)
    return built


def _build(go: str, target: Path) -> None:
    unfinished = target.with_name(".kubectl")
    result = subprocess.run(
        [go, "build", *_FLAGS, "-o", str(unfinished), _PACKAGE],
        cwd=_MODULE,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise KubectlError(
            f"go build failed:\n{result.stderr[-2000:]}",
            "it needs the Go of its go.mod and, the first time, a Go module proxy.",
        )
    unfinished.rename(target)
