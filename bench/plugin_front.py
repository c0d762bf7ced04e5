"""What the front of the plugin's socket costs: a plugin behind one, beside one that listens itself.

The ratios are medians of the rounds' ratios, both ways in turn, so that what else the machine
does hits both alike; processor time, of all the plugin's processes, depends on it least.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

from bench import plugin_calls
from bench.serving import Run, Server, measured, prepared
from tests.support.plugin import running
from tests.support.softhsm import make_token

_ROUNDS = 9
_SECONDS = 1.0
_CALLS = ("AuthenticatedEncrypt", plugin_calls.GENERATE_DEK, plugin_calls.SIGN_P256)


def cost(folder: Path) -> dict[str, object]:
    """Return, by call, what a call through the front takes of one without, and both figures."""
    with (
        running(make_token(folder / "a"), folder / "direct") as direct,
        running(
            make_token(folder / "b"), folder / "front", arguments=("--allow-uid", "any")
        ) as fronted,
    ):
        ways = {"direct": (direct, prepared(direct)), "front": (fronted, prepared(fronted))}
        found: dict[str, dict[str, list[Run]]] = {}
        for _ in range(_ROUNDS):
            for way, (plugin, calls) in ways.items():
                for name in _CALLS:
                    kept = found.setdefault(name, {}).setdefault(way, [])
                    kept.append(measured(Server.of(plugin), calls[name], _SECONDS))
    return {name: _summary(rounds) for name, rounds in found.items()}


def _summary(rounds: Mapping[str, list[Run]]) -> dict[str, object]:
    pairs = list(zip(rounds["front"], rounds["direct"], strict=True))
    return {
        "rate_of_direct": round(
            statistics.median(
                front.together.per_second / direct.together.per_second for front, direct in pairs
            ),
            2,
        ),
        "alone_of_direct": round(
            statistics.median(front.alone.p50_ms / direct.alone.p50_ms for front, direct in pairs),
            2,
        ),
    } | {
        way: {
            "per_second": round(statistics.median(one.together.per_second for one in kept)),
            "alone_p50_ms": round(statistics.median(one.alone.p50_ms for one in kept), 3),
            "cpu_us": round(statistics.median(one.cpu_us for one in kept)),
        }
        for way, kept in rounds.items()
    }
