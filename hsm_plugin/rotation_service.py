"""From one KEK to the next: messages <-> token (see rotation_v1.proto)."""

from collections.abc import Callable

from hsm_plugin import kek_blobs
from hsm_plugin.envelope import Dek
from hsm_plugin.errors import (
    BadRequestError,
    ConflictError,
    KeyNotFoundError,
    RejectedBlobError,
)
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import AsyncKeyStore, KekCipher, checked_id
from istio_hsm_proto import rotation_v1_pb2 as pb


class Rotation:
    """The calls, each from message to message. Raises HsmPluginError."""

    def __init__(
        self,
        store: AsyncKeyStore,
        cipher: KekCipher,
        kubernetes_kek_id: str,
        forget: Callable[[], None],
    ) -> None:
        """`cipher`: of the new wrapping. `forget` is called when a KEK was destroyed."""
        self._store = store
        self._cipher = cipher
        self._kubernetes_kek_id = kubernetes_kek_id.encode()
        self._forget = forget

    async def rewrap_dek(self, request: pb.RewrapDEKRequest) -> pb.RewrapDEKResponse:
        """Answer the DEK under the new KEK."""
        old = checked_id(request.old_kek_id, "old KEK id")
        new = checked_id(request.new_kek_id, "new KEK id")
        if old == new:
            raise BadRequestError(
                "the old and the new KEK are the same", hint="make another one with generate-kek"
            )
        wrapped = kek_blobs.parse(request.encrypted_dek_blob, Purpose.DEK, "the encrypted DEK")
        if wrapped.kek_id not in (old, new):
            raise RejectedBlobError(
                "the encrypted DEK is wrapped by neither of the KEKs that are named",
                hint="pass as old KEK the id that is stored beside the encrypted DEK",
            )
        jwk = await kek_blobs.unwrap(self._store, wrapped)
        Dek.from_jwk(jwk).wipe()  # raises when it is none
        if wrapped.kek_id == new:
            return pb.RewrapDEKResponse(encrypted_dek_blob=request.encrypted_dek_blob)
        blob = await kek_blobs.wrap(self._store, self._cipher, new, jwk, Purpose.DEK)
        return pb.RewrapDEKResponse(encrypted_dek_blob=blob, rewrapped=True)

    async def destroy_kek(self, request: pb.DestroyKEKRequest) -> pb.DestroyKEKResponse:
        """Answer when no KEK of this id is in the token any more, whatever its cipher."""
        kek_id = checked_id(request.kek_id, "KEK id")
        if request.confirm_kek_id != kek_id:
            raise BadRequestError(
                "confirm_kek_id is not the KEK id", hint="repeat the id of the KEK to destroy"
            )
        if kek_id == self._kubernetes_kek_id:
            raise ConflictError(
                "this plugin encrypts for Kubernetes with this KEK",
                hint="start it with another --kms-kek-id first, and write all Secrets again",
            )
        missing: list[KeyNotFoundError] = []
        for cipher in KekCipher:
            try:
                await self._store.destroy_kek(kek_id, cipher)
            except KeyNotFoundError as error:
                missing.append(error)
            finally:
                self._forget()
        if len(missing) == len(KekCipher):
            raise missing[0]
        return pb.DestroyKEKResponse()
