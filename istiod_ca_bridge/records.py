"""The CA's Secrets as records: what the guide's istiod writes, and our resident form."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from istiod_ca_bridge.errors import CorruptSecretError
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import CSR_SECRET, KEY_SECRET

_RESTORE = "restore the Secret from a backup; it is never made anew over an old one"
_MAX_ID_BYTES = 255


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A CA key outside the HSM, encrypted under a DEK that the KEK wraps."""

    kek_id: str
    encrypted_dek: bytes = field(repr=False)
    encrypted_skey: bytes = field(repr=False)

    def values(self) -> dict[str, bytes]:
        """Return the Secret's values."""
        return {
            "kek-id": self.kek_id.encode(),
            "encrypted-dek": self.encrypted_dek,
            "encrypted-skey": self.encrypted_skey,
        }


@dataclass(frozen=True, slots=True)
class ResidentKey:
    """A CA key inside the HSM, by its id; the DEK encrypts the CSR only."""

    kek_id: str
    encrypted_dek: bytes = field(repr=False)
    key_id: str
    algorithm: KeyAlgorithm

    def values(self) -> dict[str, bytes]:
        """Return the Secret's values."""
        return {
            "kek-id": self.kek_id.encode(),
            "encrypted-dek": self.encrypted_dek,
            "key-id": self.key_id.encode(),
            "key-algorithm": self.algorithm.value.encode(),
        }


KeyRecord = SealedKey | ResidentKey


@dataclass(frozen=True, slots=True)
class CsrRecord:
    """The CA key's CSR, encrypted under the DEK with csr-id as additional data."""

    kek_id: str
    encrypted_dek: bytes = field(repr=False)
    csr_id: str
    encrypted_csr: bytes = field(repr=False)

    def values(self) -> dict[str, bytes]:
        """Return the Secret's values."""
        return {
            "kek-id": self.kek_id.encode(),
            "encrypted-dek": self.encrypted_dek,
            "csr-id": self.csr_id.encode(),
            "encrypted-csr": self.encrypted_csr,
        }


def key_record(values: Mapping[str, bytes], secret: str = KEY_SECRET) -> KeyRecord:
    """Return the record in a Secret of a key; CorruptSecretError names what is wrong."""
    kek_id = _identifier(secret, values, "kek-id")
    encrypted_dek = _blob(secret, values, "encrypted-dek")
    if "key-id" not in values:
        return SealedKey(kek_id, encrypted_dek, _blob(secret, values, "encrypted-skey"))
    name = _identifier(secret, values, "key-algorithm")
    known = {algorithm.value: algorithm for algorithm in KeyAlgorithm}
    if name not in known:
        raise CorruptSecretError(f"{secret}: key-algorithm is not known", hint=_RESTORE)
    key_id = _identifier(secret, values, "key-id")
    return ResidentKey(kek_id, encrypted_dek, key_id, known[name])


def csr_record(values: Mapping[str, bytes], secret: str = CSR_SECRET) -> CsrRecord:
    """Return the record in a Secret of a CSR; CorruptSecretError names what is wrong."""
    return CsrRecord(
        kek_id=_identifier(secret, values, "kek-id"),
        encrypted_dek=_blob(secret, values, "encrypted-dek"),
        csr_id=_identifier(secret, values, "csr-id"),
        encrypted_csr=_blob(secret, values, "encrypted-csr"),
    )


def _blob(secret: str, values: Mapping[str, bytes], key: str) -> bytes:
    value = values.get(key, b"").strip()
    if not value:
        raise CorruptSecretError(f"{secret}: {key} is missing or empty", hint=_RESTORE)
    return value


def _identifier(secret: str, values: Mapping[str, bytes], key: str) -> str:
    value = _blob(secret, values, key)
    if len(value) > _MAX_ID_BYTES or not all(0x20 < byte < 0x7F for byte in value):  # noqa: PLR2004 - visible ASCII
        raise CorruptSecretError(f"{secret}: {key} is not a name", hint=_RESTORE)
    return value.decode("ascii")
