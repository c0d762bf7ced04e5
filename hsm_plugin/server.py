"""The gRPC server: each service's methods, health, and reflection."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Generic, TypeVar, cast

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hsm_plugin.admission import Lane
from hsm_plugin.callers import Callers
from hsm_plugin.control_service import Control
from hsm_plugin.errors import BadRequestError, ExpiredError, HsmPluginError
from hsm_plugin.keys import AsyncKeyStore, KekCipher
from hsm_plugin.kubernetes_kms import KubernetesKms
from hsm_plugin.log import event
from hsm_plugin.rotation_service import Rotation
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.service import KeyManagement, utc_now
from hsm_plugin.signing_service import Signing
from hsm_plugin.status import details_of, metadata_of, status_of
from hsm_plugin.token_client import TokenClient
from hsm_plugin.token_memory import TokenMemory
from hsm_plugin.well_formed import well_formed
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2_grpc as kms_v1_grpc
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import kms_kubernetes_v2_pb2_grpc as kms_v2_grpc
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import rotation_v1_pb2_grpc as rotation_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc

_Api = TypeVar("_Api")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

MAX_MESSAGE_BYTES = 2 << 20
_MAX_SECONDS = 60.0
"""The deadline of a call that has none."""
_MAX_KEKS_LOGGED = 64
_ROOTS_LANE = b" roots"
"""Calls about root certificates; a key id has no space."""
_LIST_LANE = b" list"
_CONTROL_LANE = b" control"
_SERVICES = (
    kms.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    signing.DESCRIPTOR.services_by_name["SigningService"].full_name,
    control.DESCRIPTOR.services_by_name["ControlService"].full_name,
    rotation.DESCRIPTOR.services_by_name["RotationService"].full_name,
)
_V1 = "v1beta1"
_KUBERNETES_LANE = b" kubernetes"
_KUBERNETES_SERVICES = (
    kms_v2.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    kms_v1.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Apis:
    """What the services are made of, besides the token."""

    memory: TokenMemory
    rsa_keys: RsaKeys
    control: Control
    kubernetes_kek_id: str
    """Empty: Kubernetes' services are not offered."""
    callers: Callers
    kek_cipher: KekCipher


class Edge(Generic[_Api]):
    """Serves one RPC: gives its API the token, bound to this call, and turns errors to statuses."""

    def __init__(
        self, token: TokenClient, callers: Callers, api: Callable[[AsyncKeyStore], _Api]
    ) -> None:
        self._token = token
        self._callers = callers
        self._api = api

    async def answer(
        self,
        context: grpc.aio.ServicerContext[_Request, _Response],
        call: Callable[[_Api, _Request], Awaitable[_Response]],
        request: _Request,
        lane: bytes,
    ) -> _Response:
        """Return the response, or abort with the status of the error.

        `lane`: a client's calls of one lane wait for each other; see hsm_plugin.admission.
        """
        left = cast("float | None", context.time_remaining())  # None without a deadline
        seconds = _MAX_SECONDS if left is None else min(left, _MAX_SECONDS)
        try:
            caller = self._callers.of(context.peer())
            _check_time_left(seconds)
            token = self._token.bound(Lane(lane, caller.client), time.monotonic() + seconds)
            return await call(self._api(token), request)
        except HsmPluginError as error:
            status = status_of(error)
            event(
                "rpc.refused",
                str(error),
                call=call.__name__,
                status=status.name,
                caller=self._callers.fields_of(context.peer()),
            )
            await context.abort(status, details_of(error), metadata_of(error))
        except Exception as error:  # noqa: BLE001 - the edge: nothing may end the server
            event(
                "rpc.failed",
                "A call failed in a way that was not foreseen",
                level=logging.ERROR,
                call=call.__name__,
                error=type(error).__name__,
            )
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the plugin's log")


def _check_time_left(seconds: float) -> None:
    if seconds <= 0:
        raise ExpiredError("the deadline passed before the call began")


