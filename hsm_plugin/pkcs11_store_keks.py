"""KEKs in a token: AES-GCM, or AES-CBC with an HMAC key beside the AES key.

The HMAC covers the additional data, the IV, the ciphertext, and the length of the additional data
(encrypt-then-MAC, as in RFC 7518, section 5.2.2.1, but with a key and a length that are not those
of that section: see hsm_plugin.cbc_envelope). It is compared in constant time, and before anything
is decrypted; there is no padding whose form could tell anything.
"""

import hmac
import os
import threading
import time
from collections.abc import Iterator, Sequence

from hsm_plugin import pkcs11_store_objects as objects
from hsm_plugin import recovery
from hsm_plugin.cbc_envelope import BLOCK_BYTES, IV_BYTES, mac_input
from hsm_plugin.cryptoki import CryptokiError, Gcm
from hsm_plugin.envelope import KEK_IV_BYTES
from hsm_plugin.errors import RejectedBlobError, UnsupportedError
from hsm_plugin.gcm_iv import GcmIv, sealed_of
from hsm_plugin.keys import KEK_LABEL, CbcLabels, KekCipher, Sealed
from hsm_plugin.pkcs11_store_constants import Attribute, Mechanism, ObjectClass
from hsm_plugin.pkcs11_store_lookup import Lookup
from hsm_plugin.pkcs11_store_sessions import KeyHandle, Session, SessionPool
from hsm_plugin.pkcs11_store_token import TokenConnection

_SECRET = ObjectClass.SECRET_KEY
_MAC_BYTES = 32
_CBC_PURPOSE = "a KEK for AES-CBC"


