"""ReloadCredentials: messages <-> the connection that is kept (see control_v1.proto)."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from hsm_plugin.errors import BadRequestError, ConflictError
from istio_hsm_proto import control_v1_pb2 as pb

_DATA_LINK = "..data"
_MAX_GENERATION_LENGTH = 255


class Control:
    """The calls, each from message to message. Raises HsmPluginError."""

    def __init__(self, pin_file: Path, reload: Callable[[], Awaitable[None]]) -> None:
        self._pin_file = pin_file
        self._reload = reload

    async def reload_credentials(
        self, request: pb.ReloadCredentialsRequest
    ) -> pb.ReloadCredentialsResponse:
        """Answer when the generation that was named, or the one in place, is in use."""
        if len(request.generation) > _MAX_GENERATION_LENGTH:
            raise BadRequestError("the generation's name is too long", hint="name the folder")
        seen = self._generation()
        if request.generation and seen and request.generation != seen:
            raise ConflictError(
                f"the plugin sees generation {seen}, not {request.generation}",
                hint="have both containers mount the same volume, as a whole and not by subPath",
            )
        await self._reload()
        return pb.ReloadCredentialsResponse(generation=request.generation or seen)

    def _generation(self) -> str:
        """Return the name of the set beside the PIN file; empty without one."""
        try:
            return (self._pin_file.parent / _DATA_LINK).readlink().name
        except OSError:
            return ""
