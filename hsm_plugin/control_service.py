"""ControlService: messages <-> the connection that is kept (see control_v1.proto)."""

import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from hsm_plugin.errors import BadRequestError, ConflictError, PinRefusedError
from hsm_plugin.log import event
from istio_hsm_proto import control_v1_pb2 as pb

_DATA_LINK = "..data"
_MAX_GENERATION_LENGTH = 255
_STAGED = re.compile(r"\.\.[0-9A-Za-z_][0-9A-Za-z_.-]*", re.ASCII)
"""How the kubelet, and the Vault client, name a set's folder: nothing that leads elsewhere."""


class Control:
    """The calls, each from message to message. Raises HsmPluginError."""

    def __init__(
        self,
        pin_file: Path,
        reload: Callable[[], Awaitable[None]],
        try_pin: Callable[[Path], Awaitable[bool]],
    ) -> None:
        self._pin_file = pin_file
        self._reload = reload
        self._try_pin = try_pin

    async def reload_credentials(
        self, request: pb.ReloadCredentialsRequest
    ) -> pb.ReloadCredentialsResponse:
        """Answer when the generation that was named, or the one in place, is in use."""
        _check_length(request.generation)
        seen = self._generation()
        if request.generation and seen and request.generation != seen:
            raise ConflictError(
                f"the plugin sees generation {seen}, not {request.generation}",
                hint="have both containers mount the same volume, as a whole and not by subPath",
            )
        await self._reload()
        return pb.ReloadCredentialsResponse(generation=request.generation or seen)

    async def trial_credentials(
        self, request: pb.TrialCredentialsRequest
    ) -> pb.TrialCredentialsResponse:
        """Answer what the token says of the PIN in a folder beside the one in place."""
        response = pb.TrialCredentialsResponse
        verdict, reason = response.IN_USE, ""
        try:
            if await self._try_pin(self._staged(request.generation)):
                verdict = response.ACCEPTED
        except PinRefusedError as error:
            verdict, reason = response.REFUSED, str(error)
        event(
            "credentials.tried",
            "Tried the PIN of a set that is not in place yet",
            generation=request.generation,
            verdict=response.Verdict.Name(verdict),
            reason=reason,
        )
        return response(verdict=verdict, reason=reason)

    def _staged(self, generation: str) -> Path:
        """Return the PIN file in a set's folder; links are not followed."""
        _check_length(generation)
        if not _STAGED.fullmatch(generation):
            raise BadRequestError(
                "the generation is no name of a set's folder",
                hint="name a folder beside ..data, such as ..2026_01_31_12_00_00.5f3a9c01",
            )
        folder = self._pin_file.parent / generation
        pin_file = folder / self._pin_file.name
        try:
            sound = stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG(pin_file.lstat().st_mode)
        except OSError:
            sound = False
        if not sound:
            raise ConflictError(
                f"the plugin sees no {self._pin_file.name} in the folder {generation}",
                hint="have both containers mount the same volume, as a whole and not by subPath",
            )
        return pin_file

    def _generation(self) -> str:
        """Return the name of the set beside the PIN file; empty without one."""
        try:
            return (self._pin_file.parent / _DATA_LINK).readlink().name
        except OSError:
            return ""


def _check_length(generation: str) -> None:
    if len(generation) > _MAX_GENERATION_LENGTH:
        raise BadRequestError("the generation's name is too long", hint="name the folder")
