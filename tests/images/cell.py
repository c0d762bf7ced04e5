"""Runs a program from an image's root file system as a container runtime would, without one.

`python -m tests.images.cell --root DIR [--volume SOURCE:TARGET[:ro]] -- COMMAND ...` is that
program: in mount and process namespaces of its own, on a read-only root, as uid and gid 1337 with
no capability and no way to gain one. The network is the host's. Mounts end with the namespace, so
nothing is left to unmount however this ends. Needs root.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MESH_ID = 1337

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWIPC = 0x00020000, 0x20000000, 0x08000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_DEVICES = ("null", "zero", "urandom", "random")


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder of the host at a path of the container."""

    source: Path
    target: str
    read_only: bool = False

    @classmethod
    def parsed(cls, text: str) -> "Volume":
        source, target, *mode = text.split(":")
        return cls(Path(source), target, read_only=mode == ["ro"])

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


def command(root: Path, volumes: Sequence[Volume], program: Sequence[str]) -> list[str]:
    """Return a command line that runs the program in a cell; the environment is the caller's."""
    options = [option for volume in volumes for option in ("--volume", str(volume))]
    this = [sys.executable, str(Path(__file__))]
    return [*this, "--root", str(root), *options, "--", *program]


def main(arguments: Sequence[str]) -> int:
    """Return the program's exit code, or 128 and the signal that ended it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--volume", type=Volume.parsed, action="append", default=[])
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWIPC), "unshare")
    child = os.fork()
    if child == 0:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
        try:
            _enter(options.root, options.volume)
            os.execve(options.program[0], options.program, dict(os.environ))  # noqa: S606 - no shell
        except OSError as error:
            sys.stderr.write(f"error: {error}\n")
        os._exit(126)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _enter(root: Path, volumes: Sequence[Volume]) -> None:
    _mount("", Path("/"), "", _MS_REC | _MS_PRIVATE)
    _mount(str(root), root, "", _MS_BIND)
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    targets = [_inside(root, volume.target) for volume in volumes]
    for target in targets:
        target.mkdir(parents=True, exist_ok=True)
    locked = _MS_REMOUNT | _MS_BIND | _MS_RDONLY
    _mount("", root, "", locked | _MS_NOSUID | _MS_NODEV)
    _mount("proc", root / "proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("tmpfs", root / "dev", "tmpfs", _MS_NOSUID, "mode=755")
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", root / "dev" / name, "", _MS_BIND)
    (root / "dev/shm").mkdir(mode=0o777)
    _mount("tmpfs", root / "dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    for volume, target in zip(volumes, targets, strict=True):
        _mount(str(volume.source), target, "", _MS_BIND)
        if volume.read_only:
            _mount("", target, "", locked)
    os.chroot(root)
    os.chdir("/")
    _become_nobody()


def _inside(root: Path, target: str) -> Path:
    """Return where the container's path is, with its links followed inside the root alone."""
    place = root
    for name in Path(target).parts[1:]:
        place /= name
        while place.is_symlink():
            link = str(place.readlink())
            place = _inside(root, link) if link.startswith("/") else place.parent / link
    if not place.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{target} leads out of the root")
    return place


def _become_nobody() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(MESH_ID)
    os.setuid(MESH_ID)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount on {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
