"""The plugin that the set is for, told of each new one over its socket.

gRPC is imported with the first call: a client without a plugin to tell does without its memory.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_MAX_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """The consumer's word on one generation."""

    given: bool
    accepted: bool
    reason: str | None = None


class CredentialConsumer(Protocol):
    """The process that the set is for."""

    def reload(self, generation: str) -> Answer:
        """Return its answer on this generation, or one that was not given in time."""


class PluginConsumer:
    """An hsm-plugin, asked by ReloadCredentials (proto/istio_hsm_proto/control_v1.proto)."""

    def __init__(self, socket: Path, *, timeout_seconds: float) -> None:
        self._socket = socket
        self._timeout_seconds = timeout_seconds

    def reload(self, generation: str) -> Answer:
        """Return the plugin's answer; one that is not given when nothing answers in time."""
        import grpc  # noqa: PLC0415 - see the module's docstring

        from istio_hsm_proto.control_v1_pb2 import ReloadCredentialsRequest  # noqa: PLC0415
        from istio_hsm_proto.control_v1_pb2_grpc import ControlServiceStub  # noqa: PLC0415

        with grpc.insecure_channel(f"unix:{self._socket}") as channel:
            stub = ControlServiceStub(channel)
            try:
                stub.ReloadCredentials(
                    ReloadCredentialsRequest(generation=generation),
                    timeout=self._timeout_seconds,
                    wait_for_ready=True,
                )
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
                silent = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
                return Answer(
                    given=code not in silent,
                    accepted=False,
                    reason=f"{code.name}: {details[:_MAX_REASON_LENGTH]}",
                )
        return Answer(given=True, accepted=True)
