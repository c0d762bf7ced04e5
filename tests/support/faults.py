"""A SoftHSM2 token whose module fails on command: builds the module, and steers it.

The module (tests/faults/faulty_module.c) maps a control file; what is written here works from
the next PKCS#11 call on, in whatever process has loaded the module.
"""

import hashlib
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tests.support.softhsm import SoftHsm

_SOURCE = Path(__file__).parents[1] / "faults" / "faulty_module.c"
_ALWAYS = (1 << 64) - 1

FUNCTIONS = (
    *("C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList"),
    *("C_GetSlotInfo", "C_GetTokenInfo", "C_GetMechanismList", "C_GetMechanismInfo"),
    *("C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession", "C_CloseSession"),
    *("C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState"),
    *("C_Login", "C_Logout", "C_CreateObject", "C_CopyObject", "C_DestroyObject"),
    *("C_GetObjectSize", "C_GetAttributeValue", "C_SetAttributeValue", "C_FindObjectsInit"),
    *("C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt", "C_EncryptUpdate"),
    *("C_EncryptFinal", "C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal"),
    *("C_DigestInit", "C_Digest", "C_DigestUpdate", "C_DigestKey", "C_DigestFinal"),
    *("C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal", "C_SignRecoverInit"),
    *("C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate", "C_VerifyFinal"),
    *("C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate"),
    *("C_DecryptDigestUpdate", "C_SignEncryptUpdate", "C_DecryptVerifyUpdate", "C_GenerateKey"),
    *("C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey", "C_SeedRandom"),
    *("C_GenerateRandom", "C_GetFunctionStatus", "C_CancelFunction", "C_WaitForSlotEvent"),
)
"""In the order of CK_FUNCTION_LIST (PKCS#11 2.40, section 3.5), as the module numbers them."""

ON_THE_TOKEN = tuple(
    name
    for name in FUNCTIONS[FUNCTIONS.index("C_GetSlotInfo") :]
    if name not in {"C_CloseSession", "C_CloseAllSessions", "C_WaitForSlotEvent"}
)
"""What needs the token: all but the module's own life and the list of slots."""

_HEADER = (
    *("releases", "event", "slot_offset", "pin_limit", "pin_failures", "session_limit", "sick"),
    "gcm_iv",
    *("sick_label", "sick_label_1", "sick_label_2", "sick_label_3"),
)
_ENTRY = ("calls", "latency_us", "action", "result", "times")
_BYTES = 8 * (len(_HEADER) + len(_ENTRY) * len(FUNCTIONS))


class Ckr(IntEnum):
    """Return values to inject (PKCS#11 2.40, section 3.6)."""

    GENERAL_ERROR = 0x05
    FUNCTION_FAILED = 0x06
    DEVICE_ERROR = 0x30
    DEVICE_REMOVED = 0x32
    SESSION_COUNT = 0xB1
    SESSION_HANDLE_INVALID = 0xB3
    TOKEN_NOT_PRESENT = 0xE0
    USER_NOT_LOGGED_IN = 0x101
    CRYPTOKI_NOT_INITIALIZED = 0x190
    VENDOR_UNKNOWN = 0x80001234


class _Action(IntEnum):
    PASS = 0
    REFUSE = 1
    HANG = 2
    CRASH = 3


class GcmIvOf(IntEnum):
    """Who makes the IV of AES-GCM; the token appends its own to the output."""

    CALLER = 0
    TOKEN = 1
    """The caller's is refused: a Luna in FIPS mode."""
    TOKEN_IN_ITS_PLACE = 2
    """The caller's is taken and not used."""


class _Event(IntEnum):
    NONE = 0
    LOSE_SESSIONS = 1
    UNINITIALISE = 2


