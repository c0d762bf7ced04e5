"""The methods of the plugin's own services: each names its lane and goes through the edge."""

from collections.abc import Awaitable

import grpc

from hsm_plugin.control_service import Control
from hsm_plugin.edge import Edge
from hsm_plugin.inspection_service import Inspection
from hsm_plugin.log import event
from hsm_plugin.rotation_service import Rotation
from hsm_plugin.service import KeyManagement
from hsm_plugin.signing_service import Signing
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
from istio_hsm_proto import inspection_v1_pb2 as inspection
from istio_hsm_proto import inspection_v1_pb2_grpc as inspection_grpc
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import rotation_v1_pb2_grpc as rotation_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc

_MAX_KEKS_LOGGED = 64
_ROOTS_LANE = b" roots"
"""Calls about root certificates; a key id has no space."""
_LIST_LANE = b" list"
_CONTROL_LANE = b" control"


class KeyManagementServicer(kms_grpc.KeyManagementServiceServicer):
    """The reference API."""

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

    def GenerateSKey(
        self,
        request: kms.GenerateSKeyRequest,
        context: grpc.aio.ServicerContext[kms.GenerateSKeyRequest, kms.GenerateSKeyResponse],
    ) -> Awaitable[kms.GenerateSKeyResponse]:
        return self._edge.answer(context, KeyManagement.generate_skey, request, request.kek_kid)

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

    def AuthenticatedEncrypt(
        self,
        request: kms.AuthenticatedEncryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedEncryptRequest, kms.AuthenticatedEncryptResponse
        ],
    ) -> Awaitable[kms.AuthenticatedEncryptResponse]:
        return self._edge.answer(
            context, KeyManagement.authenticated_encrypt, request, request.kek_kid
        )

    def AuthenticatedDecrypt(
        self,
        request: kms.AuthenticatedDecryptRequest,
        context: grpc.aio.ServicerContext[
            kms.AuthenticatedDecryptRequest, kms.AuthenticatedDecryptResponse
        ],
    ) -> Awaitable[kms.AuthenticatedDecryptResponse]:
        return self._edge.answer(
            context, KeyManagement.authenticated_decrypt, request, request.kek_kid
        )

    def ImportCACert(
        self,
        request: kms.ImportCACertRequest,
        context: grpc.aio.ServicerContext[kms.ImportCACertRequest, kms.ImportCACertResponse],
    ) -> Awaitable[kms.ImportCACertResponse]:
        return self._edge.answer(context, KeyManagement.import_ca_cert, request, _ROOTS_LANE)

    def VerifyCertChain(
        self,
        request: kms.VerifyCertChainRequest,
        context: grpc.aio.ServicerContext[kms.VerifyCertChainRequest, kms.VerifyCertChainResponse],
    ) -> Awaitable[kms.VerifyCertChainResponse]:
        return self._edge.answer(context, KeyManagement.verify_cert_chain, request, _ROOTS_LANE)

    def _log_kek(self, kek_id: bytes) -> None:
        """Log a KEK at its first use, as the reference does and operators look for."""
        if kek_id not in self._keks_logged and len(self._keks_logged) < _MAX_KEKS_LOGGED:
            self._keks_logged.add(kek_id)
            event("kek.used", f"KEK ID: {kek_id.decode()}")


class SigningServicer(signing_grpc.SigningServiceServicer):
    """Keys that stay in the HSM."""

    def __init__(self, edge: Edge[Signing]) -> None:
        self._edge = edge

    def GenerateSigningKey(
        self,
        request: signing.GenerateSigningKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GenerateSigningKeyRequest, signing.GenerateSigningKeyResponse
        ],
    ) -> Awaitable[signing.GenerateSigningKeyResponse]:
        return self._edge.answer(context, Signing.generate_signing_key, request, request.key_id)

    def GetPublicKey(
        self,
        request: signing.GetPublicKeyRequest,
        context: grpc.aio.ServicerContext[
            signing.GetPublicKeyRequest, signing.GetPublicKeyResponse
        ],
    ) -> Awaitable[signing.GetPublicKeyResponse]:
        return self._edge.answer(context, Signing.get_public_key, request, request.key_id)

    def Sign(
        self,
        request: signing.SignRequest,
        context: grpc.aio.ServicerContext[signing.SignRequest, signing.SignResponse],
    ) -> Awaitable[signing.SignResponse]:
        return self._edge.answer(context, Signing.sign, request, request.key_id)

    def SignBatch(
        self,
        request: signing.SignBatchRequest,
        context: grpc.aio.ServicerContext[signing.SignBatchRequest, signing.SignBatchResponse],
    ) -> Awaitable[signing.SignBatchResponse]:
        return self._edge.answer(context, Signing.sign_batch, request, request.key_id)

    def ListKeys(
        self,
        request: signing.ListKeysRequest,
        context: grpc.aio.ServicerContext[signing.ListKeysRequest, signing.ListKeysResponse],
    ) -> Awaitable[signing.ListKeysResponse]:
        return self._edge.answer(context, Signing.list_keys, request, _LIST_LANE)

    async def DestroyKey(
        self,
        request: signing.DestroyKeyRequest,
        context: grpc.aio.ServicerContext[signing.DestroyKeyRequest, signing.DestroyKeyResponse],
    ) -> signing.DestroyKeyResponse:
        response = await self._edge.answer(context, Signing.destroy_key, request, request.key_id)
        event("key.destroyed", f"Destroyed the signing key {request.key_id.decode()}")
        return response


class InspectionServicer(inspection_grpc.InspectionServiceServicer):
    """What the plugin knows of itself."""

    def __init__(self, edge: Edge[Inspection]) -> None:
        self._edge = edge

    def Inspect(
        self,
        request: inspection.InspectRequest,
        context: grpc.aio.ServicerContext[inspection.InspectRequest, inspection.InspectResponse],
    ) -> Awaitable[inspection.InspectResponse]:
        return self._edge.answer(context, Inspection.inspect, request, _LIST_LANE)


class ControlServicer(control_grpc.ControlServiceServicer):
    """What the pod asks of the plugin itself."""

    def __init__(self, edge: Edge[Control]) -> None:
        self._edge = edge

    def ReloadCredentials(
        self,
        request: control.ReloadCredentialsRequest,
        context: grpc.aio.ServicerContext[
            control.ReloadCredentialsRequest, control.ReloadCredentialsResponse
        ],
    ) -> Awaitable[control.ReloadCredentialsResponse]:
        return self._edge.answer(context, Control.reload_credentials, request, _CONTROL_LANE)

    def TrialCredentials(
        self,
        request: control.TrialCredentialsRequest,
        context: grpc.aio.ServicerContext[
            control.TrialCredentialsRequest, control.TrialCredentialsResponse
        ],
    ) -> Awaitable[control.TrialCredentialsResponse]:
        return self._edge.answer(context, Control.trial_credentials, request, _CONTROL_LANE)


class RotationServicer(rotation_grpc.RotationServiceServicer):
    """Moving DEKs to another KEK, and destroying a KEK."""

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
