"""The gRPC server on the socket: edges, health, reflection, and an orderly end."""

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hsm_plugin import socket_file
from hsm_plugin.config import MESH_GID, ServeConfig
from hsm_plugin.connection import Connection, TokenState
from hsm_plugin.control_service import Control
from hsm_plugin.errors import ConfigError, ExpiredError, HsmPluginError
from hsm_plugin.keys import AsyncKeyStore
from hsm_plugin.log import event
from hsm_plugin.rsa_keys import RsaKeys
from hsm_plugin.service import KeyManagement, utc_now
from hsm_plugin.signing_service import Signing
from hsm_plugin.status import details_of, metadata_of, status_of
from hsm_plugin.token_client import TokenClient
from hsm_plugin.worker_process import WorkerSettings
from istio_hsm_proto import control_v1_pb2 as control
from istio_hsm_proto import control_v1_pb2_grpc as control_grpc
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import kms_istio_v1_pb2_grpc as kms_grpc
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
_CONTROL_LANE = b" control"
_SERVICES = (
    kms.DESCRIPTOR.services_by_name["KeyManagementService"].full_name,
    signing.DESCRIPTOR.services_by_name["SigningService"].full_name,
    control.DESCRIPTOR.services_by_name["ControlService"].full_name,
)
_HEALTH = {
    TokenState.USABLE: health_pb2.HealthCheckResponse.SERVING,
    TokenState.LOST: health_pb2.HealthCheckResponse.NOT_SERVING,
}
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.so_reuseport", 0),
)


class Edge(Generic[_Api]):
    """Serves one RPC: gives its API the token, bound to this call, and turns errors to statuses."""

    def __init__(self, token: TokenClient, api: Callable[[AsyncKeyStore], _Api]) -> None:
        self._token = token
        self._api = api

    async def answer(
        self,
        context: grpc.aio.ServicerContext[_Request, _Response],
        call: Callable[[_Api, _Request], Awaitable[_Response]],
        request: _Request,
        lane: bytes,
    ) -> _Response:
        """Return the response, or abort with the status of the error.

        `lane`: calls of one lane wait for each other; see hsm_plugin.admission.
        """
        left = cast("float | None", context.time_remaining())  # None without a deadline
        seconds = _MAX_SECONDS if left is None else min(left, _MAX_SECONDS)
        token = self._token.bound(lane, time.monotonic() + seconds)
        try:
            _check_time_left(seconds)
            return await call(self._api(token), request)
        except HsmPluginError as error:
            status = status_of(error)
            event("rpc.refused", str(error), call=call.__name__, status=status.name)
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


async def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain and leave no socket behind."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    token = TokenClient(
        WorkerSettings(
            module=config.module,
            token_label=config.token_label,
            pin_file=config.pin_file,
            state_dir=config.state_dir,
            threads=config.sessions,
        ),
        queue_limit=config.queue_limit,
        hang_seconds=config.hang_seconds,
    )
    health_servicer = health.aio.HealthServicer()

    async def on_change(state: TokenState) -> None:
        for name in ("", *_SERVICES):
            await health_servicer.set(name, _HEALTH[state])

    connection = Connection(token, config.pin_file, on_change)
    rsa_keys = RsaKeys(at_once=config.sessions, queue_limit=config.queue_limit)
    control_api = Control(config.pin_file, connection.reload)
    server = _server(token, rsa_keys, control_api, health_servicer)
    try:
        await token.load_module()
        _listen(server, config)
    except BaseException:
        await token.close()
        raise

    await on_change(TokenState.LOST)
    await server.start()
    event("server.serving", f"Serving on socket: {config.socket}")
    connected = asyncio.create_task(connection.run())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({connected, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        event("server.draining", "Draining: calls under way end, new ones are refused")
        connected.cancel()
        stopped.cancel()
        await health_servicer.enter_graceful_shutdown()
        await server.stop(config.drain_seconds)
        await asyncio.gather(connected, stopped, return_exceptions=True)
        await token.close()
        config.socket.unlink(missing_ok=True)
        event("server.stopped", "Stopped")
    if not connected.cancelled():
        connected.result()  # raises what ended the loop


def _server(
    token: TokenClient,
    rsa_keys: RsaKeys,
    control_api: Control,
    health_servicer: health.aio.HealthServicer,
) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS)
    kms_grpc.add_KeyManagementServiceServicer_to_server(
        _KeyManagementServicer(
            Edge(token, lambda store: KeyManagement(store, utc_now, rsa_keys.make))
        ),
        server,
    )
    signing_grpc.add_SigningServiceServicer_to_server(
        _SigningServicer(Edge(token, Signing)), server
    )
    control_grpc.add_ControlServiceServicer_to_server(
        _ControlServicer(Edge(token, lambda _store: control_api)), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server


def _listen(server: grpc.aio.Server, config: ServeConfig) -> None:
    socket_file.claim(config.socket)
    try:
        with socket_file.narrow_umask():
            server.add_insecure_port(f"unix:{config.socket}")
    except RuntimeError:
        raise ConfigError(
            f"the socket {config.socket} cannot be made",
            hint="choose a SOCKET in a folder that this process may write",
        ) from None
    if not socket_file.share_with_group(config.socket, MESH_GID):
        event(
            "socket.group",
            f"The socket keeps this process's group: it may not be given to {MESH_GID}",
        )
    event("server.listening", f"KMS Plugin Listening on : {config.socket}")
