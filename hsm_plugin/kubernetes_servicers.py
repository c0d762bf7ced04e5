"""The methods of Kubernetes' KMS services: messages <-> KubernetesKms."""

from importlib.metadata import version

import grpc

from hsm_plugin.edge import Edge
from hsm_plugin.errors import BadRequestError
from hsm_plugin.kubernetes_kms import KubernetesKms
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2 as kms_v1
from istio_hsm_proto import kms_kubernetes_v1beta1_pb2_grpc as kms_v1_grpc
from istio_hsm_proto import kms_kubernetes_v2_pb2 as kms_v2
from istio_hsm_proto import kms_kubernetes_v2_pb2_grpc as kms_v2_grpc

_V1 = "v1beta1"
_KUBERNETES_LANE = b" kubernetes"


class KubernetesV2Servicer(kms_v2_grpc.KeyManagementServiceServicer):
    """Kubernetes' KMS API."""

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


class KubernetesV1Servicer(kms_v1_grpc.KeyManagementServiceServicer):
    """Kubernetes' KMS API as it was before 1.29."""

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
