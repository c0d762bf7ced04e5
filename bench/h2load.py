"""A load client in C (nghttp2's h2load), so that the client is not what is measured.

One call is serialized once and sent again and again. A gRPC error comes with HTTP status 200 and
no body, so the bytes that came back are compared with those of a call that went well.
"""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench.load import Load

_CONNECT_SECONDS = 10.0
_TOLERANCE = 0.03
"""An ECDSA signature's DER is a few bytes longer or shorter."""
_DATA = re.compile(r"\((\d+)\) data")
_REQUESTS = re.compile(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed")


class LoadError(RuntimeError):
    """The load did not run as meant: the figures would not be about the call."""


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call."""

    method: str
    """`/package.Service/Method`."""
    request: bytes = field(repr=False)
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def answer_of(target: str, call: Call) -> bytes:
    """Return the answer's bytes to one call by grpcio; RpcError when it is refused."""
    with grpc.insecure_channel(target) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(call.method)
        return method(call.request, metadata=call.metadata, timeout=_CONNECT_SECONDS)


def load(target: str, call: Call, *, concurrent: int, seconds: float, connections: int = 1) -> Load:
    """Return the rate and latencies of `concurrent` calls at once over `connections`.

    `target`: `unix:<path>` or `<host>:<port>`, in the clear.
    """
    expected = len(answer_of(target, call)) + 5  # the gRPC prefix
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(b"\0" + struct.pack(">I", len(call.request)) + call.request)
        command = [
            *(
                "h2load",
                f"--duration={round(seconds * 1000)}ms",
                "--threads=1",
                f"--clients={connections}",
            ),
            f"--max-concurrent-streams={max(1, concurrent // connections)}",
            *(f"--base-uri={target if target.startswith('unix:') else f'http://{target}'}",),
            *(f"--data={body}", f"--log-file={log}"),
            *("--header=content-type: application/grpc", "--header=te: trailers"),
            *(f"--header={name}: {value}" for name, value in call.metadata),
            f"http://localhost{call.method}",
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        micros = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    _check(output, expected, call)
    return Load(
        per_second=len(micros) / seconds,
        p50_ms=micros[len(micros) // 2] / 1e3,
        p99_ms=micros[len(micros) * 99 // 100] / 1e3,
    )


def _check(output: str, expected: int, call: Call) -> None:
    data, requests = _DATA.search(output), _REQUESTS.search(output)
    if data is None or requests is None or int(requests[1]) == 0:
        raise LoadError(f"{call.method}: h2load's summary was not understood\n{output}")
    total, succeeded, failed = (int(requests[index]) for index in (1, 2, 3))
    share = int(data[1]) / (total * expected)
    if failed or succeeded != total or abs(share - 1) > _TOLERANCE:
        raise LoadError(
            f"{call.method}: of {total} calls {failed} failed, and the answers have "
            f"{share:.0%} of the bytes that they should have"
        )
