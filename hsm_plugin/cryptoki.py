"""One PKCS#11 module, called through its function list (PKCS#11 2.40, sections 3.5 and 5).

A method is one call of the standard, or the pair that the standard splits one operation into;
none makes the extra call that asks for the length of an output. Every failure is a CryptokiError
with the return value as the module gave it. ctypes lets other threads run during each call, so
the module is initialised with CKF_OS_LOCKING_OK.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsm_plugin import cryptoki_abi as abi
from hsm_plugin import recovery
from hsm_plugin.call_times import CallTimes
from hsm_plugin.errors import ModuleError

Value = bytes | bool | int
Template = Mapping[int, Value]
"""Attribute type -> value: bytes as they are, CK_BBOOL, CK_ULONG."""

CKF_USER_PIN_COUNT_LOW = 0x00010000
CKF_USER_PIN_FINAL_TRY = 0x00020000
CKF_USER_PIN_LOCKED = 0x00040000
CKS_RW_USER_FUNCTIONS = 3

_CKF_OS_LOCKING_OK = 0x2
_CKF_SERIAL_RW = 0x4 | 0x2
_CKU_USER = 1
_UNAVAILABLE = ctypes.c_ulong(-1).value
_MAX_SLOTS = 256
_MAX_FOUND = 64
_MAX_MECHANISMS = 4096


class CryptokiError(Exception):
    """A function of the module did not answer CKR_OK."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} answered {recovery.name_of(code)}")
        self.function = function
        self.code = code


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """CK_TOKEN_INFO, as far as it is used."""

    label: str
    serial: str
    manufacturer: str
    model: str
    flags: int
    max_sessions: int | None
    """Read-write sessions that one application may open; None when the token sets no limit."""


@dataclass(frozen=True, slots=True)
class Gcm:
    """Parameters of CKM_AES_GCM, with a 128-bit tag."""

    iv: bytes | None
    """None: the token makes it, and appends it to the ciphertext and its tag."""
    aad: bytes


@dataclass(frozen=True, slots=True)
class Pss:
    """Parameters of CKM_RSA_PKCS_PSS."""

    hash_mechanism: int
    mask_function: int
    salt_bytes: int