class TokenKeks:
    """The part of a KeyStore that wraps. All methods may be called from any thread."""

    def __init__(
        self,
        token: TokenConnection,
        lookup: Lookup,
        labels: CbcLabels,
        creating: threading.Lock,
        gcm_iv: GcmIv,
    ) -> None:
        """Hold `creating` while an object is made or destroyed."""
        self._token = token
        self._cryptoki = token.cryptoki
        self._lookup = lookup
        self._labels = labels
        self._creating = creating
        self._gcm_iv = gcm_iv

    def generate(self, kek_id: bytes, cipher: KekCipher) -> bool:
        """See KeyStore."""
        label = self._label(cipher)

        def make(pool: SessionPool, session: Session) -> bool:
            found = self._lookup.find(pool, session, _SECRET, label, kek_id)
            if found:
                objects.only(found, label, kek_id)
            else:
                self._token.require_preferred("generating a KEK")
                if cipher is KekCipher.CBC:
                    self._token.require(Mechanism.AES_CBC, _CBC_PURPOSE)
                    self._token.require(Mechanism.SHA256_HMAC, _CBC_PURPOSE)
                template = objects.kek_template(kek_id, label)
                self._cryptoki.generate_key(session.handle, Mechanism.AES_KEY_GEN, template)
            made_mac = cipher is KekCipher.CBC and self._make_mac_key(pool, session, kek_id)
            return not found or made_mac

        with self._creating:
            return self._token.call("generating a KEK", make)

    def wrap(self, kek_id: bytes, plaintext: bytes, aad: bytes, cipher: KekCipher) -> Sealed:
        """See KeyStore."""
        if cipher is KekCipher.CBC:
            return self._wrap_cbc(kek_id, plaintext, aad)

        def encrypt(pool: SessionPool, session: Session) -> Sealed:
            kek = self._lookup.key(pool, session, _SECRET, KEK_LABEL, kek_id)
            return self._wrap_gcm(pool, session, kek, plaintext, aad)

        return self._token.call("wrapping a DEK", encrypt)

    def wrap_all(
        self,
        kek_id: bytes,
        plaintexts: Sequence[bytes],
        aad: bytes,
        cipher: KekCipher,
        seconds: float,
    ) -> list[Sealed]:
        """See worker_operations.TokenStore. With AES-GCM all are wrapped in one session."""
        end = time.monotonic() + seconds

        def in_time(wrapped: Iterator[Sealed]) -> list[Sealed]:
            kept = [next(wrapped)]
            while time.monotonic() < end and (sealed := next(wrapped, None)) is not None:
                kept.append(sealed)
            return kept

        if cipher is KekCipher.CBC:
            return in_time(self._wrap_cbc(kek_id, text, aad) for text in plaintexts)

        def encrypt(pool: SessionPool, session: Session) -> list[Sealed]:
            kek = self._lookup.key(pool, session, _SECRET, KEK_LABEL, kek_id)
            return in_time(self._wrap_gcm(pool, session, kek, text, aad) for text in plaintexts)

        return self._token.call("wrapping DEKs", encrypt)

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""

        def decrypt(pool: SessionPool, session: Session) -> bytes:
            if sealed.cipher is KekCipher.CBC:
                return self._open_cbc(pool, session, kek_id, sealed, aad)
            kek = self._lookup.key(pool, session, _SECRET, KEK_LABEL, kek_id)
            gcm = Gcm(iv=sealed.iv, aad=aad)
            data = sealed.ciphertext + sealed.tag
            return self._decrypt(pool, session, kek, Mechanism.AES_GCM, gcm, data)

        return self._token.call("unwrapping a DEK", decrypt)

    def destroy(self, kek_id: bytes, cipher: KekCipher) -> None:
        """See KeyStore."""
        label = self._label(cipher)

        def destroy(pool: SessionPool, session: Session) -> None:
            handles = self._lookup.find(pool, session, _SECRET, label, kek_id)
            if len(handles) > 1:
                objects.only(handles, label, kek_id)
            if cipher is KekCipher.CBC:  # its own HMAC key, not one that it shares
                handles += self._lookup.find(pool, session, _SECRET, self._labels.mac, kek_id)
            if not handles:
                objects.only(handles, label, kek_id)
            self._token.require_preferred("destroying a KEK")
            for handle in handles:
                self._cryptoki.destroy(session.handle, handle)
                pool.keys_version += 1

        with self._creating:
            self._token.call("destroying a KEK", destroy)

    # -- AES-GCM -------------------------------------------------------------------------

    def _wrap_gcm(
        self, pool: SessionPool, session: Session, kek: KeyHandle, plaintext: bytes, aad: bytes
    ) -> Sealed:
        """Return the plaintext under the IV of whoever makes it: see GcmIv."""

        def encrypt(iv: bytes | None) -> Sealed:
            output = self._cryptoki.encrypt(
                session.handle, kek.handle, Mechanism.AES_GCM, Gcm(iv=iv, aad=aad), plaintext
            )
            return sealed_of(output, len(plaintext), iv)

        if self._gcm_iv is GcmIv.TOKEN or pool.token_makes_iv:
            return encrypt(None)
        try:
            return encrypt(os.urandom(KEK_IV_BYTES))
        except CryptokiError as error:
            if error.code not in recovery.REFUSES_AN_IV:
                raise
            if self._gcm_iv is GcmIv.CALLER:
                raise _wants_its_own_iv(error) from None
        sealed = encrypt(None)
        pool.token_makes_iv = True
        return sealed

    # -- AES-CBC -------------------------------------------------------------------------

    def _wrap_cbc(self, kek_id: bytes, plaintext: bytes, aad: bytes) -> Sealed:
        iv = os.urandom(IV_BYTES)

        def encrypt(pool: SessionPool, session: Session) -> tuple[bytes, bytes]:
            kek = self._lookup.key(pool, session, _SECRET, self._labels.kek, kek_id)
            ciphertext = self._cryptoki.encrypt(
                session.handle, kek.handle, Mechanism.AES_CBC, iv, plaintext
            )
            return ciphertext, self._mac(pool, session, kek_id, mac_input(aad, iv, ciphertext))

        ciphertext, tag = self._token.call("wrapping a DEK", encrypt)
        return Sealed(iv=iv, ciphertext=ciphertext, tag=tag, cipher=KekCipher.CBC)

    def _open_cbc(
        self, pool: SessionPool, session: Session, kek_id: bytes, sealed: Sealed, aad: bytes
    ) -> bytes:
        kek = self._lookup.key(pool, session, _SECRET, self._labels.kek, kek_id)
        data = mac_input(aad, sealed.iv, sealed.ciphertext)
        whole = len(sealed.iv) == IV_BYTES and len(sealed.ciphertext) % BLOCK_BYTES == 0
        genuine = hmac.compare_digest(self._mac(pool, session, kek_id, data), sealed.tag)
        if not (genuine and whole and sealed.ciphertext):
            raise _changed()
        return self._decrypt(pool, session, kek, Mechanism.AES_CBC, sealed.iv, sealed.ciphertext)

    def _mac(self, pool: SessionPool, session: Session, kek_id: bytes, data: bytes) -> bytes:
        label = self._labels.mac
        key = self._lookup.key(
            *(pool, session, _SECRET, label, kek_id),
            find=lambda: self._mac_keys(pool, session, kek_id),
        )
        return self._cryptoki.sign(
            session.handle, key.handle, Mechanism.SHA256_HMAC, None, data, _MAC_BYTES
        )

    def _mac_keys(self, pool: SessionPool, session: Session, kek_id: bytes) -> list[int]:
        """Return the HMAC key of this id; else those that belong to no KEK by their id.

        The reference finds its HMAC key by the label alone, whatever id it has.
        """
        own = self._lookup.find(pool, session, _SECRET, self._labels.mac, kek_id)
        return own or [
            handle
            for handle in self._lookup.find(pool, session, _SECRET, self._labels.mac, None)
            if not self._belongs_to_a_kek(pool, session, handle)
        ]

    def _belongs_to_a_kek(self, pool: SessionPool, session: Session, handle: int) -> bool:
        (key_id,) = self._cryptoki.read(session.handle, handle, [Attribute.ID])
        return bool(self._lookup.find(pool, session, _SECRET, self._labels.kek, key_id))

    def _make_mac_key(self, pool: SessionPool, session: Session, kek_id: bytes) -> bool:
        """Return true when an HMAC key was made for a KEK that had none."""
        if self._mac_keys(pool, session, kek_id):
            return False
        self._token.require_preferred("generating a KEK")
        self._token.require(Mechanism.GENERIC_SECRET_KEY_GEN, _CBC_PURPOSE)
        template = objects.mac_template(kek_id, self._labels.mac)
        self._cryptoki.generate_key(session.handle, Mechanism.GENERIC_SECRET_KEY_GEN, template)
        return True

    # -- both ----------------------------------------------------------------------------

    def _label(self, cipher: KekCipher) -> str:
        return KEK_LABEL if cipher is KekCipher.GCM else self._labels.kek

    def _decrypt(
        self,
        pool: SessionPool,
        session: Session,
        kek: KeyHandle,
        mechanism: Mechanism,
        parameter: Gcm | bytes,
        data: bytes,
    ) -> bytes:
        try:
            return self._cryptoki.decrypt(session.handle, kek.handle, mechanism, parameter, data)
        except CryptokiError as error:
            if error.code not in recovery.DOES_NOT_DECRYPT or error.function != "C_Decrypt":
                raise
        self._token.check(pool, session)  # raises when the token is the cause
        raise _changed()


def _changed() -> RejectedBlobError:
    return RejectedBlobError(
        "the DEK does not authenticate: it was changed, or wrapped by another KEK",
        hint="pass the KEK id that is stored beside the encrypted DEK",
    )


def _wants_its_own_iv(error: CryptokiError) -> UnsupportedError:
    return UnsupportedError(
        f"the token does not take the caller's IV for AES-GCM: {error}",
        hint="serve with --gcm-iv auto, or token; an HSM in FIPS mode makes the IV itself",
    )
