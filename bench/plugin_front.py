"""What the front of the plugin's socket costs: a plugin behind one, beside one that listens itself.

The ratios are medians of the rounds' ratios, both ways in turn, so that what else the machine
does hits both alike; processor time, of all the plugin's processes, depends on it least.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import plugin_calls
from bench.cost import cpu_seconds
from bench.h2load import Call, load
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support.plugin import Plugin, running
from tests.support.softhsm import make_token

_ROUNDS = 9
_SECONDS = 1.0
_CONCURRENT = 16
_CALLS = ("AuthenticatedEncrypt", plugin_calls.GENERATE_DEK, plugin_calls.SIGN_P256)


@dataclass(frozen=True, slots=True)
class _Round:
    """One way, one call."""

    per_second: float
    alone_p50_ms: float
    cpu_us: float


def cost(folder: Path) -> dict[str, object]:
    """Return, by call, what a call through the front takes of one without, and both figures."""
    with (
        running(make_token(folder / "a"), folder / "direct") as direct,
        running(
            make_token(folder / "b"), folder / "front", arguments=("--allow-uid", "any")
        ) as fronted,
    ):
        ways = {"direct": (direct, _prepared(direct)), "front": (fronted, _prepared(fronted))}
        found: dict[str, dict[str, list[_Round]]] = {}
        for _ in range(_ROUNDS):
            for way, (plugin, calls) in ways.items():
                for name in _CALLS:
                    kept = found.setdefault(name, {}).setdefault(way, [])
                    kept.append(_round(plugin, calls[name]))
    return {name: _summary(rounds) for name, rounds in found.items()}


def _summary(rounds: Mapping[str, list[_Round]]) -> dict[str, object]:
    pairs = list(zip(rounds["front"], rounds["direct"], strict=True))
    return {
        "rate_of_direct": round(
            statistics.median(front.per_second / direct.per_second for front, direct in pairs), 2
        ),
        "alone_of_direct": round(
            statistics.median(front.alone_p50_ms / direct.alone_p50_ms for front, direct in pairs),
            2,
        ),
    } | {
        way: {
            "per_second": round(statistics.median(one.per_second for one in kept)),
            "alone_p50_ms": round(statistics.median(one.alone_p50_ms for one in kept), 3),
            "cpu_us": round(statistics.median(one.cpu_us for one in kept)),
        }
        for way, kept in rounds.items()
    }


def _round(plugin: Plugin, call: Call) -> _Round:
    target = f"unix:{plugin.socket}"
    alone = load(target, call, concurrent=1, seconds=_SECONDS / 2)
    before = cpu_seconds(plugin.pid)
    together = load(target, call, concurrent=_CONCURRENT, seconds=_SECONDS)
    spent = cpu_seconds(plugin.pid) - before
    return _Round(together.per_second, alone.p50_ms, 1e6 * spent / (together.per_second * _SECONDS))


def _prepared(plugin: Plugin) -> Mapping[str, Call]:
    with plugin.channel() as channel:
        keys = kms_grpc.KeyManagementServiceStub(channel)
        return plugin_calls.prepare(keys, signing_grpc.SigningServiceStub(channel))
