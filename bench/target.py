"""Another server of the reference API, measured by the same client with the same calls."""

import grpc

from bench import plugin_calls
from bench.h2load import load
from bench.load import median_of
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc

_RUNS = 3
_SECONDS = 2.0
_CONCURRENT = 16


def rates(target: str, kek_id: str) -> dict[str, dict[str, float]]:
    """Return each call at 16 at once and alone; `target` as `unix:<path>` or `<host>:<port>`.

    The KEK is made when it is missing; nothing else is written to the server's token.
    """
    with grpc.insecure_channel(target) as channel:
        calls = plugin_calls.reference_calls(
            kms_grpc.KeyManagementServiceStub(channel), kek_id.encode()
        )
    found = {}
    for name, call in calls.items():
        together = median_of(
            [load(target, call, concurrent=_CONCURRENT, seconds=_SECONDS) for _ in range(_RUNS)]
        )
        alone = load(target, call, concurrent=1, seconds=_SECONDS / 2)
        found[name] = {
            "per_second": round(together.per_second),
            "p50_ms": round(together.p50_ms, 2),
            "p99_ms": round(together.p99_ms, 2),
            "alone_p50_ms": round(alone.p50_ms, 3),
        }
    return found
