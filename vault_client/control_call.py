"""One ReloadCredentials call, as a process of its own: `python -m vault_client.reload_call`.

Arguments: the plugin's socket, the generation, the seconds to wait. Writes one JSON object to
standard output: the status's name, `OK` when the plugin took the set up, and its details.
"""

import json
import sys

import grpc

from istio_hsm_proto.control_v1_pb2 import ReloadCredentialsRequest
from istio_hsm_proto.control_v1_pb2_grpc import ControlServiceStub


def main(socket: str, generation: str, seconds: str) -> None:
    """Call, and write what was answered."""
    answer = {"status": "OK", "details": ""}
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            ControlServiceStub(channel).ReloadCredentials(
                ReloadCredentialsRequest(generation=generation),
                timeout=float(seconds),
                wait_for_ready=True,
            )
        except grpc.RpcError as error:
            answer = {"status": error.code().name, "details": error.details() or ""}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
