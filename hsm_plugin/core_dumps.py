"""No dump of this process's memory is ever written, nor may others of its user read it."""

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def forbid() -> None:
    """Take both ways: a core_pattern that is a pipe does not look at the limit (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
