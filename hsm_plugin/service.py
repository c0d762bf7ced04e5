"""The reference API on a token: messages in, blobs out (see kms_istio_v1.proto)."""

import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from hsm_plugin import elliptic_keys, envelope, kek_blobs, trust
from hsm_plugin.dek_supply import DekSupply
from hsm_plugin.elliptic_keys import EllipticCurve
from hsm_plugin.envelope import MAX_BLOB_BYTES, Dek
from hsm_plugin.errors import BadRequestError, RejectedBlobError, UnsupportedError
from hsm_plugin.kek_blobs import Purpose
from hsm_plugin.keys import AsyncKeyStore, KekCipher, TrustedRoot, checked_id
from hsm_plugin.token_memory import TokenMemory, Validity
from istio_hsm_proto import kms_istio_v1_pb2 as pb

_Argument = TypeVar("_Argument")

RSA_BITS = (2048, 3072, 4096)
AES_BITS = (128, 256)
_CURVES: dict[int, EllipticCurve] = {
    pb.ED25519: EllipticCurve.ED25519,
    pb.P256: EllipticCurve.P256,
    pb.P384: EllipticCurve.P384,
}
_MAX_AAD_BYTES = 16 << 10


class KeyManagement:
    """The eight calls, each from message to message. Raises HsmPluginError."""

    def __init__(
        self,
        store: AsyncKeyStore,
        now: Callable[[], datetime],
        make_rsa_key: Callable[[int], Awaitable[bytes]],
        memory: TokenMemory,
        cipher: KekCipher = KekCipher.GCM,
        supply: DekSupply | None = None,
    ) -> None:
        """`cipher`: of the KEKs and DEKs that are made; blobs of both are opened."""
        self._supply = supply
        self._store = store
        self._memory = memory
        self._cipher = cipher
        self._make_rsa_key = make_rsa_key
        self._now = now

    async def generate_kek(self, request: pb.GenerateKEKRequest) -> pb.GenerateKEKResponse:
        """Answer the id of a KEK that is in the token."""
        kek_id = request.kek_kid or str(uuid.uuid4()).encode()
        await self._store.generate_kek(checked_id(kek_id, "KEK id"), self._cipher)
        return pb.GenerateKEKResponse(kek_kid=kek_id)

    async def generate_dek(self, request: pb.GenerateDEKRequest) -> pb.GenerateDEKResponse:
        """Answer a new DEK, wrapped by the KEK."""
        kek_id = checked_id(request.kek_kid, "KEK id")
        blob = self._supply.take(kek_id) if self._supply else None
        if blob is None:
            jwk = envelope.new_jwk()
            blob = await kek_blobs.wrap(self._store, self._cipher, kek_id, jwk, Purpose.DEK)
            if self._supply:
                self._supply.asked(kek_id)
        return pb.GenerateDEKResponse(encrypted_dek_blob=blob)

    async def generate_skey(self, request: pb.GenerateSKeyRequest) -> pb.GenerateSKeyResponse:
        """Answer a new key, encrypted under the DEK."""
        make = self._maker_of(request)
        await self._dek(request.kek_kid, request.encrypted_dek_blob)  # refused before the work
        key = await make()
        dek = await self._dek(request.kek_kid, request.encrypted_dek_blob)
        return pb.GenerateSKeyResponse(encrypted_skey_blob=dek.encrypt(key))

    def _maker_of(self, request: pb.GenerateSKeyRequest) -> Callable[[], Awaitable[bytes]]:
        """Return what makes the key that is asked for; raises when none is made like that."""
        match request.kind:
            case pb.RSA if request.size in RSA_BITS:
                return partial(self._make_rsa_key, request.size)
            case pb.AES if request.size in AES_BITS:
                return partial(_at_once, request.size // 8, os.urandom)
            case pb.ECC if request.curve in _CURVES:
                return partial(_at_once, _CURVES[request.curve], elliptic_keys.make)
            case pb.ECC:
                raise UnsupportedError(
                    "the curve is missing or unknown", hint="ask for ED25519, P256 or P384"
                )
            case pb.RSA | pb.AES:
                sizes = RSA_BITS if request.kind == pb.RSA else AES_BITS
                raise BadRequestError(
                    f"{_enum_name(request.kind)} keys of {request.size} bits are not made",
                    hint=f"ask for {', '.join(map(str, sizes))}",
                )
        raise UnsupportedError(
            f"keys of kind {_enum_name(request.kind)} are not made here",
            hint="ask for RSA, ECC or AES",
        )

    async def load_skey(self, request: pb.LoadSKeyRequest) -> pb.LoadSKeyResponse:
        """Answer the private key in the clear."""
        kek_id, blob = request.kek_kid, request.encrypted_dek_blob
        dek = self._memory.dek(kek_id, blob) or await self._dek(kek_id, blob)
        return pb.LoadSKeyResponse(plaintext_skey=dek.decrypt(request.encrypted_skey_blob))

    async def authenticated_encrypt(
        self, request: pb.AuthenticatedEncryptRequest
    ) -> pb.AuthenticatedEncryptResponse:
        """Answer the plaintext encrypted under the DEK, bound to the aad."""
        aad, plaintext = request.aad, request.plaintext
        _checked_aad(aad)
        if len(plaintext) > MAX_BLOB_BYTES // 2:
            raise BadRequestError(
                f"the plaintext has {len(plaintext)} bytes",
                hint=f"at most {MAX_BLOB_BYTES // 2} are encrypted in one call",
            )
        kek_id, blob = request.kek_kid, request.encrypted_dek_blob
        dek = self._memory.dek(kek_id, blob) or await self._dek(kek_id, blob)
        return pb.AuthenticatedEncryptResponse(ciphertext=dek.encrypt(plaintext, aad))

    async def authenticated_decrypt(
        self, request: pb.AuthenticatedDecryptRequest
    ) -> pb.AuthenticatedDecryptResponse:
        """Answer the plaintext of AuthenticatedEncrypt."""
        aad = request.aad
        _checked_aad(aad)
        kek_id, blob = request.kek_kid, request.encrypted_dek_blob
        dek = self._memory.dek(kek_id, blob) or await self._dek(kek_id, blob)
        return pb.AuthenticatedDecryptResponse(plaintext=dek.decrypt(request.ciphertext, aad))

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
        self._memory.forget_roots()
        return pb.ImportCACertResponse(success=True)

    async def verify_cert_chain(
        self, request: pb.VerifyCertChainRequest
    ) -> pb.VerifyCertChainResponse:
        """Answer true, or raise with the reason."""
        blobs = list(request.certificates)
        if len(blobs) > trust.MAX_CERTIFICATES:
            raise BadRequestError(f"more than {trust.MAX_CERTIFICATES} certificates were given")
        chain, now = _digest(blobs), self._now()
        if not self._memory.is_verified(chain, now):
            certificates = [
                trust.load_certificate(blob, f"certificate {index}")
                for index, blob in enumerate(blobs, start=1)
            ]
            roots = await self._roots()
            path = trust.verify_chain(certificates, roots, now)
            self._memory.keep_chain(chain, _validity(path), roots)
        return pb.VerifyCertChainResponse(successful_verification=True)

    async def _roots(self) -> list[x509.Certificate]:
        known = self._memory.roots()
        if known is not None:
            return known
        begun = self._memory.begin()
        roots = [
            trust.load_certificate(root.certificate, "an imported root")
            for root in await self._store.roots()
        ]
        self._memory.keep_roots(roots, begun)
        return roots

    async def _dek(self, kek_kid: bytes, blob: bytes) -> Dek:
        """Return the DEK; it is to be used before anything else is awaited."""
        known = self._memory.dek(kek_kid, blob)
        if known is not None:
            return known
        kek_id = checked_id(kek_kid, "KEK id")
        wrapped = kek_blobs.parse(blob, Purpose.DEK, "the encrypted DEK")
        if wrapped.kek_id != kek_id:
            raise RejectedBlobError(
                "the encrypted DEK was wrapped by another KEK than the one named",
                hint="pass the kek-id that is stored beside the encrypted DEK",
            )
        begun = self._memory.begin()
        dek = Dek.from_jwk(await kek_blobs.unwrap(self._store, wrapped))
        self._memory.keep_dek(kek_id, blob, dek, begun)
        return dek


async def _at_once(argument: _Argument, make: Callable[[_Argument], bytes]) -> bytes:
    return make(argument)


def utc_now() -> datetime:
    """Return the time now, aware, in UTC."""
    return datetime.now(UTC)


def _digest(blobs: Sequence[bytes]) -> bytes:
    """Return the SHA-256 of a list: of its digests, so that no two lists are written alike."""
    return sha256(b"".join(sha256(blob).digest() for blob in blobs)).digest()


def _validity(path: Sequence[x509.Certificate]) -> Validity:
    return Validity(
        begin=max(entry.not_valid_before_utc for entry in path),
        end=min(entry.not_valid_after_utc for entry in path),
    )


def _checked_aad(aad: bytes) -> None:
    if len(aad) > _MAX_AAD_BYTES:
        raise BadRequestError(
            f"the aad has {len(aad)} bytes", hint=f"at most {_MAX_AAD_BYTES} are allowed"
        )


def _enum_name(kind: int) -> str:
    return pb.KeyKind.Name(kind) if kind in pb.KeyKind.values() else str(kind)  # type: ignore[arg-type]
