"""What a worker tells of itself now and then: its calls, its sessions, and the state of the PIN."""

import json
from dataclasses import asdict, dataclass, field

from hsm_plugin.call_times import Tally


@dataclass(frozen=True, slots=True)
class PinSigns:
    """What the token and the guard know of the PIN; none of it needs an attempt."""

    locked: bool = False
    final_try: bool = False
    count_low: bool = False
    refused_values: int = 0
    """PIN values on the guard's record that the token refused."""
    pending_values: int = 0
    """PIN values that were tried with no outcome known."""


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One look at a worker."""

    sessions_open: int
    sessions_limit: int
    pins: dict[str, PinSigns] = field(default_factory=dict)
    """By the serial number of each token that was tried; else its label."""
    calls: dict[str, Tally] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()


def decode(blob: bytes) -> WorkerSnapshot:
    """Return what `encode` was called on."""
    kept = json.loads(blob)
    calls = {name: Tally(**entry) for name, entry in kept.pop("calls").items()}
    pins = {serial: PinSigns(**entry) for serial, entry in kept.pop("pins").items()}
    return WorkerSnapshot(pins=pins, calls=calls, **kept)
