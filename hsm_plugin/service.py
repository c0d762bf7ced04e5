"""The reference API on a token: messages in, blobs out (see kms_istio_v1.proto)."""

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes

from hsm_plugin import trust
from hsm_plugin.envelope import MAX_BLOB_BYTES, Dek, parse, protected_header, serialize
from hsm_plugin.errors import BadRequestError, RejectedBlobError, UnsupportedError
from hsm_plugin.keys import AsyncKeyStore, TrustedRoot, checked_id
from istio_hsm_proto import kms_istio_v1_pb2 as pb

RSA_BITS = (2048, 3072, 4096)
_MAX_AAD_BYTES = 16 << 10


class KeyManagement:
    """The eight calls, each from message to message. Raises HsmPluginError."""

    def __init__(
        self,
        store: AsyncKeyStore,
        now: Callable[[], datetime],
        make_rsa_key: Callable[[int], Awaitable[bytes]],
    ) -> None:
        self._store = store
        self._make_rsa_key = make_rsa_key
        self._now = now

    async def generate_kek(self, request: pb.GenerateKEKRequest) -> pb.GenerateKEKResponse:
        """Answer the id of a KEK that is in the token."""
        kek_id = request.kek_kid or str(uuid.uuid4()).encode()
        await self._store.generate_kek(checked_id(kek_id, "KEK id"))
        return pb.GenerateKEKResponse(kek_kid=kek_id)

    async def generate_dek(self, request: pb.GenerateDEKRequest) -> pb.GenerateDEKResponse:
        """Answer a new DEK, wrapped by the KEK."""
        kek_id = checked_id(request.kek_kid, "KEK id")
        protected = protected_header(kek_id.decode())
        sealed = await self._store.wrap(kek_id, Dek.generate().to_jwk(), protected)
        return pb.GenerateDEKResponse(encrypted_dek_blob=serialize(protected, sealed))

    async def generate_skey(self, request: pb.GenerateSKeyRequest) -> pb.GenerateSKeyResponse:
        """Answer a new RSA private key, encrypted under the DEK."""
        if request.kind != pb.RSA:
            raise UnsupportedError(
                f"keys of kind {_enum_name(request.kind)} are not made here",
                hint="ask for RSA, or use GenerateSigningKey for a key that stays in the HSM",
            )
        if request.size not in RSA_BITS:
            raise BadRequestError(
                f"RSA keys of {request.size} bits are not made",
                hint="ask for 2048, 3072 or 4096",
            )
        dek = await self._dek(request.kek_kid, request.encrypted_dek_blob)
        pem = await self._make_rsa_key(request.size)
        return pb.GenerateSKeyResponse(encrypted_skey_blob=dek.encrypt(pem))

    async def load_skey(self, request: pb.LoadSKeyRequest) -> pb.LoadSKeyResponse:
        """Answer the private key in the clear."""
        dek = await self._dek(request.kek_kid, request.encrypted_dek_blob)
        return pb.LoadSKeyResponse(plaintext_skey=dek.decrypt(request.encrypted_skey_blob))

    async def authenticated_encrypt(
        self, request: pb.AuthenticatedEncryptRequest
    ) -> pb.AuthenticatedEncryptResponse:
        """Answer the plaintext encrypted under the DEK, bound to the aad."""
        _checked_aad(request.aad)
        if len(request.plaintext) > MAX_BLOB_BYTES // 2:
            raise BadRequestError(
                f"the plaintext has {len(request.plaintext)} bytes",
                hint=f"at most {MAX_BLOB_BYTES // 2} are encrypted in one call",
            )
        dek = await self._dek(request.kek_kid, request.encrypted_dek_blob)
        return pb.AuthenticatedEncryptResponse(
            ciphertext=dek.encrypt(request.plaintext, request.aad)
        )

    async def authenticated_decrypt(
        self, request: pb.AuthenticatedDecryptRequest
    ) -> pb.AuthenticatedDecryptResponse:
        """Answer the plaintext of AuthenticatedEncrypt."""
        _checked_aad(request.aad)
        dek = await self._dek(request.kek_kid, request.encrypted_dek_blob)
        return pb.AuthenticatedDecryptResponse(
            plaintext=dek.decrypt(request.ciphertext, request.aad)
        )

    async def import_ca_cert(self, request: pb.ImportCACertRequest) -> pb.ImportCACertResponse:
        """Store a root certificate in the token, under its SHA-256 when no id is given."""
        root = trust.load_certificate(request.ca_cert_blob, "the CA certificate")
        trust.check_root(root, self._now())
        ca_id = request.ca_id or root.fingerprint(hashes.SHA256()).hex().encode()
        await self._store.add_root(
            TrustedRoot(
                ca_id=checked_id(ca_id, "CA id"),
                subject=root.subject.public_bytes(),
                certificate=trust.to_der(root),
            )
        )
        return pb.ImportCACertResponse(success=True)

    async def verify_cert_chain(
        self, request: pb.VerifyCertChainRequest
    ) -> pb.VerifyCertChainResponse:
        """Answer true, or raise with the reason."""
        blobs = list(request.certificates)
        if len(blobs) > trust.MAX_CERTIFICATES:
            raise BadRequestError(f"more than {trust.MAX_CERTIFICATES} certificates were given")
        certificates = [
            trust.load_certificate(blob, f"certificate {index}")
            for index, blob in enumerate(blobs, start=1)
        ]
        roots = [
            trust.load_certificate(root.certificate, "an imported root")
            for root in await self._store.roots()
        ]
        trust.verify_chain(certificates, roots, self._now())
        return pb.VerifyCertChainResponse(successful_verification=True)

    async def _dek(self, kek_kid: bytes, blob: bytes) -> Dek:
        kek_id = checked_id(kek_kid, "KEK id")
        jwe = parse(blob, "the encrypted DEK")
        if jwe.kid.encode() != kek_id:
            raise RejectedBlobError(
                "the encrypted DEK was wrapped by another KEK than the one named",
                hint="pass the kek-id that is stored beside the encrypted DEK",
            )
        return Dek.from_jwk(await self._store.unwrap(kek_id, jwe.sealed, jwe.protected))


def utc_now() -> datetime:
    """Return the time now, aware, in UTC."""
    return datetime.now(UTC)


def _checked_aad(aad: bytes) -> None:
    if len(aad) > _MAX_AAD_BYTES:
        raise BadRequestError(
            f"the aad has {len(aad)} bytes", hint=f"at most {_MAX_AAD_BYTES} are allowed"
        )


def _enum_name(kind: int) -> str:
    return pb.KeyKind.Name(kind) if kind in pb.KeyKind.values() else str(kind)  # type: ignore[arg-type]
