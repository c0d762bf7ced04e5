"""The token behind a PKCS#11 module as a KeyStore: the only user of the PKCS#11 driver.

One session logs in and stays open; it carries the login of the whole process (PKCS#11 2.40,
section 5.6). Each thread that calls gets a session of its own, with the handles it has found.
When the token is lost, every session and handle is void: the module is initialised again and
all is found anew by label and id.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import exceptions as driver
from pkcs11.util.ec import (
    encode_ec_public_key,
    encode_ecdsa_signature,
    encode_named_curve_parameters,
)

from hsm_plugin.cryptoki import Cryptoki
from hsm_plugin.envelope import KEK_IV_BYTES, TAG_BYTES
from hsm_plugin.errors import (
    ConfigError,
    ConflictError,
    HsmPluginError,
    HsmUnavailableError,
    KeyNotFoundError,
    PinRefusedError,
    RejectedBlobError,
    UnsupportedError,
)
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
from hsm_plugin.pin_guard import PinGuard, PinState

_Result = TypeVar("_Result")

_CURVE_OIDS = {
    KeyAlgorithm.ECDSA_P256: "1.2.840.10045.3.1.7",
    KeyAlgorithm.ECDSA_P384: "1.3.132.0.34",
}
_ALGORITHM_OF_CURVE: dict[type[ec.EllipticCurve], KeyAlgorithm] = {
    ec.SECP256R1: KeyAlgorithm.ECDSA_P256,
    ec.SECP384R1: KeyAlgorithm.ECDSA_P384,
}
_ALGORITHM_OF_BITS = {
    2048: KeyAlgorithm.RSA_2048,
    3072: KeyAlgorithm.RSA_3072,
    4096: KeyAlgorithm.RSA_4096,
}

_STALE_SESSION = (
    driver.SessionHandleInvalid,
    driver.SessionClosed,
    driver.ObjectHandleInvalid,
    driver.KeyHandleInvalid,
    driver.OperationActive,
)
"""A new session of this thread cures these."""

_NEVER_THE_TOKEN = (
    driver.MechanismInvalid,
    driver.MechanismParamInvalid,
    driver.FunctionNotSupported,
    driver.KeySizeRange,
    driver.TemplateInconsistent,
    driver.AttributeTypeInvalid,
    driver.AttributeValueInvalid,
    driver.KeyTypeInconsistent,
)
"""The token is well, it cannot do this."""


@dataclass(slots=True)
class _ThreadSession:
    """A session of one thread and the handles found through it."""

    epoch: int
    session: Any
    handles: dict[tuple[ObjectClass, bytes], Any] = field(default_factory=dict)


class Pkcs11Store:
    """A KeyStore on the one token of a label. All methods may be called from any thread."""

    def __init__(
        self, module: str, token_label: str, read_pin: Callable[[], str], guard: PinGuard
    ) -> None:
        self._cryptoki = Cryptoki(module)
        self._module = module
        self._label = token_label
        self._read_pin = read_pin
        self._guard = guard
        self._token: Any = None
        self._login: Any = None
        self._epoch = 0
        self._local = threading.local()
        self._gate = threading.Condition()
        self._inside = 0
        self._changing = threading.Lock()
        self._creating = threading.Lock()

    # -- the connection ------------------------------------------------------------------

    def connect(self) -> TokenIdentity:
        """Return the token found, logged in; whatever was open before is void.

        HsmUnavailableError when it is not there, PinRefusedError when the PIN is not taken.
        """
        with self._changing:
            self._empty()
            try:
                return self._connect()
            except driver.PKCS11Error as error:
                raise _translated(error, "connecting") from None

    def close(self) -> None:
        """Log out and finalise the module; calls that are under way end first."""
        with self._changing:
            self._empty()
            self._cryptoki.stop()

    @property
    def is_connected(self) -> bool:
        """True until a call finds the token lost, or close."""
        return self._token is not None

    def probe(self) -> None:
        """Return when the token answers; HsmUnavailableError when it does not."""
        self._call("probing the token", lambda thread: thread.session.generate_random(64))

    def _empty(self) -> None:
        """Refuse new calls, and return when those inside the module have left it."""
        with self._gate:
            self._token = self._login = None
            self._gate.wait_for(lambda: self._inside == 0)

    def _connect(self) -> TokenIdentity:
        try:
            library = pkcs11.lib(self._module)
        except driver.PKCS11Error as error:
            raise _translated(error, "loading the module") from None
        self._cryptoki.restart()
        token = self._find_token(library)
        flags = token.flags
        pin = self._read_pin()
        self._guard.permit(
            pin,
            PinState(
                locked=bool(flags & TokenFlag.USER_PIN_LOCKED),
                final_try=bool(flags & TokenFlag.USER_PIN_FINAL_TRY),
                count_low=bool(flags & TokenFlag.USER_PIN_COUNT_LOW),
            ),
        )
        try:
            login = token.open(rw=True, user_pin=pin)
        except (driver.PinIncorrect, driver.PinLocked, driver.PinInvalid, driver.PinLenRange):
            self._guard.refused(pin)
            self._cryptoki.stop()
            raise PinRefusedError(
                f'the token "{self._label}" refused the PIN',
                hint="write the right PIN into the PIN file; it is picked up by itself",
            ) from None
        except driver.PKCS11Error:
            self._guard.settled()
            raise
        self._guard.settled()
        self._epoch += 1
        self._login, self._token = login, token
        return TokenIdentity(
            label=token.label,
            serial=token.serial.decode(errors="replace"),
            model=token.model,
            slot_id=token.slot.slot_id,
        )

    def _find_token(self, library: Any) -> Any:
        found = list(library.get_tokens(token_label=self._label))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f'{len(found)} tokens bear the label "{self._label}"',
                hint="give each token a label of its own",
            )
        labels = sorted({token.label for token in library.get_tokens() if token.label})
        seen = ", ".join(f'"{label}"' for label in labels) or "none"
        raise HsmUnavailableError(
            f'no token bears the label "{self._label}"; tokens seen: {seen}',
            hint="compare P11_TOKEN with the slot label, and check the HSM's network and "
            "client certificate",
        )

    def _call(self, doing: str, operation: Callable[[_ThreadSession], _Result]) -> _Result:
        """Return what the operation returns on this thread's session, renewed once if stale."""
        with self._admitted():
            try:
                try:
                    return operation(self._thread_session())
                except _STALE_SESSION:
                    self._drop_thread_session()
                    return operation(self._thread_session())
            except driver.PKCS11Error as error:
                translated = _translated(error, doing)
                if isinstance(translated, HsmUnavailableError):
                    self._token = None
                raise translated from None

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        with self._gate:
            if self._token is None:
                raise HsmUnavailableError(
                    f'the token "{self._label}" is not connected',
                    hint="the plugin looks for it in the background; its log says what it meets",
                )
            self._inside += 1
        try:
            yield
        finally:
            with self._gate:
                self._inside -= 1
                self._gate.notify_all()

    def _thread_session(self) -> _ThreadSession:
        held: _ThreadSession | None = getattr(self._local, "held", None)
        if held is None or held.epoch != self._epoch:
            token = self._token
            if token is None:
                raise driver.TokenNotPresent
            held = _ThreadSession(self._epoch, token.open(rw=True))
            self._local.held = held
        return held

    def _drop_thread_session(self) -> None:
        held: _ThreadSession | None = getattr(self._local, "held", None)
        self._local.held = None
        if held is not None and held.epoch == self._epoch:
            try:
                held.session.close()
            except driver.PKCS11Error:
                return  # it was void already, which is why it is dropped

    # -- KEKs ----------------------------------------------------------------------------

    def generate_kek(self, kek_id: bytes) -> bool:
        """See KeyStore."""

        def make(thread: _ThreadSession) -> bool:
            if _find(thread, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id):
                _one(thread, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
                return False
            thread.session.generate_key(
                KeyType.AES,
                256,
                id=kek_id,
                label=KEK_LABEL,
                store=True,
                capabilities=MechanismFlag.ENCRYPT
                | MechanismFlag.DECRYPT
                | MechanismFlag.WRAP
                | MechanismFlag.UNWRAP,
                template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                },
            )
            return True

        with self._creating:
            return self._call("generating a KEK", make)

    def wrap(self, kek_id: bytes, plaintext: bytes, aad: bytes) -> Sealed:
        """See KeyStore."""

        def encrypt(thread: _ThreadSession) -> Sealed:
            kek = _one(thread, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
            iv = thread.session.generate_random(KEK_IV_BYTES * 8)
            output = kek.encrypt(
                plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=_gcm(iv, aad)
            )
            return Sealed(iv=iv, ciphertext=output[:-TAG_BYTES], tag=output[-TAG_BYTES:])

        return self._call("wrapping a DEK", encrypt)

    def unwrap(self, kek_id: bytes, sealed: Sealed, aad: bytes) -> bytes:
        """See KeyStore."""

        def decrypt(thread: _ThreadSession) -> bytes:
            kek = _one(thread, ObjectClass.SECRET_KEY, KEK_LABEL, kek_id)
            try:
                output: bytes = kek.decrypt(
                    sealed.ciphertext + sealed.tag,
                    mechanism=Mechanism.AES_GCM,
                    mechanism_param=_gcm(sealed.iv, aad),
                )
            except _TAG_MISMATCH:
                thread.session.generate_random(64)  # raises when the token is the cause
                raise RejectedBlobError(
                    "the DEK does not authenticate: it was changed, or wrapped by another KEK",
                    hint="pass the KEK id that is stored beside the encrypted DEK",
                ) from None
            return output

        return self._call("unwrapping a DEK", decrypt)

    # -- resident signing keys -----------------------------------------------------------

    def generate_signing_key(
        self, key_id: bytes, algorithm: KeyAlgorithm
    ) -> tuple[SigningKey, bool]:
        """See KeyStore."""

        def make(thread: _ThreadSession) -> bool:
            if _find(thread, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id):
                return False
            _generate_pair(thread.session, key_id, algorithm)
            return True

        with self._creating:
            created = self._call("generating a signing key", make)
            key = self.signing_key(key_id)
        if key.algorithm is not algorithm:
            raise ConflictError(
                f"the signing key exists as {key.algorithm.value}, not {algorithm.value}",
                hint="choose another key id, or ask for the algorithm of the key that is there",
            )
        return key, created

    def signing_key(self, key_id: bytes) -> SigningKey:
        """See KeyStore."""

        def read(thread: _ThreadSession) -> SigningKey:
            _resident(thread, key_id)
            public = _one(thread, ObjectClass.PUBLIC_KEY, SIGNING_KEY_LABEL, key_id)
            return _described(key_id, public)

        return self._call("reading a signing key", read)

    def sign(self, key_id: bytes, algorithm: SignatureAlgorithm, digest: bytes) -> bytes:
        """See KeyStore."""

        def compute(thread: _ThreadSession) -> bytes:
            key = _resident(thread, key_id)
            if (key.key_type is KeyType.RSA) is not algorithm.is_rsa:
                raise ConflictError(
                    f"the signing key cannot make {algorithm.value} signatures",
                    hint="choose a signature algorithm of the key's kind",
                )
            if algorithm.is_rsa:
                signature: bytes = key.sign(
                    algorithm.digest_info + digest, mechanism=Mechanism.RSA_PKCS
                )
                return signature
            raw: bytes = key.sign(digest, mechanism=Mechanism.ECDSA)
            return bytes(encode_ecdsa_signature(raw))

        return self._call("signing", compute)

    # -- roots ---------------------------------------------------------------------------

    def add_root(self, root: TrustedRoot) -> bool:
        """See KeyStore."""

        def store(thread: _ThreadSession) -> bool:
            known = _find(thread, ObjectClass.CERTIFICATE, ROOT_LABEL, root.ca_id)
            if any(entry[Attribute.VALUE] == root.certificate for entry in known):
                return False
            if known:
                raise ConflictError(
                    "another root certificate is stored under this CA id",
                    hint="leave the CA id out, or choose another",
                )
            thread.session.create_object(
                {
                    Attribute.CLASS: ObjectClass.CERTIFICATE,
                    Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
                    Attribute.TOKEN: True,
                    Attribute.PRIVATE: False,
                    Attribute.LABEL: ROOT_LABEL,
                    Attribute.ID: root.ca_id,
                    Attribute.SUBJECT: root.subject,
                    Attribute.VALUE: root.certificate,
                }
            )
            return True

        with self._creating:
            return self._call("storing a root certificate", store)

    def roots(self) -> list[TrustedRoot]:
        """See KeyStore."""

        def read(thread: _ThreadSession) -> list[TrustedRoot]:
            template = {Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.LABEL: ROOT_LABEL}
            return [
                TrustedRoot(
                    ca_id=entry[Attribute.ID],
                    subject=entry[Attribute.SUBJECT],
                    certificate=entry[Attribute.VALUE],
                )
                for entry in list(thread.session.get_objects(template))
            ]

        return self._call("reading the root certificates", read)


_TAG_MISMATCH = (
    driver.EncryptedDataInvalid,
    driver.EncryptedDataLenRange,
    driver.FunctionFailed,
    driver.GeneralError,
)
"""What tokens answer when a GCM tag does not match; SoftHSM2 says CKR_GENERAL_ERROR."""


def _find(thread: _ThreadSession, kind: ObjectClass, label: str, object_id: bytes) -> list[Any]:
    template = {Attribute.CLASS: kind, Attribute.LABEL: label, Attribute.ID: object_id}
    return list(thread.session.get_objects(template))


def _one(thread: _ThreadSession, kind: ObjectClass, label: str, object_id: bytes) -> Any:
    """Return the only object that matches, remembered for this session."""
    cached = thread.handles.get((kind, object_id))
    if cached is not None:
        return cached
    found = _find(thread, kind, label, object_id)
    name = object_id.decode("ascii", errors="replace")
    if not found:
        raise KeyNotFoundError(
            f'no object "{label}" has the id "{name}"',
            hint="check the id and the token label",
        )
    if len(found) > 1:
        raise ConflictError(
            f'{len(found)} objects "{label}" have the id "{name}", so none is used',
            hint="find out which one is in use, and give the others another id",
        )
    thread.handles[(kind, object_id)] = found[0]
    return found[0]


def _resident(thread: _ThreadSession, key_id: bytes) -> Any:
    """Return the private key; ConflictError when it can leave the token.

    Checked at its first use in a session: a token never loosens either attribute afterwards.
    """
    is_checked = (ObjectClass.PRIVATE_KEY, key_id) in thread.handles
    key = _one(thread, ObjectClass.PRIVATE_KEY, SIGNING_KEY_LABEL, key_id)
    if not is_checked and (not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]):
        del thread.handles[(ObjectClass.PRIVATE_KEY, key_id)]
        raise ConflictError(
            "the signing key can leave the token, so it is not used",
            hint="generate a new one with another key id",
        )
    return key