class _KeyManagementServicer(kms_grpc.KeyManagementServiceServicer):
    def __init__(self, edge: Edge[KeyManagement]) -> None:
        self._edge = edge
        self._keks_logged: set[bytes] = set()

    async def GenerateKEK(
        self,
        request: kms.GenerateKEKRequest,
        context: grpc.aio.ServicerContext[kms.GenerateKEKRequest, kms.GenerateKEKResponse],
    ) -> kms.GenerateKEKResponse:
        response = await self._edge.answer(
            context, KeyManagement.generate_kek, request, request.kek_kid
        )
        self._log_kek(response.kek_kid)
        return response

    async def GenerateDEK(
        self,
        request: kms.GenerateDEKRequest,
        context: grpc.aio.ServicerContext[kms.GenerateDEKRequest, kms.GenerateDEKResponse],
    ) -> kms.GenerateDEKResponse:
        response = await self._edge.answer(
            context, KeyManagement.generate_dek, request, request.kek_kid
        )
        self._log_kek(request.kek_kid)
        return response

    async def GenerateSKey(
        self,
        request: kms.GenerateSKeyRequest,
        context: grpc.aio.ServicerContext[kms.GenerateSKeyRequest, kms.GenerateSKeyResponse],
    ) -> kms.GenerateSKeyResponse:
        return await self._edge.answer(
            context, KeyManagement.generate_skey, request, request.kek_kid
        )

    async def LoadSKey(
        self,
        request: kms.LoadSKeyRequest,
        context: grpc.aio.ServicerContext[kms.LoadSKeyRequest, kms.LoadSKeyResponse],
    ) -> kms.LoadSKeyResponse:
        response = await self._edge.answer(
            context, KeyManagement.load_skey, request, request.kek_kid
        )
        self._log_kek(request.kek_kid)
        return response

    async def AuthenticatedEncrypt(
        self,
        request: kms.AuthenticatedEncryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedEncryptRequest, kms.AuthenticatedEncryptResponse
        ],
    ) -> kms.AuthenticatedEncryptResponse:
        return await self._edge.answer(
            context, KeyManagement.authenticated_encrypt, request, request.kek_kid
        )

    async def AuthenticatedDecrypt(
        self,
        request: kms.AuthenticatedDecryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedDecryptRequest, kms.AuthenticatedDecryptResponse
        ],
    ) -> kms.AuthenticatedDecryptResponse:
        return await self._edge.answer(
            context, KeyManagement.authenticated_decrypt, request, request.kek_kid
        )

    async def ImportCACert(
        self,
        request: kms.ImportCACertRequest,
        context: grpc.aio.ServicerContext[kms.ImportCACertRequest, kms.ImportCACertResponse],
    ) -> kms.ImportCACertResponse:
        return await self._edge.answer(context, KeyManagement.import_ca_cert, request, _ROOTS_LANE)

    async def VerifyCertChain(
        self,
        request: kms.VerifyCertChainRequest,
        context: grpc.aio.ServicerContext[kms.VerifyCertChainRequest, kms.VerifyCertChainResponse],
    ) -> kms.VerifyCertChainResponse:
        return await self._edge.answer(
            context, KeyManagement.verify_cert_chain, request, _ROOTS_LANE
        )

    def _log_kek(self, kek_id: bytes) -> None:
        """Log a KEK at its first use, as the reference does and operators look for."""
        if kek_id not in self._keks_logged and len(self._keks_logged) < _MAX_KEKS_LOGGED:
            self._keks_logged.add(kek_id)
            event("kek.used", f"KEK ID: {kek_id.decode()}")


class _SigningServicer(signing_grpc.SigningServiceServicer):
    def __init__(self, edge: Edge[Signing]) -> None:
        self._edge = edge

    async def GenerateSigningKey(
        self,
        request: signing.GenerateSigningKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GenerateSigningKeyRequest, signing.GenerateSigningKeyResponse
        ],
    ) -> signing.GenerateSigningKeyResponse:
        return await self._edge.answer(
            context, Signing.generate_signing_key, request, request.key_id
        )

    async def GetPublicKey(
        self,
        request: signing.GetPublicKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GetPublicKeyRequest, signing.GetPublicKeyResponse
        ],
    ) -> signing.GetPublicKeyResponse:
        return await self._edge.answer(context, Signing.get_public_key, request, request.key_id)

    async def Sign(
        self,
        request: signing.SignRequest,
        context: grpc.aio.ServicerContext[signing.SignRequest, signing.SignResponse],
    ) -> signing.SignResponse:
        return await self._edge.answer(context, Signing.sign, request, request.key_id)

    async def SignBatch(
        self,
        request: signing.SignBatchRequest,
        context: grpc.aio.ServicerContext[signing.SignBatchRequest, signing.SignBatchResponse],
    ) -> signing.SignBatchResponse:
        return await self._edge.answer(context, Signing.sign_batch, request, request.key_id)

    async def ListKeys(
        self,
        request: signing.ListKeysRequest,
        context: grpc.aio.ServicerContext[signing.ListKeysRequest, signing.ListKeysResponse],
    ) -> signing.ListKeysResponse:
        return await self._edge.answer(context, Signing.list_keys, request, _LIST_LANE)

    async def DestroyKey(
        self,
        request: signing.DestroyKeyRequest,
        context: grpc.aio.ServicerContext[signing.DestroyKeyRequest, signing.DestroyKeyResponse],
    ) -> signing.DestroyKeyResponse:
        response = await self._edge.answer(context, Signing.destroy_key, request, request.key_id)
        event("key.destroyed", f"Destroyed the signing key {request.key_id.decode()}")
        return response


