"""One call of the plugin's ControlService, as a process of its own.

`python -m vault_client.control_call`, with the call (`reload` or `trial`), the plugin's socket,
the generation, the seconds to wait, and `patient` to wait for a plugin that does not answer yet.
Writes one JSON object to standard output: the status's name, its details, and the trial's verdict.
"""

import json
import sys

import grpc

from istio_hsm_proto.control_v1_pb2 import (
    ReloadCredentialsRequest,
    TrialCredentialsRequest,
    TrialCredentialsResponse,
)
from istio_hsm_proto.control_v1_pb2_grpc import ControlServiceStub


def main(call: str, socket: str, generation: str, seconds: str, patience: str) -> None:
    """Call, and write what was answered."""
    answer = {"status": "OK", "details": "", "verdict": ""}
    timeout, patient = float(seconds), patience == "patient"
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        stub = ControlServiceStub(channel)
        try:
            if call == "trial":
                asked = TrialCredentialsRequest(generation=generation)
                found = stub.TrialCredentials(asked, timeout=timeout, wait_for_ready=patient)
                answer["verdict"] = TrialCredentialsResponse.Verdict.Name(found.verdict)
                answer["details"] = found.reason
            else:
                told = ReloadCredentialsRequest(generation=generation)
                stub.ReloadCredentials(told, timeout=timeout, wait_for_ready=patient)
        except grpc.RpcError as error:
            answer["status"], answer["details"] = error.code().name, error.details() or ""
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
