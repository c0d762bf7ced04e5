"""What a worker tells its bridge in lines of JSON: health, figures, why only a person helps."""

import json
from dataclasses import dataclass

LONGEST_LINE = 8 << 20
ASK_FOR_FIGURES = b"figures\n"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether it could sign just now; told each second, so that silence says something, too."""

    serving: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """Its metrics in Prometheus' text format."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """It ends, and another start would end the same way."""

    error: str
    hint: str
    is_config: bool


Message = Health | Figures | Ended
_KINDS: dict[str, type[Message]] = {"health": Health, "figures": Figures, "ended": Ended}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def line_of(message: Message) -> bytes:
    """Return the message as a line."""
    facts = {name: getattr(message, name) for name in type(message).__slots__}
    return json.dumps({"kind": _NAMES[type(message)]} | facts).encode() + b"\n"


def read_line(line: bytes) -> Message:
    """Return the message of a line; ValueError when it is none."""
    try:
        body = json.loads(line)
        kind = _KINDS[body.pop("kind")]
        message = kind(**body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is no message of a worker") from None
    wanted = kind.__annotations__
    if any(type(getattr(message, name)) is not wanted[name] for name in wanted):
        raise ValueError("it is no message of a worker")
    return message
