"""In-memory stands-ins for the domain's Protocols, and certificates to feed it."""

import base64
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from istiod_ca_bridge.errors import (
    KeyServiceNotPreparedError,
    KeyServiceRefusedError,
    SecretExistsError,
)
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.records import ResidentKey, SealedKey
from istiod_ca_bridge.signer import KeyAlgorithm, PublicKey, scheme_of
from istiod_ca_bridge.store import StoredSecret
from tests.support import pki

NOW = pki.MOMENT.astimezone(UTC)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_NONCE = bytes(12)
_CA = x509.BasicConstraints(ca=True, path_length=0)


def new_key(algorithm: KeyAlgorithm) -> PrivateKey:
    match algorithm:
        case KeyAlgorithm.ECDSA_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyAlgorithm.ECDSA_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case _:
            return rsa.generate_private_key(65537, int(algorithm.value.removeprefix("rsa-")))


@dataclass(slots=True)
class LocalSigner:
    """A signer whose key is at hand."""

    key: PrivateKey = field(repr=False)

    @property
    def public_key(self) -> PublicKey:
        return self.key.public_key()

    async def sign(self, message: bytes) -> bytes:
        scheme = scheme_of(self.public_key)
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, padding.PKCS1v15(), scheme.hash)
        return self.key.sign(message, ec.ECDSA(scheme.hash))


def local_signer(algorithm: KeyAlgorithm = KeyAlgorithm.ECDSA_P256) -> LocalSigner:
    return LocalSigner(new_key(algorithm))


