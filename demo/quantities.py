"""Values as a panel writes them, in the units of Grafana that the dashboard uses."""

import math
from collections.abc import Callable

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_KIB = 1024.0


def written(value: float, unit: str) -> str:
    """Return a value with its unit, one of `UNITS`."""
    return UNITS[unit](value)


def ticks(highest: float, unit: str, count: int = 4) -> list[float]:
    """Return round values from 0 up to at least the highest one."""
    scale = _KIB ** math.floor(math.log(highest, _KIB)) if unit == "bytes" and highest > 1 else 1.0
    rough = max(highest / scale, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(it for it in (1, 2, 2.5, 5, 10) if it * power >= rough * (1 - 1e-9)) * power * scale
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)] or [0.0, step]


def _plain(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"  # noqa: PLR2004 - of %g


def _short(value: float) -> str:
    for factor, name in ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K")):
        if abs(value) >= factor:
            return f"{_plain(value / factor)}{name}"
    return _plain(value)


def _seconds(value: float) -> str:
    size = abs(value)
    for factor, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "min"), (1.0, "s")):
        if size >= factor:
            return f"{_plain(value / factor)} {name}"
    if size == 0:
        return "0 s"
    return f"{_plain(value * 1e3)} ms" if size >= 1e-3 else f"{_plain(value * 1e6)} µs"  # noqa: PLR2004


def _bytes(value: float) -> str:
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= _KIB**power:
            return f"{_plain(value / _KIB**power)} {name}"
    return f"{_plain(value)} B"


UNITS: dict[str, Callable[[float], str]] = {
    "short": _short,
    "s": _seconds,
    "bytes": _bytes,
    "reqps": lambda value: f"{_short(value)} req/s",
}
