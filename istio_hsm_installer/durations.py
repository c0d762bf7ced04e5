"""Go durations of hours, minutes and seconds, as Vault and Istio write them. Pure."""

import re
from datetime import timedelta

PATTERN = r"^(?=\d)(\d+h)?(\d+m)?(\d+s)?$"
_PARTS = re.compile(r"(?=\d)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")


def parse(text: str) -> timedelta:
    """Return the duration of `87600h` or `1h30m`; ValueError for anything else."""
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def text(duration: timedelta) -> str:
    """Return the shortest form, such as `768h` or `1h30m`."""
    minutes, seconds = divmod(int(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