@dataclass(frozen=True, slots=True)
class FaultyHsm:
    """A token behind the failing module."""

    hsm: SoftHsm
    module: Path
    _memory: mmap.mmap = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return a child's environment that reaches the token through the failing module."""
        return self.hsm.environment() | {
            "P11_LIB": str(self.module),
            "FAULTY_MODULE": self.hsm.module,
            "FAULTY_CONTROL": str(_control_path(self.hsm)),
        }

    def refuse(self, result: int, *names: str, times: int = _ALWAYS) -> None:
        """Have the functions answer `result` instead of doing their work."""
        for name in names:
            self._set(name, "result", result)
        self._act(_Action.REFUSE, names, times)

    def hang(self, *names: str, times: int = _ALWAYS) -> None:
        """Have the functions not return until `release`."""
        self._act(_Action.HANG, names, times)

    def crash(self, *names: str, times: int = 1) -> None:
        """Have the functions raise SIGSEGV."""
        self._act(_Action.CRASH, names, times)

    def delay(self, microseconds: int, *names: str) -> None:
        """Have each call of the functions, or of all when none is named, last longer."""
        for name in names or FUNCTIONS:
            self._set(name, "latency_us", microseconds)

    def release(self) -> None:
        """Let hanging calls go on."""
        self._set_header("releases", self._header("releases") + 1)

    def heal(self) -> None:
        """Undo refusals, hangs, crashes and sickness; hanging calls go on."""
        self._act(_Action.PASS, FUNCTIONS, 0)
        self._set_header("sick", _Action.PASS)
        self.release()

    def sicken(self, label: str, *, hangs: bool = False) -> None:
        """Have one token of several refuse every new session, or hang on it."""
        offset = 8 * _HEADER.index("sick_label")
        struct.pack_into("32s", self._memory, offset, label.ljust(32).encode())
        self._set_header("sick", _Action.HANG if hangs else _Action.REFUSE)

    def lose_sessions(self) -> None:
        """Close every session and the login, as a restart of the HSM's server does."""
        self._set_header("event", _Event.LOSE_SESSIONS)

    def uninitialise(self) -> None:
        """Finalise the module behind its user's back."""
        self._set_header("event", _Event.UNINITIALISE)

    def shift_slots(self, offset: int) -> None:
        """Change every slot id."""
        self._set_header("slot_offset", offset)

    def lock_pin_after(self, tries: int) -> None:
        """Have the token lock its PIN after so many wrong ones, none counted yet."""
        self._set_header("pin_failures", 0)
        self._set_header("pin_limit", tries)

    def count_wrong_pins(self, failures: int) -> None:
        """Have the token remember wrong PINs that others tried."""
        self._set_header("pin_failures", failures)

    @property
    def pin_failures(self) -> int:
        """Wrong PINs in a row, as the token counts them."""
        return self._header("pin_failures")

    def limit_sessions(self, limit: int) -> None:
        """Have the token allow so many sessions, and say so in its CK_TOKEN_INFO."""
        self._set_header("session_limit", limit)

    def make_gcm_ivs(self, by: GcmIvOf) -> None:
        """Have the token make the IVs of AES-GCM, or take the caller's again."""
        self._set_header("gcm_iv", by)

    def calls(self, name: str) -> int:
        """Return how often the function was called since the token was made."""
        return self._read(self._offset(name, "calls"))

    def call_counts(self) -> dict[str, int]:
        """Return the calls of every function that was called."""
        return {name: count for name in FUNCTIONS if (count := self.calls(name))}

    def _act(self, action: _Action, names: Iterable[str], times: int) -> None:
        for name in names:
            self._set(name, "times", 0)
            self._set(name, "action", action)
            self._set(name, "times", times)

    def _set(self, name: str, member: str, value: int) -> None:
        struct.pack_into("=Q", self._memory, self._offset(name, member), value)

    def _set_header(self, member: str, value: int) -> None:
        struct.pack_into("=Q", self._memory, 8 * _HEADER.index(member), value)

    def _header(self, member: str) -> int:
        return self._read(8 * _HEADER.index(member))

    def _read(self, offset: int) -> int:
        value: int = struct.unpack_from("=Q", self._memory, offset)[0]
        return value

    @staticmethod
    def _offset(name: str, member: str) -> int:
        index = len(_HEADER) + FUNCTIONS.index(name) * len(_ENTRY) + _ENTRY.index(member)
        return 8 * index


def make_faulty(hsm: SoftHsm) -> FaultyHsm:
    """Return the token behind the failing module, with no fault set."""
    path = _control_path(hsm)
    path.write_bytes(bytes(_BYTES))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _BYTES)
    return FaultyHsm(hsm=hsm, module=build_module(), _memory=memory)


def build_module() -> Path:
    """Return the compiled module, built once for each version of its source."""
    source = _SOURCE.read_bytes()
    folder = Path(tempfile.gettempdir()) / f"istio-hsm-faults-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user. Hint: remove it")
    module = folder / f"faulty-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not module.exists():
        unfinished = folder / f".{module.name}.{os.getpid()}"
        subprocess.run(
            [
                *("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
                *("-o", str(unfinished), str(_SOURCE), "-ldl", "-lpthread"),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        unfinished.replace(module)
    return module


def _control_path(hsm: SoftHsm) -> Path:
    return hsm.folder / "faults"
