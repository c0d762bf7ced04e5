"""The token behind a PKCS#11 module as a KeyStore: the only user of the module."""

import hashlib
import threading
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hsm_plugin import deadline, token_reference
from hsm_plugin import pkcs11_store_objects as objects
from hsm_plugin.cryptoki import Pss
from hsm_plugin.errors import ConflictError, KeyNotFoundError, UnsupportedError
from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.keys import (
    AUDIT_KEY_ID,
    ROOT_LABEL,
    SIGNING_KEY_LABEL,
    CbcLabels,
    InspectedKey,
    KekCipher,
    KeyAlgorithm,
    KeyKind,
    ListedKey,
    Sealed,
    SignatureAlgorithm,
    SigningKey,
    TokenIdentity,
    TrustedRoot,
)
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store_constants import (
    PSS_HASHES,
    Attribute,
    KeyType,
    Mechanism,
    ObjectClass,
)
from hsm_plugin.pkcs11_store_inspection import inspect
from hsm_plugin.pkcs11_store_keks import TokenKeks
from hsm_plugin.pkcs11_store_lookup import Lookup
from hsm_plugin.pkcs11_store_sessions import Session, SessionPool
from hsm_plugin.pkcs11_store_token import TokenConnection
from hsm_plugin.recovery import Action
from hsm_plugin.worker_snapshot import WorkerSnapshot

_MAX_SIGNATURE_BYTES = 1024
_KEY_TYPES = {
    KeyKind.RSA: KeyType.RSA,
    KeyKind.EC: KeyType.EC,
    KeyKind.EDWARDS: KeyType.EC_EDWARDS,
}
_MECHANISMS = {
    KeyKind.RSA: Mechanism.RSA_PKCS,
    KeyKind.EC: Mechanism.ECDSA,
    KeyKind.EDWARDS: Mechanism.EDDSA,
}


