"""What `doctor` found: checks in groups, each with its cause and what to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum


class Level(Enum):
    """How a check came out."""

    GOOD = "ok"
    NOTE = "note"
    """Worth knowing, and no fault."""
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    group: str
    level: Level
    message: str
    hint: str = ""


def good(group: str, message: str) -> Check:
    """Return a check that came out well."""
    return Check(group, Level.GOOD, message)


def note(group: str, message: str, hint: str = "") -> Check:
    """Return something worth knowing."""
    return Check(group, Level.NOTE, message, hint)


def fault(group: str, message: str, hint: str) -> Check:
    """Return a fault: its cause, and what to do."""
    return Check(group, Level.FAULT, message, hint)


def has_fault(checks: Sequence[Check]) -> bool:
    """Tell whether any is a fault."""
    return any(check.level is Level.FAULT for check in checks)


def as_text(checks: Sequence[Check]) -> str:
    """Return the checks for people, group by group."""
    lines: list[str] = []
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            lines.append(group)
        lines.append(f"  {check.level.value:<5}  {check.message}")
        if check.hint:
            lines.append(f"         hint: {check.hint}")
    faults = sum(check.level is Level.FAULT for check in checks)
    lines.append(f"{faults} fault{'' if faults == 1 else 's'}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> dict[str, object]:
    """Return the checks for programs."""
    listed = [{**asdict(check), "level": check.level.value} for check in checks]
    return {"healthy": not has_fault(checks), "checks": listed}