def ca_certificate(
    public_key: PublicKey,
    root: pki.Issued,
    *,
    not_before: datetime = NOW - timedelta(hours=1),
    not_after: datetime = NOW + timedelta(days=30),
    basic: x509.BasicConstraints | None = _CA,
    usage: pki.Usage | None = pki.CA_USAGE,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string("O=cluster.local"))
        .issuer_name(root.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if basic is not None:
        builder = builder.add_extension(basic, critical=True)
    if usage is not None:
        builder = builder.add_extension(usage.extension(), critical=True)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(root.key, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(entry.public_bytes(serialization.Encoding.PEM) for entry in certificates)


def certificate_of_unknown_version(chain: bytes) -> bytes:
    """Return a PEM chain whose first certificate says that it is of version 64."""
    first, *others = x509.load_pem_x509_certificates(chain)
    der = first.public_bytes(serialization.Encoding.DER)
    changed = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x3f", 1)
    return _pem_block("CERTIFICATE", changed) + pem(*others)


def csr_of_unknown_version(csr: bytes) -> bytes:
    """Return a PEM CSR that says that it is of version 64."""
    der = x509.load_pem_x509_csr(csr).public_bytes(serialization.Encoding.DER)
    changed = der.replace(b"\x02\x01\x00", b"\x02\x01\x3f", 1)
    return _pem_block("CERTIFICATE REQUEST", changed)


def _pem_block(label: str, der: bytes) -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


class Recorder(logging.Handler):
    """Keeps log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts: Mapping[str, object] = getattr(record, "facts", {})
        self.lines.append(f"{record.getMessage()} {dict(facts)}")


def recorded_log() -> tuple[EventLog, list[str]]:
    logger = logging.getLogger(f"test-{uuid.uuid4()}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    recorder = Recorder()
    logger.addHandler(recorder)
    return EventLog(logger), recorder.lines


class CrashError(Exception):
    """The process dies here."""


class Effects:
    """Counts outside effects and dies before or after the chosen one."""

    def __init__(self, die_at: int = -1, *, after: bool = False) -> None:
        self._left = die_at
        self._after = after

    def before(self) -> None:
        if self._left == 0 and not self._after:
            raise CrashError

    def after(self) -> None:
        self._left -= 1
        if self._left == -1 and self._after:
            raise CrashError


class MemoryStore:
    """Secrets in a dictionary."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.effects = Effects()
        self.on_read: Callable[[str], None] = lambda _name: None

    async def read(self, name: str) -> Mapping[str, bytes] | None:
        self.on_read(name)
        return self.secrets.get(name)

    async def create(self, name: str, values: Mapping[str, bytes]) -> None:
        self.effects.before()
        if name in self.secrets:
            raise SecretExistsError(name)
        self.secrets[name] = dict(values)
        self.effects.after()

    async def delete(self, name: str) -> None:
        self.effects.before()
        self.secrets.pop(name, None)
        self.effects.after()

    async def load(self, name: str) -> StoredSecret | None:
        values = await self.read(name)
        return None if values is None else StoredSecret(dict(values), _version(values))

    async def replace(self, name: str, before: StoredSecret, values: Mapping[str, bytes]) -> None:
        self.effects.before()
        if name not in self.secrets or _version(self.secrets[name]) != before.version:
            raise SecretExistsError(name)
        self.secrets[name] = dict(values)
        self.effects.after()


def _version(values: Mapping[str, bytes]) -> str:
    return repr(sorted(values.items()))


class MemoryKeyService:
    """A key service whose HSM is a dictionary and whose roots are a list."""

    def __init__(self, kek_id: str = "kek", roots: tuple[x509.Certificate, ...] = ()) -> None:
        self.kek_id = kek_id
        self.roots = roots
        self.resident: dict[str, LocalSigner] = {}
        self.generated = 0
        self.effects = Effects()
        self._dek = AESGCM(bytes(32))

    async def generate_dek(self, kek_id: str) -> bytes:
        self._check_kek(kek_id)
        return b"dek"

    async def generate_sealed_key(self, kek_id: str, encrypted_dek: bytes, bits: int) -> bytes:
        self._check_kek(kek_id)
        self.effects.before()
        self.generated += 1
        key = rsa.generate_private_key(65537, bits)
        blob = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        self.effects.after()
        return self._sealed(blob, encrypted_dek)

    async def unseal(self, key: SealedKey) -> LocalSigner:
        self._check_kek(key.kek_id)
        blob = self._opened(key.encrypted_skey, key.encrypted_dek)
        loaded = serialization.load_pem_private_key(blob, None)
        assert isinstance(loaded, rsa.RSAPrivateKey)
        return LocalSigner(loaded)

    async def make_resident(self, key: ResidentKey) -> LocalSigner:
        self.effects.before()
        if key.key_id not in self.resident:
            self.generated += 1
            self.resident[key.key_id] = local_signer(key.algorithm)
        self.effects.after()
        return self.resident[key.key_id]

    async def open_resident(self, key: ResidentKey) -> LocalSigner:
        if key.key_id not in self.resident:
            raise KeyServiceNotPreparedError("NOT_FOUND")
        return self.resident[key.key_id]

    async def destroy_resident(self, key: ResidentKey) -> None:
        self.effects.before()
        self.resident.pop(key.key_id, None)
        self.effects.after()

    async def encrypt(
        self, kek_id: str, encrypted_dek: bytes, plaintext: bytes, aad: bytes
    ) -> bytes:
        self._check_kek(kek_id)
        return self._sealed(plaintext, encrypted_dek + aad)

    async def decrypt(
        self, kek_id: str, encrypted_dek: bytes, ciphertext: bytes, aad: bytes
    ) -> bytes:
        self._check_kek(kek_id)
        return self._opened(ciphertext, encrypted_dek + aad)

    async def verify_chain(self, certificates: list[bytes]) -> None:
        if x509.load_der_x509_certificate(certificates[0]) not in self.roots:
            raise KeyServiceRefusedError("the root is not imported")

    def _sealed(self, plaintext: bytes, aad: bytes) -> bytes:
        return base64.b64encode(self._dek.encrypt(_NONCE, plaintext, aad))

    def _opened(self, blob: bytes, aad: bytes) -> bytes:
        try:
            return self._dek.decrypt(_NONCE, base64.b64decode(blob), aad)
        except (InvalidTag, ValueError):
            raise KeyServiceRefusedError("the blob was changed") from None

    def _check_kek(self, kek_id: str) -> None:
        if kek_id != self.kek_id:
            raise KeyServiceNotPreparedError(f"NOT_FOUND: no KEK {kek_id}")
