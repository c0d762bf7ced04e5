"""A plugin, or a server beside it, under load: many calls at once, and one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench import plugin_calls
from bench.cost import cpu_seconds
from bench.h2load import Call, load
from bench.load import Load
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc
from tests.support.plugin import Plugin

CONCURRENT = 16


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is, and what it costs: its process and the children of that."""

    target: str
    pid: int

    @classmethod
    def of(cls, plugin: Plugin) -> "Server":
        """Return a running plugin as one."""
        return cls(f"unix:{plugin.socket}", plugin.pid)


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one call."""

    together: Load
    """`CONCURRENT` at once."""

    alone: Load
    cpu_us: float
    """Processor time of the serving processes for a call, in microseconds."""


def measured(server: Server, call: Call, seconds: float) -> Run:
    """Return what the call gives: half the time alone, then `seconds` of many at once."""
    alone = load(server.target, call, concurrent=1, seconds=seconds / 2)
    before = cpu_seconds(server.pid)
    together = load(server.target, call, concurrent=CONCURRENT, seconds=seconds)
    spent = cpu_seconds(server.pid) - before
    return Run(together, alone, spent / (together.per_second * seconds) * 1e6)


def prepared(plugin: Plugin) -> Mapping[str, Call]:
    """Make what the plugin's calls need, and return them by name."""
    with plugin.channel() as channel:
        keys = kms_grpc.KeyManagementServiceStub(channel)
        return plugin_calls.prepare(keys, signing_grpc.SigningServiceStub(channel))
