"""The plugin's commands that talk to a running server over its socket."""

import base64
import binascii
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hsm_plugin import whole_file
from hsm_plugin.errors import BadRequestError, HsmPluginError, HsmUnavailableError
from hsm_plugin.key_reference import KeyUse
from hsm_plugin.key_reference import key_id as key_id_of
from hsm_plugin.trust import MALFORMED, load_certificate, to_der
from istio_hsm_proto import inspection_v1_pb2 as inspection
from istio_hsm_proto import inspection_v1_pb2_grpc as inspection_grpc
from istio_hsm_proto import kms_istio_v1_pb2 as pb
from istio_hsm_proto import kms_istio_v1_pb2_grpc as pb_grpc
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import rotation_v1_pb2_grpc as rotation_grpc
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto import signing_v1_pb2_grpc as signing_grpc

_Response = TypeVar("_Response")

KEY_ALGORITHMS = signing.KeyAlgorithm.keys()[1:]
SIGNATURE_ALGORITHMS = signing.SignatureAlgorithm.keys()[1:]
MAX_FILE_BYTES = 4 << 20
_CSR_KEYS = ("kek-id", "encrypted-dek", "csr-id", "encrypted-csr")
Result = Mapping[str, str | bool]


@dataclass(frozen=True, slots=True)
class Client:
    """A running plugin, reached by its socket."""

    socket: str
    timeout_seconds: float

    def generate_kek(self, kek_id: str) -> Result:
        """Return the id of the KEK, made when it was not there; an empty id makes a new one."""
        kek = key_id_of(kek_id, KeyUse.KEK)
        with self._stub() as stub:
            response = self._call(stub.GenerateKEK, pb.GenerateKEKRequest(kek_kid=kek))
        return {"kek_id": response.kek_kid.decode()}

    def import_ca(self, path: Path, ca_id: str) -> Result:
        """Return the subject and fingerprint of the root that is now in the token."""
        blob = _read(path)
        with self._stub() as stub:
            self._call(
                stub.ImportCACert, pb.ImportCACertRequest(ca_id=_raw(ca_id), ca_cert_blob=blob)
            )
        return _described(load_certificate(blob, str(path)))

    def decrypt_csr(self, path: Path, output: Path | None) -> Result:
        """Return the CSR of an `istio-ca-cert-csr` Secret, written to `output` when given."""
        secret = _csr_secret(path)
        with self._stub() as stub:
            response = self._call(
                stub.AuthenticatedDecrypt,
                pb.AuthenticatedDecryptRequest(
                    kek_kid=secret["kek-id"],
                    encrypted_dek_blob=secret["encrypted-dek"],
                    ciphertext=secret["encrypted-csr"],
                    aad=secret["csr-id"],
                ),
            )
        try:
            csr = x509.load_pem_x509_csr(response.plaintext)
            is_genuine = csr.is_signature_valid
            subject = csr.subject.rfc4514_string()  # read lazily: it may be malformed
        except MALFORMED:
            is_genuine = False
        if not is_genuine:
            raise BadRequestError(
                f"{path} decrypts, but not to a certificate request that its own key signed",
                hint="take the Secret istio-ca-cert-csr again",
            )
        pem = csr.public_bytes(serialization.Encoding.PEM)  # and nothing that stood around it
        if output is not None:
            _write(output, pem)
        spki = csr.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {
            "csr_id": secret["csr-id"].decode(),
            "subject": subject,
            "public_key_sha256": _sha256(spki),
            "csr": pem.decode(),
        }

    def verify_cert(self, path: Path) -> Result:
        """Return the target's subject when its chain ends at an imported root.

        The file holds PEM certificates, the target first, as in cert-chain.pem.
        """
        try:
            target, *others = x509.load_pem_x509_certificates(_read(path))
        except MALFORMED:
            raise BadRequestError(
                f"{path} holds no PEM certificate", hint="give the chain, its leaf first"
            ) from None
        request = pb.VerifyCertChainRequest(
            certificates=[*(to_der(entry) for entry in reversed(others)), to_der(target)]
        )
        with self._stub() as stub:
            response = self._call(stub.VerifyCertChain, request)
        return {**_described(target), "verified": response.successful_verification}

    def list_keys(self) -> list[Result]:
        """Return each signing key of the token, with its fault when it is not used."""
        with self._channel() as channel:
            stub = signing_grpc.SigningServiceStub(channel)
            response = self._call(stub.ListKeys, signing.ListKeysRequest())
        return [
            {
                "key_id": _printable(entry.key.key_id),
                "algorithm": signing.KeyAlgorithm.Name(entry.key.algorithm),
                "public_key_sha256": _sha256(entry.key.public_key),
            }
            if not entry.fault
            else {"key_id": _printable(entry.key.key_id), "fault": entry.fault}
            for entry in response.keys
        ]

    def generate_signing_key(self, key_id: str, algorithm: str) -> Result:
        """Return the signing key of this id, made in the token when it was not there."""
        request = signing.GenerateSigningKeyRequest(
            key_id=key_id_of(key_id, KeyUse.SIGNING),
            algorithm=signing.KeyAlgorithm.Value(algorithm),
        )
        with self._channel() as channel:
            stub = signing_grpc.SigningServiceStub(channel)
            response = self._call(stub.GenerateSigningKey, request)
        public_key = serialization.load_der_public_key(response.key.public_key)
        return {
            "key_id": _printable(response.key.key_id),
            "algorithm": signing.KeyAlgorithm.Name(response.key.algorithm),
            "public_key_sha256": _sha256(response.key.public_key),
            "public_key": public_key.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ).decode(),
            "created": response.created,
        }

    def sign_digest(self, key_id: str, algorithm: str, digest: bytes) -> Result:
        """Return the signature, in base64, that a key in the token makes of a digest."""
        request = signing.SignRequest(
            key_id=key_id_of(key_id, KeyUse.SIGNING),
            algorithm=signing.SignatureAlgorithm.Value(algorithm),
            digest=digest,
        )
        with self._channel() as channel:
            stub = signing_grpc.SigningServiceStub(channel)
            response = self._call(stub.Sign, request)
        return {
            "key_id": key_id,
            "algorithm": algorithm,
            "signature": base64.b64encode(response.signature).decode(),
        }

    def destroy_key(self, key_id: bytes, confirm: bytes, public_key_sha256: bytes) -> None:
        """Return when the signing key is no more."""
        with self._channel() as channel:
            self._call(
                signing_grpc.SigningServiceStub(channel).DestroyKey,
                signing.DestroyKeyRequest(
                    key_id=key_id,
                    confirm_key_id=confirm,
                    confirm_public_key_sha256=public_key_sha256,
                ),
            )

    def rewrap_dek(self, old: bytes, new: bytes, blob: bytes) -> tuple[bytes, bool]:
        """Return the DEK under the new KEK, and whether that was not so before."""
        request = rotation.RewrapDEKRequest(old_kek_id=old, new_kek_id=new, encrypted_dek_blob=blob)
        with self._channel() as channel:
            stub = rotation_grpc.RotationServiceStub(channel)
            response = self._call(stub.RewrapDEK, request)
        return response.encrypted_dek_blob, response.rewrapped

    def destroy_kek(self, kek_id: bytes, confirm: bytes) -> None:
        """Return when the KEK is no more."""
        request = rotation.DestroyKEKRequest(kek_id=kek_id, confirm_kek_id=confirm)
        with self._channel() as channel:
            self._call(rotation_grpc.RotationServiceStub(channel).DestroyKEK, request)

    def public_key(self, key_id: bytes) -> bytes:
        """Return the public half of a signing key, DER."""
        with self._channel() as channel:
            stub = signing_grpc.SigningServiceStub(channel)
            response = self._call(stub.GetPublicKey, signing.GetPublicKeyRequest(key_id=key_id))
        return response.key.public_key

    def inspect(self) -> inspection.InspectResponse:
        """Return what the plugin knows of its token, its keys and itself."""
        with self._channel() as channel:
            stub = inspection_grpc.InspectionServiceStub(channel)
            return self._call(stub.Inspect, inspection.InspectRequest())

    def health(self) -> Result:
        """Return when the plugin serves; HsmUnavailableError when it does not."""
        with self._channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
            response: health_pb2.HealthCheckResponse = self._call(
                stub.Check, health_pb2.HealthCheckRequest()
            )
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise HsmUnavailableError(
                "the plugin is there but does not serve",
                hint="its log says what it waits for: the PIN, the token or the HSM",
            )
        return {"serving": True}

    def self_test(self, kek_id: str) -> Result:
        """Return when a secret made under this KEK comes back unchanged."""
        secret, context = os.urandom(32), b"self-test"
        kek = key_id_of(kek_id, KeyUse.KEK)
        with self._stub() as stub:
            dek = self._call(stub.GenerateDEK, pb.GenerateDEKRequest(kek_kid=kek))
            sealed = self._call(
                stub.AuthenticatedEncrypt,
                pb.AuthenticatedEncryptRequest(
                    kek_kid=kek,
                    encrypted_dek_blob=dek.encrypted_dek_blob,
                    plaintext=secret,
                    aad=context,
                ),
            )
            opened = self._call(
                stub.AuthenticatedDecrypt,
                pb.AuthenticatedDecryptRequest(
                    kek_kid=kek,
                    encrypted_dek_blob=dek.encrypted_dek_blob,
                    ciphertext=sealed.ciphertext,
                    aad=context,
                ),
            )
        if opened.plaintext != secret:
            raise HsmPluginError("what was encrypted did not come back", hint="do not use this KEK")
        return {"kek_id": kek_id, "round_trip": True}

    @contextmanager
    def _stub(self) -> Iterator[pb_grpc.KeyManagementServiceStub]:
        with self._channel() as channel:
            yield pb_grpc.KeyManagementServiceStub(channel)

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{Path(self.socket).absolute()}")

    def _call(self, method: Callable[..., _Response], request: object) -> _Response:
        try:
            return method(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            # What a blocking stub raises is a Call too, which the stubs' types cannot say.
            raise _from_status(cast("grpc.Call", error), self.socket) from None


class CallRefusedError(HsmPluginError):
    """The server refused a call; `status` is the gRPC status."""

    def __init__(self, message: str, *, hint: str, status: str) -> None:
        super().__init__(f"{message} [{status}]", hint=hint)
        self.status = status


def _from_status(error: grpc.Call, socket: str) -> HsmPluginError:
    sent = dict(error.trailing_metadata() or ()).get("hint-bin", b"")
    hint = sent.decode(errors="replace") if isinstance(sent, bytes) else sent
    if error.code() is grpc.StatusCode.UNAVAILABLE and not hint:
        return HsmUnavailableError(
            f"no plugin answers on {socket}",
            hint="start `hsm-plugin serve`, or set SOCKET to the socket it logs; where it has an"
            " allow-list (--allow-uid), its log tells whom it refused",
        )
    cause = (error.details() or error.code().name).removesuffix(f" ({hint})")
    return CallRefusedError(
        cause,
        hint=hint or "see what the plugin logged for this call",
        status=error.code().name,
    )


def _raw(argument: str) -> bytes:
    """Return an argument as the shell gave it; the server says what is wrong with it."""
    return os.fsencode(argument)


def _printable(key_id: bytes) -> str:
    """Return the id; other clients of the token may have made one that is no visible ASCII."""
    return key_id.decode("ascii", errors="backslashreplace")


def _csr_secret(path: Path) -> dict[str, bytes]:
    """Return the Secret's data: `kubectl get secret -o json`, or `-o jsonpath={.data}`."""
    try:
        document = json.loads(_read(path))
        data = document.get("data", document)
        return {key: base64.b64decode(data[key], validate=True) for key in _CSR_KEYS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise BadRequestError(
            f"{path} is not the data of the Secret istio-ca-cert-csr",
            hint="get it with: kubectl get secret istio-ca-cert-csr -n istio-system "
            "-o jsonpath={.data}",
        ) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadRequestError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its mode"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise BadRequestError(
            f"{path} is larger than {MAX_FILE_BYTES} bytes", hint="check that it is the right file"
        )
    return content


def _write(path: Path, content: bytes) -> None:
    """Replace the file; a CSR is public, so everybody may read it."""
    try:
        whole_file.replace(path, content, mode=0o644)
    except OSError as error:
        raise BadRequestError(
            f"{path} cannot be written: {error.strerror}", hint="check the folder and its mode"
        ) from None


def _described(certificate: x509.Certificate) -> Result:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _sha256(data: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex()
