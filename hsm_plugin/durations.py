"""Durations on the command line, as seconds."""

import argparse
import re

_DURATION = re.compile(r"(\d{1,6})(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def seconds(text: str) -> float:
    """Return the seconds of `500ms`, `10s`, `2m`, `24h`, or a plain number of seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 10s")
    return int(match[1]) * _SECONDS[match[2]]