class _ControlServicer(control_grpc.ControlServiceServicer):
    def __init__(self, edge: Edge[Control]) -> None:
        self._edge = edge

    async def ReloadCredentials(
        self,
        request: control.ReloadCredentialsRequest,
        context: grpc.aio.ServicerContext[
            control.ReloadCredentialsRequest, control.ReloadCredentialsResponse
        ],
    ) -> control.ReloadCredentialsResponse:
        return await self._edge.answer(context, Control.reload_credentials, request, _CONTROL_LANE)

    async def TrialCredentials(
        self,
        request: control.TrialCredentialsRequest,
        context: grpc.aio.ServicerContext[
            control.TrialCredentialsRequest, control.TrialCredentialsResponse
        ],
    ) -> control.TrialCredentialsResponse:
        return await self._edge.answer(context, Control.trial_credentials, request, _CONTROL_LANE)


class _RotationServicer(rotation_grpc.RotationServiceServicer):
    def __init__(self, edge: Edge[Rotation]) -> None:
        self._edge = edge

    async def RewrapDEK(
        self,
        request: rotation.RewrapDEKRequest,
        context: grpc.aio.ServicerContext[rotation.RewrapDEKRequest, rotation.RewrapDEKResponse],
    ) -> rotation.RewrapDEKResponse:
        response = await self._edge.answer(
            context, Rotation.rewrap_dek, request, request.new_kek_id
        )
        if response.rewrapped:
            old, new = request.old_kek_id.decode(), request.new_kek_id.decode()
            event("dek.rewrapped", f"Re-wrapped a DEK of the KEK {old} by the KEK {new}")
        return response

    async def DestroyKEK(
        self,
        request: rotation.DestroyKEKRequest,
        context: grpc.aio.ServicerContext[rotation.DestroyKEKRequest, rotation.DestroyKEKResponse],
    ) -> rotation.DestroyKEKResponse:
        response = await self._edge.answer(context, Rotation.destroy_kek, request, request.kek_id)
        event("kek.destroyed", f"Destroyed the KEK {request.kek_id.decode()}")
        return response


class _KubernetesV2Servicer(kms_v2_grpc.KeyManagementServiceServicer):
    def __init__(self, edge: Edge[KubernetesKms]) -> None:
        self._edge = edge

    async def Status(
        self,
        request: kms_v2.StatusRequest,
        context: grpc.aio.ServicerContext[kms_v2.StatusRequest, kms_v2.StatusResponse],
    ) -> kms_v2.StatusResponse:
        return await self._edge.answer(context, _status, request, _KUBERNETES_LANE)

    async def Encrypt(
        self,
        request: kms_v2.EncryptRequest,
        context: grpc.aio.ServicerContext[kms_v2.EncryptRequest, kms_v2.EncryptResponse],
    ) -> kms_v2.EncryptResponse:
        return await self._edge.answer(context, _encrypt, request, _KUBERNETES_LANE)

    async def Decrypt(
        self,
        request: kms_v2.DecryptRequest,
        context: grpc.aio.ServicerContext[kms_v2.DecryptRequest, kms_v2.DecryptResponse],
    ) -> kms_v2.DecryptResponse:
        return await self._edge.answer(context, _decrypt, request, _KUBERNETES_LANE)