class Cryptoki:
    """A loaded module. `restart` and `stop` must find no thread inside it."""

    def __init__(self, module: str) -> None:
        listed = ctypes.POINTER(abi.FunctionList)()
        try:
            code = ctypes.CDLL(module).C_GetFunctionList(ctypes.byref(listed))
        except (OSError, AttributeError) as error:
            raise _not_loadable(module, str(error)) from None
        if code != recovery.CKR_OK:
            raise _not_loadable(module, f"C_GetFunctionList answered {recovery.name_of(code)}")
        self.times = CallTimes()
        self._functions: dict[str, Any] = {}
        for name, arguments in abi.SIGNATURES.items():
            address = listed.contents.functions[abi.FUNCTIONS.index(name)]
            if not address:
                raise _not_loadable(module, f"it has no {name}")
            self._functions[name] = ctypes.CFUNCTYPE(ctypes.c_ulong, *arguments)(address)

    # -- the module and its tokens -------------------------------------------------------

    def restart(self) -> None:
        """Finalise the module if it was initialised, and initialise it for threads."""
        self.stop()
        arguments = abi.InitializeArguments(flags=_CKF_OS_LOCKING_OK)
        self._call("C_Initialize", ctypes.byref(arguments))

    def stop(self) -> None:
        """Finalise the module; every session and handle is void afterwards."""
        code = self._functions["C_Finalize"](None)
        if code not in (recovery.CKR_OK, recovery.CKR_CRYPTOKI_NOT_INITIALIZED):
            raise CryptokiError("C_Finalize", code)

    def slots(self) -> list[int]:
        """Return the ids of the slots that hold a token now."""
        slots, count = (ctypes.c_ulong * _MAX_SLOTS)(), ctypes.c_ulong(_MAX_SLOTS)
        self._call("C_GetSlotList", 1, slots, ctypes.byref(count))
        return slots[: count.value]

    def token_info(self, slot: int) -> TokenInfo:
        """Return what the slot's token says of itself."""
        info = abi.CkTokenInfo()
        self._call("C_GetTokenInfo", slot, ctypes.byref(info))
        limits = [
            limit
            for limit in (info.max_sessions, info.max_rw_sessions)
            if limit not in (0, _UNAVAILABLE)  # CK_EFFECTIVELY_INFINITE, and not told
        ]
        return TokenInfo(
            label=_text(info.label),
            serial=_text(info.serial),
            manufacturer=_text(info.manufacturer),
            model=_text(info.model),
            flags=info.flags,
            max_sessions=min(limits) if limits else None,
        )

    def mechanisms(self, slot: int) -> frozenset[int]:
        """Return the mechanisms that the slot's token offers."""
        kinds, count = (ctypes.c_ulong * _MAX_MECHANISMS)(), ctypes.c_ulong(_MAX_MECHANISMS)
        self._call("C_GetMechanismList", slot, kinds, ctypes.byref(count))
        return frozenset(kinds[: count.value])

    # -- sessions ------------------------------------------------------------------------

    def open_session(self, slot: int) -> int:
        """Return the handle of a new read-write session."""
        handle = ctypes.c_ulong()
        self._call("C_OpenSession", slot, _CKF_SERIAL_RW, None, None, ctypes.byref(handle))
        return handle.value

    def close_session(self, session: int) -> None:
        """Close the session."""
        self._call("C_CloseSession", session)

    def session_state(self, session: int) -> int:
        """Return its CK_STATE."""
        info = abi.CkSessionInfo()
        self._call("C_GetSessionInfo", session, ctypes.byref(info))
        state: int = info.state
        return state

    def login(self, session: int, pin: bytes) -> None:
        """Log the user in, for all sessions of this process with the token."""
        self._call("C_Login", session, _CKU_USER, pin, len(pin))

    def random(self, session: int, size: int) -> bytes:
        """Return random bytes of the token."""
        output = ctypes.create_string_buffer(size)
        self._call("C_GenerateRandom", session, output, size)
        return output.raw

    # -- objects -------------------------------------------------------------------------

    def find(self, session: int, template: Template) -> list[int]:
        """Return the handles of every object that the session sees and the template matches."""
        attributes, count = _attributes(template), ctypes.c_ulong()
        self._call("C_FindObjectsInit", session, attributes, len(template))
        found: list[int] = []
        handles = (ctypes.c_ulong * _MAX_FOUND)()
        while True:
            self._call("C_FindObjects", session, handles, _MAX_FOUND, ctypes.byref(count))
            found += handles[: count.value]
            if count.value < _MAX_FOUND:
                break
        self._call("C_FindObjectsFinal", session)
        return found

    def read(self, session: int, handle: int, types: Sequence[int]) -> list[bytes]:
        """Return the values of an object's attributes, in two calls."""
        attributes = (abi.CkAttribute * len(types))()
        for entry, kind in zip(attributes, types, strict=True):
            entry.type = kind
        arguments = (session, handle, attributes, len(types))
        self._call("C_GetAttributeValue", *arguments)
        buffers = [ctypes.create_string_buffer(max(entry.size, 1)) for entry in attributes]
        for entry, buffer in zip(attributes, buffers, strict=True):
            entry.value = ctypes.addressof(buffer)
        self._call("C_GetAttributeValue", *arguments)
        pairs = zip(attributes, buffers, strict=True)
        return [buffer.raw[: entry.size] for entry, buffer in pairs]

    def create(self, session: int, template: Template) -> int:
        """Return the handle of a new object with these attributes."""
        handle, attributes = ctypes.c_ulong(), _attributes(template)
        self._call("C_CreateObject", session, attributes, len(template), ctypes.byref(handle))
        return handle.value

    def destroy(self, session: int, handle: int) -> None:
        """Destroy the object for good."""
        self._call("C_DestroyObject", session, handle)

    def generate_key(self, session: int, mechanism: int, template: Template) -> int:
        """Return the handle of a new secret key."""
        handle, attributes = ctypes.c_ulong(), _attributes(template)
        self._call(
            *("C_GenerateKey", session, _mechanism(mechanism)),
            *(attributes, len(template), ctypes.byref(handle)),
        )
        return handle.value

    def generate_key_pair(
        self, session: int, mechanism: int, public: Template, private: Template
    ) -> tuple[int, int]:
        """Return the handles of a new key pair, the public key first."""
        handles = ctypes.c_ulong(), ctypes.c_ulong()
        public_attributes, private_attributes = _attributes(public), _attributes(private)
        self._call(
            *("C_GenerateKeyPair", session, _mechanism(mechanism)),
            *(public_attributes, len(public), private_attributes, len(private)),
            *(ctypes.byref(handles[0]), ctypes.byref(handles[1])),
        )
        return handles[0].value, handles[1].value

    # -- cryptography --------------------------------------------------------------------

    def sign(
        self, session: int, key: int, mechanism: int, pss: Pss | None, data: bytes, room: int
    ) -> bytes:
        """Return the signature, of at most `room` bytes."""
        described = _pss_mechanism(mechanism, pss) if pss else _mechanism(mechanism)
        self._call("C_SignInit", session, described, key)
        return self._output("C_Sign", session, data, room)

    def encrypt(
        self, session: int, key: int, mechanism: int, parameter: Gcm | bytes, data: bytes
    ) -> bytes:
        """Return the ciphertext, for GCM with its tag behind it. `parameter`: an IV as bytes."""
        self._call("C_EncryptInit", session, _cipher_mechanism(mechanism, parameter), key)
        return self._output("C_Encrypt", session, data, len(data) + 64)

    def decrypt(
        self, session: int, key: int, mechanism: int, parameter: Gcm | bytes, data: bytes
    ) -> bytes:
        """Return the plaintext of what `encrypt` answered."""
        self._call("C_DecryptInit", session, _cipher_mechanism(mechanism, parameter), key)
        return self._output("C_Decrypt", session, data, len(data) + 64)

    def _output(self, function: str, session: int, data: bytes, room: int) -> bytes:
        output, size = ctypes.create_string_buffer(room), ctypes.c_ulong(room)
        self._call(function, session, data, len(data), output, ctypes.byref(size))
        return output.raw[: size.value]

    def _call(self, name: str, *arguments: object) -> None:
        started = time.perf_counter()
        code = self._functions[name](*arguments)
        took = time.perf_counter() - started
        if code != recovery.CKR_OK:
            self.times.note(name, took, recovery.name_of(code))
            raise CryptokiError(name, code)
        self.times.note(name, took)


