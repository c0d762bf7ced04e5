"""Each fault: how it is injected, how long it lasts, and what must not be worse than said."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.faults import ON_THE_TOKEN, Ckr, FaultyHsm

HANG_LIMIT_SECONDS = 2.0
"""What the plugin of these runs is started with; the default is 10 s."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way for an HSM to fail while the plugin serves."""

    name: str
    begin: Callable[[FaultyHsm], None]
    end: Callable[[FaultyHsm], None] = FaultyHsm.heal
    lasts_seconds: float = 0.0
    """0: it passes, or is cured, without anybody's help."""
    seen: frozenset[str] = frozenset({"UNAVAILABLE"})
    """The statuses, besides OK, that clients may see."""
    recovers_seconds: float = 2.0
    """Within this time of the fault's end every call is answered."""


def _restart(hsm: FaultyHsm) -> None:
    hsm.shift_slots(1000)
    hsm.lose_sessions()


_NOTHING: frozenset[str] = frozenset()
_LATE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})

FAULTS = (
    Fault(
        "1 ms more for each PKCS#11 call",
        lambda hsm: hsm.delay(1000),
        lambda hsm: hsm.delay(0),
        lasts_seconds=1.0,
        seen=_NOTHING,
    ),
    Fault(
        "one CKR_SESSION_HANDLE_INVALID",
        lambda hsm: hsm.refuse(Ckr.SESSION_HANDLE_INVALID, "C_SignInit", times=1),
        seen=_NOTHING,
    ),
    Fault(
        "every session and the login lost (the HSM's server restarted)",
        FaultyHsm.lose_sessions,
        seen=_NOTHING,
    ),
    Fault("sessions lost and all slot ids changed", _restart, seen=_NOTHING),
    Fault(
        "CKR_CRYPTOKI_NOT_INITIALIZED (the module finalised itself)",
        FaultyHsm.uninitialise,
        seen=_NOTHING,
    ),
    Fault(
        "one return value that only the vendor knows",
        lambda hsm: hsm.refuse(Ckr.VENDOR_UNKNOWN, "C_Sign", times=1),
        seen=_NOTHING,
    ),
    Fault(
        "one CKR_DEVICE_ERROR",
        lambda hsm: hsm.refuse(Ckr.DEVICE_ERROR, "C_Sign", times=1),
    ),
    Fault(
        "CKR_DEVICE_ERROR from every call, for 3 s",
        lambda hsm: hsm.refuse(Ckr.DEVICE_ERROR, *ON_THE_TOKEN),
        lasts_seconds=3.0,
        recovers_seconds=6.0,
    ),
    Fault(
        "CKR_TOKEN_NOT_PRESENT from every call, for 3 s",
        lambda hsm: hsm.refuse(Ckr.TOKEN_NOT_PRESENT, *ON_THE_TOKEN),
        lasts_seconds=3.0,
        recovers_seconds=6.0,
    ),
    Fault(
        "CKR_SESSION_HANDLE_INVALID from every C_SignInit, for 3 s",
        lambda hsm: hsm.refuse(Ckr.SESSION_HANDLE_INVALID, "C_SignInit"),
        lasts_seconds=3.0,
        recovers_seconds=6.0,
    ),
    Fault(
        "one C_Sign hangs",
        lambda hsm: hsm.hang("C_Sign", times=1),
        seen=frozenset({"DEADLINE_EXCEEDED"}),
        recovers_seconds=HANG_LIMIT_SECONDS + 3.0,
    ),
    Fault(
        "every C_Sign hangs, for 4 s",
        lambda hsm: hsm.hang("C_Sign"),
        lasts_seconds=4.0,
        seen=_LATE | {"RESOURCE_EXHAUSTED"},
        recovers_seconds=8.0,
    ),
    Fault(
        "SIGSEGV in C_Sign",
        lambda hsm: hsm.crash("C_Sign"),
        seen=frozenset({"DEADLINE_EXCEEDED"}),  # where a worker takes long to start
    ),
)