class _KubernetesV1Servicer(kms_v1_grpc.KeyManagementServiceServicer):
    def __init__(self, edge: Edge[KubernetesKms]) -> None:
        self._edge = edge

    async def Version(
        self,
        request: kms_v1.VersionRequest,
        context: grpc.aio.ServicerContext[kms_v1.VersionRequest, kms_v1.VersionResponse],
    ) -> kms_v1.VersionResponse:
        return await self._edge.answer(context, _version, request, _KUBERNETES_LANE)

    async def Encrypt(
        self,
        request: kms_v1.EncryptRequest,
        context: grpc.aio.ServicerContext[kms_v1.EncryptRequest, kms_v1.EncryptResponse],
    ) -> kms_v1.EncryptResponse:
        return await self._edge.answer(context, _encrypt_v1, request, _KUBERNETES_LANE)

    async def Decrypt(
        self,
        request: kms_v1.DecryptRequest,
        context: grpc.aio.ServicerContext[kms_v1.DecryptRequest, kms_v1.DecryptResponse],
    ) -> kms_v1.DecryptResponse:
        return await self._edge.answer(context, _decrypt_v1, request, _KUBERNETES_LANE)


async def _status(api: KubernetesKms, _: kms_v2.StatusRequest) -> kms_v2.StatusResponse:
    return kms_v2.StatusResponse(version="v2", healthz=await api.health(), key_id=api.kek_id)


async def _encrypt(api: KubernetesKms, request: kms_v2.EncryptRequest) -> kms_v2.EncryptResponse:
    ciphertext = await api.encrypt(request.plaintext)
    return kms_v2.EncryptResponse(ciphertext=ciphertext, key_id=api.kek_id)


async def _decrypt(api: KubernetesKms, request: kms_v2.DecryptRequest) -> kms_v2.DecryptResponse:
    plaintext = await api.decrypt(request.ciphertext, request.key_id)
    return kms_v2.DecryptResponse(plaintext=plaintext)


async def _version(_: KubernetesKms, request: kms_v1.VersionRequest) -> kms_v1.VersionResponse:
    _check_v1(request.version)
    return kms_v1.VersionResponse(
        version=_V1, runtime_name="hsm-plugin", runtime_version=version("istio-hsm")
    )


async def _encrypt_v1(api: KubernetesKms, request: kms_v1.EncryptRequest) -> kms_v1.EncryptResponse:
    _check_v1(request.version)
    return kms_v1.EncryptResponse(cipher=await api.encrypt(request.plain))


async def _decrypt_v1(api: KubernetesKms, request: kms_v1.DecryptRequest) -> kms_v1.DecryptResponse:
    _check_v1(request.version)
    return kms_v1.DecryptResponse(plain=await api.decrypt(request.cipher))


def _check_v1(asked: str) -> None:
    if asked != _V1:
        raise BadRequestError(f"this service speaks {_V1} only", hint=f"send version {_V1}")


def services(apis: Apis) -> tuple[str, ...]:
    """Return the full names of the services that `build` offers."""
    return (*_SERVICES, *_KUBERNETES_SERVICES) if apis.kubernetes_kek_id else _SERVICES


def build(
    token: TokenClient, apis: Apis, health_servicer: health.aio.HealthServicer
) -> grpc.aio.Server:
    """Return the server, not started and with no port yet."""
    server = grpc.aio.server(options=_OPTIONS)
    strict = well_formed(server)
    kms_grpc.add_KeyManagementServiceServicer_to_server(
        _KeyManagementServicer(
            Edge(
                token,
                apis.callers,
                lambda store: KeyManagement(
                    store, utc_now, apis.rsa_keys.make, apis.memory, apis.kek_cipher
                ),
            )
        ),
        strict,
    )
    signing_grpc.add_SigningServiceServicer_to_server(
        _SigningServicer(Edge(token, apis.callers, Signing)), strict
    )
    control_grpc.add_ControlServiceServicer_to_server(
        _ControlServicer(Edge(token, apis.callers, lambda _store: apis.control)), strict
    )
    rotation_grpc.add_RotationServiceServicer_to_server(
        _RotationServicer(
            Edge(
                token,
                apis.callers,
                lambda store: Rotation(
                    *(store, apis.kek_cipher, apis.kubernetes_kek_id, apis.memory.clear)
                ),
            )
        ),
        strict,
    )
    if apis.kubernetes_kek_id:
        edge = Edge(
            token,
            apis.callers,
            lambda store: KubernetesKms(store, apis.kubernetes_kek_id, apis.kek_cipher),
        )
        kms_v2_grpc.add_KeyManagementServiceServicer_to_server(_KubernetesV2Servicer(edge), strict)
        kms_v1_grpc.add_KeyManagementServiceServicer_to_server(_KubernetesV1Servicer(edge), strict)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, strict)
    names = (*services(apis), health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server