def _generate_pair(session: Any, key_id: bytes, algorithm: KeyAlgorithm) -> None:
    public = {Attribute.PRIVATE: False}
    private = {
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
    }
    options: dict[str, Any] = {
        "id": key_id,
        "label": SIGNING_KEY_LABEL,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "public_template": public,
        "private_template": private,
    }
    if algorithm.is_rsa:
        session.generate_keypair(KeyType.RSA, algorithm.rsa_bits, **options)
        return
    curve = encode_named_curve_parameters(_CURVE_OIDS[algorithm])
    domain = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True)
    domain.generate_keypair(**options)


def _described(key_id: bytes, public: Any) -> SigningKey:
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    if public.key_type is KeyType.RSA:
        key = rsa.RSAPublicNumbers(
            e=int.from_bytes(public[Attribute.PUBLIC_EXPONENT]),
            n=int.from_bytes(public[Attribute.MODULUS]),
        ).public_key()
        algorithm = _ALGORITHM_OF_BITS.get(key.key_size)
    else:
        loaded = serialization.load_der_public_key(encode_ec_public_key(public))
        if not isinstance(loaded, ec.EllipticCurvePublicKey):
            raise UnsupportedError("the signing key is neither RSA nor ECDSA")
        key, algorithm = loaded, _ALGORITHM_OF_CURVE.get(type(loaded.curve))
    if algorithm is None:
        raise UnsupportedError("the signing key has a size or curve that is not supported")
    return SigningKey(
        key_id=key_id,
        algorithm=algorithm,
        public_key=key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def _gcm(iv: bytes, aad: bytes) -> pkcs11.GCMParams:
    """Return GCM parameters with a 16-byte IV, which the driver's constructor refuses."""
    parameters = pkcs11.GCMParams.__new__(pkcs11.GCMParams)
    parameters.nonce, parameters.aad, parameters.tag_bits = iv, aad, TAG_BYTES * 8
    return parameters


def _translated(error: driver.PKCS11Error, doing: str) -> HsmPluginError:
    name = type(error).__name__
    if isinstance(error, _NEVER_THE_TOKEN):
        return UnsupportedError(
            f"the token cannot do this: {name} while {doing}",
            hint="compare with the token's mechanism list and its policies",
        )
    return HsmUnavailableError(
        f"the token failed: {name} while {doing}",
        hint="check the HSM and its client; the plugin reconnects by itself",
    )
