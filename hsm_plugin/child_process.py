"""What a process that the server starts does first: it ends with the server, and not before."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def bind_to_parent(parent: int) -> None:
    """Have the kernel kill this process when the server ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def keep_memory_private() -> None:
    """Leave no core dump and no /proc/<pid>/mem of a process that has held a secret."""
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def leave_signals_to_parent() -> None:
    """Outlive the SIGINT or SIGTERM of a whole process group: the server drains, then closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