def _not_loadable(module: str, reason: str) -> ModuleError:
    return ModuleError(
        f"the PKCS#11 module {module} cannot be loaded: {reason}",
        hint="set P11_LIB to the vendor's library, such as libCryptoki2.so",
    )


def _text(padded: bytes) -> str:
    return padded.decode(errors="replace").rstrip(" ")


def _attributes(template: Template) -> Any:
    """Return a CK_ATTRIBUTE array, which keeps the values alive that it points to."""
    entries: Any = (abi.CkAttribute * len(template))()
    kept = []
    for entry, (kind, value) in zip(entries, template.items(), strict=True):
        buffer = _buffer(value)
        kept.append(buffer)
        entry.type, entry.size = kind, ctypes.sizeof(buffer)
        entry.value = ctypes.addressof(buffer)
    entries.kept = kept
    return entries


def _buffer(value: Value) -> Any:
    if isinstance(value, bool):
        return ctypes.c_ubyte(value)
    if isinstance(value, int):
        return ctypes.c_ulong(value)
    return ctypes.create_string_buffer(value, len(value))


def _mechanism(kind: int) -> Any:
    return ctypes.byref(abi.CkMechanism(kind, None, 0))


def _pss_mechanism(kind: int, pss: Pss) -> Any:
    return _with(kind, abi.PssParameters(pss.hash_mechanism, pss.mask_function, pss.salt_bytes))


def _cipher_mechanism(kind: int, parameter: Gcm | bytes) -> Any:
    if isinstance(parameter, bytes):
        return _with(kind, (ctypes.c_ubyte * len(parameter)).from_buffer_copy(parameter))
    iv_bytes = len(parameter.iv or b"")
    gcm = abi.GcmParameters(
        *(parameter.iv, iv_bytes, 8 * iv_bytes),
        *(parameter.aad, len(parameter.aad), 128),
    )
    return _with(kind, gcm)


def _with(kind: int, parameters: Any) -> Any:
    """Return a CK_MECHANISM, which keeps its parameters alive."""
    mechanism = abi.CkMechanism(kind, ctypes.addressof(parameters), ctypes.sizeof(parameters))
    mechanism.kept = parameters
    return ctypes.byref(mechanism)