class Pkcs11Store:
    """A KeyStore on one token of a list. All methods may be called from any thread."""

    def __init__(
        self,
        module: str,
        tokens: str,
        read_pin: Callable[[], str],
        guard: PinGuard,
        *,
        max_sessions: int = 64,
        cbc_labels: CbcLabels = CbcLabels(),  # noqa: B008 - it cannot change
        gcm_iv: GcmIv = GcmIv.AUTO,
    ) -> None:
        """`tokens`: labels or PKCS#11 URIs, as token_reference.parse_list takes them."""
        self._token = TokenConnection(
            module,
            token_reference.parse_list(tokens),
            read_pin,
            guard,
            max_sessions=max_sessions,
        )
        self._cryptoki = self._token.cryptoki
        self._creating = threading.Lock()
        self._cbc_labels = cbc_labels
        self._lookup = Lookup(self._cryptoki)
        self._keks = TokenKeks(self._token, self._lookup, cbc_labels, self._creating, gcm_iv)

    # -- the connection ------------------------------------------------------------------

    def connect(self, order: Sequence[int] = ()) -> TokenIdentity:
        """See TokenConnection."""
        return self._token.connect(order)

    def close(self) -> None:
        """See TokenConnection."""
        self._token.close()

    def snapshot(self) -> WorkerSnapshot:
        """See TokenConnection."""
        return self._token.snapshot()

    def probe(self) -> None:
        """See TokenConnection."""
        self._token.probe()

    @property
    def is_connected(self) -> bool:
        """See TokenConnection."""
        return self._token.is_connected

    @property
    def loss(self) -> Action:
        """See TokenConnection."""
        return self._token.loss

    # -- KEKs ----------------------------------------------------------------------------

    def generate_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> bool:
        """See KeyStore."""
        return self._keks.generate(kek_id, cipher)

    def wrap(
        self, kek_id: bytes, plaintext: bytes, aad: bytes, cipher: KekCipher = KekCipher.GCM
    ) -> Sealed:
        """See KeyStore."""
        return self._keks.wrap(kek_id, plaintext, aad, cipher)

    def wrap_all(
        self,
        kek_id: bytes,
        plaintexts: Sequence[bytes],
        aad: bytes,
        cipher: KekCipher,
        *,
        seconds: float,
    ) -> list[Sealed]:
        """See worker_operations.TokenStore."""
        return self._keks.wrap_all(kek_id, plaintexts, aad, cipher, seconds)

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""
        return self._keks.unwrap(kek_id, sealed, aad)

    def destroy_kek(self, kek_id: bytes, cipher: KekCipher = KekCipher.GCM) -> None:
        """See KeyStore."""
        self._keks.destroy(kek_id, cipher)

    # -- resident signing keys -----------------------------------------------------------

    def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""

        def make(pool: SessionPool, session: Session) -> bool:
            label = SIGNING_KEY_LABEL
            if self._lookup.find(pool, session, ObjectClass.PRIVATE_KEY, label, key_id):
                return False
            mechanism, public, private = objects.key_pair_templates(key_id, algorithm)
            if key_id != AUDIT_KEY_ID:  # each token may have one of its own: checkpoints name it
                self._token.require_preferred("generating a signing key")
            self._token.require(mechanism, f"a key of {algorithm.value}")
            self._cryptoki.generate_key_pair(session.handle, mechanism, public, private)
            return True

        with self._creating:
            created = self._token.call("generating a signing key", make)
            key = self.signing_key(key_id)
        if key.algorithm is not algorithm:
            raise ConflictError(
                f"the signing key exists as {key.algorithm.value}, not {algorithm.value}",
                hint="choose another key id, or ask for the algorithm of the key that is there",
            )
        return key, created

    def signing_key(self, key_id: bytes) -> SigningKey:
        """See KeyStore."""

        def read(pool: SessionPool, session: Session) -> SigningKey:
            self._lookup.key(pool, session, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id)
            label = SIGNING_KEY_LABEL
            found = self._lookup.find(pool, session, ObjectClass.PUBLIC_KEY, label, key_id)
            public = objects.only(found, label, key_id)
            return objects.read_public_key(self._cryptoki, session.handle, public, key_id)

        return self._token.call("reading a signing key", read)

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""
        (signature,) = self.sign_batch(key_id, algorithm, [digest])
        return signature

    def sign_batch(
        self, key_id: bytes, algorithm: SignatureAlgorithm, digests: Sequence[bytes]
    ) -> list[bytes]:
        """See KeyStore."""

        def compute(pool: SessionPool, session: Session) -> list[bytes]:
            key = self._lookup.key(
                pool, session, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id
            )
            if key.key_type != _KEY_TYPES[algorithm.kind]:
                raise ConflictError(
                    f"the signing key cannot make {algorithm.value} signatures",
                    hint="choose a signature algorithm of the key's kind",
                )
            mechanism, pss = _mechanism_of(algorithm)
            self._token.require(mechanism, f"a signature of {algorithm.value}")
            prefix = algorithm.digest_info
            signatures = []
            for digest in digests:
                deadline.remaining()
                signatures.append(
                    self._cryptoki.sign(
                        *(session.handle, key.handle, mechanism, pss),
                        *(prefix + digest, _MAX_SIGNATURE_BYTES),
                    )
                )
            return signatures

        signatures = self._token.call("signing", compute)
        if algorithm.kind is KeyKind.EC:
            return [_to_der(entry) for entry in signatures]
        return signatures

    def signing_keys(self) -> list[ListedKey]:
        """See KeyStore."""

        def find(_: SessionPool, session: Session) -> set[bytes]:
            template = objects.search(ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL)
            return {
                self._cryptoki.read(session.handle, handle, [Attribute.ID])[0]
                for handle in self._cryptoki.find(session.handle, template)
            }

        key_ids = self._token.call("listing the signing keys", find)
        return [entry for key_id in sorted(key_ids) for entry in self._listed(key_id)]

    def inspect(self) -> list[InspectedKey]:
        """See KeyStore."""
        return self._token.call(
            "inspecting the keys",
            lambda _, session: inspect(self._cryptoki, session.handle, self._cbc_labels),
        )

    def _listed(self, key_id: bytes) -> list[ListedKey]:
        """Return the key, its fault, or nothing when it was destroyed just now."""
        try:
            return [ListedKey(key_id, self.signing_key(key_id))]
        except KeyNotFoundError:
            return self._orphaned(key_id)
        except (ConflictError, UnsupportedError) as error:
            return [ListedKey(key_id, None, str(error))]

    def _orphaned(self, key_id: bytes) -> list[ListedKey]:
        def look(pool: SessionPool, session: Session) -> list[int]:
            return self._lookup.find(
                pool, session, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id
            )

        if not self._token.call("listing the signing keys", look):
            return []
        return [ListedKey(key_id, None, "its public half is not in the token")]

    def destroy_signing_key(self, key_id: bytes, public_key_sha256: bytes) -> None:
        """See KeyStore."""

        def destroy(pool: SessionPool, session: Session) -> None:
            label = SIGNING_KEY_LABEL
            private = self._lookup.find(pool, session, ObjectClass.PRIVATE_KEY, label, key_id)
            found = self._lookup.find(pool, session, ObjectClass.PUBLIC_KEY, label, key_id)
            public = objects.only(found, label, key_id)
            key = objects.read_public_key(self._cryptoki, session.handle, public, key_id)
            if hashlib.sha256(key.public_key).digest() != public_key_sha256:
                raise ConflictError(
                    "the SHA-256 does not fit the public key of this id, so it is not destroyed",
                    hint="take it from `hsm-plugin list-keys`, and be sure of the key",
                )
            self._token.require_preferred("destroying a signing key")
            handles = [objects.only(private, label, key_id)] if private else []
            for handle in (*handles, public):
                self._cryptoki.destroy(session.handle, handle)
                pool.keys_version += 1

        with self._creating:
            self._token.call("destroying a signing key", destroy)

    # -- roots ---------------------------------------------------------------------------

    def add_root(self, root: TrustedRoot) -> bool:
        """See KeyStore."""

        def store(pool: SessionPool, session: Session) -> bool:
            kind = ObjectClass.CERTIFICATE
            known = [
                self._cryptoki.read(session.handle, handle, [Attribute.VALUE])[0]
                for handle in self._lookup.find(pool, session, kind, ROOT_LABEL, root.ca_id)
            ]
            if root.certificate in known:
                return False
            if known:
                raise ConflictError(
                    "another root certificate is stored under this CA id",
                    hint="leave the CA id out, or choose another",
                )
            self._token.require_preferred("storing a root certificate")
            self._cryptoki.create(session.handle, objects.root_template(root))
            return True

        with self._creating:
            return self._token.call("storing a root certificate", store)

    def roots(self) -> list[TrustedRoot]:
        """See KeyStore."""

        def read(_: SessionPool, session: Session) -> list[TrustedRoot]:
            template = objects.search(ObjectClass.CERTIFICATE, ROOT_LABEL)
            attributes = [Attribute.ID, Attribute.SUBJECT, Attribute.VALUE]
            return [
                TrustedRoot(*self._cryptoki.read(session.handle, handle, attributes))
                for handle in self._cryptoki.find(session.handle, template)
            ]

        return self._token.call("reading the root certificates", read)


def _mechanism_of(algorithm: SignatureAlgorithm) -> tuple[Mechanism, Pss | None]:
    if algorithm.is_pss and algorithm.digest_bytes is not None:
        hash_mechanism, mask_function = PSS_HASHES[algorithm.digest_bytes]
        pss = Pss(hash_mechanism, mask_function, salt_bytes=algorithm.digest_bytes)
        return Mechanism.RSA_PKCS_PSS, pss
    return _MECHANISMS[algorithm.kind], None


def _to_der(raw: bytes) -> bytes:
    """Return the ECDSA-Sig-Value of r and s side by side (PKCS#11 2.40, section 2.3.1)."""
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
