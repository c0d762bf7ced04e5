"""A client process that signs without a pause: `python -m tests.faults.flood SOCKET CALLS`.

It keeps so many calls under way until it is ended.
"""

import asyncio
import sys

import grpc

from istio_hsm_proto import signing_v1_pb2 as pb
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.faults.clients import KEY_ID


async def _flood(socket: str, calls: int) -> None:
    request = pb.SignRequest(key_id=KEY_ID, algorithm=pb.ECDSA_SHA256, digest=bytes(32))
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        stub = SigningServiceStub(channel)

        async def sign() -> None:
            while True:
                await stub.Sign(request)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(calls):
                tasks.create_task(sign())


if __name__ == "__main__":
    asyncio.run(_flood(sys.argv[1], int(sys.argv[2])))
