"""A listing that cannot be read ends the watch with our error, and never leaves it waiting."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.kube_watch import watched
from istiod_ca_bridge.observed import Change


def listing(data: bytes) -> Any:
    """Return a list call that answers with this body."""
    response = SimpleNamespace(status=200, data=data, release_conn=lambda: None)
    return lambda **_options: response


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"items": [{"n": 1 << 70}], "metadata": {"resourceVersion": "1"}}).encode(),
        b'{"items":' + b"[" * 100_000,
        b'{"items": [7]}',
        b"\xff",
    ],
    ids=["a number out of range", "nested too deep", "another kind", "no JSON"],
)
async def test_an_object_that_cannot_be_read_ends_the_watch(data: bytes) -> None:
    def read(body: dict[str, Any]) -> Change[bytes]:
        return Change("x", body["n"].to_bytes(8))

    async with asyncio.timeout(10):
        with pytest.raises(ClusterUnavailableError, match="is malformed"):
            async for _ in watched("things", listing(data), read):
                pass
