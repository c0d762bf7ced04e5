"""The token behind a PKCS#11 module as a KeyStore: the only user of the module."""

import os
import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hsm_plugin import pkcs11_store_objects as objects
from hsm_plugin import recovery
from hsm_plugin.cryptoki import CryptokiError, Gcm
from hsm_plugin.envelope import KEK_IV_BYTES, TAG_BYTES
from hsm_plugin.errors import ConflictError, RejectedBlobError
from hsm_plugin.keys import (
    KEK_LABEL,
    ROOT_LABEL,
    SIGNING_KEY_LABEL,
    KeyAlgorithm,
    Sealed,
    SignatureAlgorithm,
    SigningKey,
    TokenIdentity,
    TrustedRoot,
)
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store_constants import Attribute, KeyType, Mechanism, ObjectClass
from hsm_plugin.pkcs11_store_sessions import KeyHandle, Session, SessionPool
from hsm_plugin.pkcs11_store_token import TokenConnection
from hsm_plugin.recovery import Action

_MAX_SIGNATURE_BYTES = 1024


class Pkcs11Store:
    """A KeyStore on the one token of a label. All methods may be called from any thread."""

    def __init__(
        self,
        module: str,
        token_label: str,
        read_pin: Callable[[], str],
        guard: PinGuard,
        *,
        max_sessions: int = 64,
    ) -> None:
        self._token = TokenConnection(
            module, token_label, read_pin, guard, max_sessions=max_sessions
        )
        self._cryptoki = self._token.cryptoki
        self._creating = threading.Lock()

    # -- the connection ------------------------------------------------------------------

    def connect(self) -> TokenIdentity:
        """See TokenConnection."""
        return self._token.connect()

    def close(self) -> None:
        """See TokenConnection."""
        self._token.close()

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

    # -- objects -------------------------------------------------------------------------

    def _find(
        self, pool: SessionPool, session: Session, kind: ObjectClass, label: str, object_id: bytes
    ) -> list[int]:
        found = self._cryptoki.find(session.handle, objects.search(kind, label, object_id))
        if not found:
            pool.expect_login(session)  # without a login, private objects are only not seen
        return found

    def _key(
        self, pool: SessionPool, session: Session, kind: ObjectClass, label: str, key_id: bytes
    ) -> KeyHandle:
        """Return the only key that matches, found once for each session."""
        known = session.keys.get((kind, key_id))
        if known is not None:
            return known
        handle = objects.only(self._find(pool, session, kind, label, key_id), label, key_id)
        key_type, sensitive, extractable = self._cryptoki.read(
            session.handle,
            handle,
            [Attribute.KEY_TYPE, Attribute.SENSITIVE, Attribute.EXTRACTABLE],
        )
        if sensitive == b"\0" or extractable != b"\0":
            raise ConflictError(
                f'the key "{label}" can leave the token, so it is not used',
                hint="generate a new one with another key id",
            )
        key = KeyHandle(handle=handle, key_type=objects.to_int(key_type))
        session.keys[(kind, key_id)] = key
        return key

    # -- KEKs ----------------------------------------------------------------------------

    def generate_kek(self, kek_id: bytes) -> bool:
        """See KeyStore."""

        def make(pool: SessionPool, session: Session) -> bool:
            found = self._find(pool, session, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
            if found:
                objects.only(found, KEK_LABEL, kek_id)
                return False
            template = objects.kek_template(kek_id)
            self._cryptoki.generate_key(session.handle, Mechanism.AES_KEY_GEN, template)
            return True

        with self._creating:
            return self._token.call("generating a KEK", make)

    def wrap(self, kek_id: bytes, plaintext: bytes, aad: bytes) -> Sealed:
        """See KeyStore."""
        iv = os.urandom(KEK_IV_BYTES)

        def encrypt(pool: SessionPool, session: Session) -> bytes:
            kek = self._key(pool, session, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
            gcm = Gcm(iv=iv, aad=aad)
            return self._cryptoki.encrypt(
                session.handle, kek.handle, Mechanism.AES_GCM, gcm, plaintext
            )

        output = self._token.call("wrapping a DEK", encrypt)
        return Sealed(iv=iv, ciphertext=output[:-TAG_BYTES], tag=output[-TAG_BYTES:])

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""

        def decrypt(pool: SessionPool, session: Session) -> bytes:
            kek = self._key(pool, session, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
            gcm = Gcm(iv=sealed.iv, aad=aad)
            data = sealed.ciphertext + sealed.tag
            try:
                return self._cryptoki.decrypt(
                    session.handle, kek.handle, Mechanism.AES_GCM, gcm, data
                )
            except CryptokiError as error:
                if error.code not in recovery.DOES_NOT_DECRYPT or error.function != "C_Decrypt":
                    raise
            self._token.check(pool, session)  # raises when the token is the cause
            raise RejectedBlobError(
                "the DEK does not authenticate: it was changed, or wrapped by another KEK",
                hint="pass the KEK id that is stored beside the encrypted DEK",
            )

        return self._token.call("unwrapping a DEK", decrypt)

    # -- resident signing keys -----------------------------------------------------------

    def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""

        def make(pool: SessionPool, session: Session) -> bool:
            label = SIGNING_KEY_LABEL
            if self._find(pool, session, ObjectClass.PRIVATE_KEY, label, key_id):
                return False
            mechanism, public, private = objects.key_pair_templates(key_id, algorithm)
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
            self._key(pool, session, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id)
            label = SIGNING_KEY_LABEL
            found = self._find(pool, session, ObjectClass.PUBLIC_KEY, label, key_id)
            public = objects.only(found, label, key_id)
            return objects.read_public_key(self._cryptoki, session.handle, public, key_id)

        return self._token.call("reading a signing key", read)

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""

        def compute(pool: SessionPool, session: Session) -> bytes:
            key = self._key(pool, session, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id)
            if (key.key_type == KeyType.RSA) is not algorithm.is_rsa:
                raise ConflictError(
                    f"the signing key cannot make {algorithm.value} signatures",
                    hint="choose a signature algorithm of the key's kind",
                )
            mechanism, data = Mechanism.ECDSA, digest
            if algorithm.is_rsa:
                mechanism, data = Mechanism.RSA_PKCS, algorithm.digest_info + digest
            return self._cryptoki.sign(
                session.handle, key.handle, mechanism, data, _MAX_SIGNATURE_BYTES
            )

        signature = self._token.call("signing", compute)
        return signature if algorithm.is_rsa else _to_der(signature)

    # -- roots ---------------------------------------------------------------------------

    def add_root(self, root: TrustedRoot) -> bool:
        """See KeyStore."""

        def store(pool: SessionPool, session: Session) -> bool:
            kind = ObjectClass.CERTIFICATE
            known = [
                self._cryptoki.read(session.handle, handle, [Attribute.VALUE])[0]
                for handle in self._find(pool, session, kind, ROOT_LABEL, root.ca_id)
            ]
            if root.certificate in known:
                return False
            if known:
                raise ConflictError(
                    "another root certificate is stored under this CA id",
                    hint="leave the CA id out, or choose another",
                )
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


def _to_der(raw: bytes) -> bytes:
    """Return the ECDSA-Sig-Value of r and s side by side (PKCS#11 2.40, section 2.3.1)."""
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
