"""`doctor`: looks at all that the plugin needs and says what is wrong, why, and what to do.

It never tries a PIN. What only a login shows is asked of the running plugin.
"""

import ctypes
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsm_plugin import token_reference
from hsm_plugin.client import Client
from hsm_plugin.config import MESH_GID
from hsm_plugin.diagnosis import Check, fault, good, note
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.keys import AUDIT_KEY_ID
from hsm_plugin.module_probe import SeenToken, probe
from hsm_plugin.token_reference import TokenReference

_PROBE_SECONDS = 15.0
_TIME_ERROR = 5
"""What adjtimex(2) returns for a clock that nothing keeps right."""
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
_CBC = ("AES_CBC", "SHA256_HMAC", "GENERIC_SECRET_KEY_GEN")
_SIGNING = ("RSA_PKCS", "ECDSA")
_USEFUL = ("RSA_PKCS_PSS", "EDDSA", "RSA_PKCS_KEY_PAIR_GEN", "EC_KEY_PAIR_GEN")
_PIN_FLAGS = {
    "count_low": "a wrong PIN was tried since the last login",
    "final_try": "one wrong PIN more locks the token",
    "locked": "the user PIN is locked",
}


@dataclass(frozen=True, slots=True)
class Doctor:
    """What is looked at."""

    module: str
    tokens: str
    """As P11_TOKEN names them."""
    pin_file: str
    socket: Path
    client: Client

    def examine(self) -> list[Check]:
        """Return every check."""
        checks = [*self._settings(), *self._module_and_token()]
        return [*checks, *self._socket(), *self._keys(), *_clock()]

    def _settings(self) -> Iterator[Check]:
        group = "settings"
        for name, value in (("P11_LIB", self.module), ("P11_TOKEN", self.tokens)):
            if not value:
                yield fault(group, f"{name} is not set", "give it to doctor as to serve")
        if not self.pin_file:
            yield fault(group, "P11_PIN_FILE is not set", "name the file with the PIN")
            return
        try:
            mode = Path(self.pin_file).stat().st_mode
        except OSError as error:
            yield fault(
                group,
                f"the PIN file {self.pin_file} cannot be seen: {error.strerror}",
                "see the Vault client's log: it delivers this file",
            )
            return
        if mode & stat.S_IRWXO:
            yield fault(
                group, f"everybody may open the PIN file {self.pin_file}", "give it mode 0400"
            )
        else:
            yield good(group, f"the PIN file {self.pin_file} is there and private")

    def _module_and_token(self) -> Iterator[Check]:
        if not self.module:
            return
        try:
            tokens = probe(self.module, _PROBE_SECONDS)
        except HsmPluginError as error:
            yield fault("module", str(error), error.hint)
            return
        yield good("module", f"{self.module} loads and shows {len(tokens)} token(s)")
        if not self.tokens:
            return
        try:
            references = token_reference.parse_list(self.tokens)
        except HsmPluginError as error:
            yield fault("settings", f"P11_TOKEN: {error}", error.hint)
            return
        for reference in references:
            yield from _referenced(reference, tokens)

    def _socket(self) -> Iterator[Check]:
        group = "socket"
        try:
            status = self.socket.lstat()
        except OSError as error:
            yield fault(
                group, f"{self.socket}: {error.strerror}", "start `hsm-plugin serve`, or set SOCKET"
            )
            return
        if not stat.S_ISSOCK(status.st_mode):
            yield fault(group, f"{self.socket} is no socket", "remove it; serve makes it")
            return
        mode = stat.S_IMODE(status.st_mode)
        if mode & stat.S_IRWXO:
            yield fault(group, f"everybody may use {self.socket}", "give it mode 0660")
        else:
            yield good(group, f"{self.socket} has mode {mode:04o}")
        if status.st_gid != MESH_GID:
            yield note(
                group,
                f"it belongs to group {status.st_gid}, not to {MESH_GID}",
                "the mesh's containers run with group 1337; others need the socket's group",
            )
        try:
            self.client.health()
        except HsmPluginError as error:
            yield fault(group, str(error), error.hint)
        else:
            yield good(group, "the plugin answers and serves")

    def _keys(self) -> Iterator[Check]:
        group = "keys, as the running plugin tells"
        try:
            seen = self.client.inspect()
        except HsmPluginError as error:
            yield fault(group, f"they are not known: {error}", error.hint)
            return
        if seen.pin_values_refused or seen.pin_values_pending:
            yield fault(
                group,
                f"{seen.pin_values_refused} PIN value(s) are on record as refused, "
                f"{seen.pin_values_pending} without an outcome",
                "make sure that the PIN file holds the right PIN",
            )
        yield good(group, f"{seen.sessions_open} of {seen.sessions_limit} sessions are open")
        if not seen.keys:
            yield note(group, "no KEK and no signing key is in the token", "make one when needed")
        for key in seen.keys:
            name = f'{key.label} "{key.key_id.decode("ascii", errors="backslashreplace")}"'
            wrong = [
                text
                for is_wrong, text in (
                    (not key.sensitive, "is not CKA_SENSITIVE"),
                    (key.extractable, "is CKA_EXTRACTABLE"),
                    (not key.never_extractable, "is not CKA_NEVER_EXTRACTABLE"),
                    (not key.local, "is not CKA_LOCAL: it was made elsewhere"),
                )
                if is_wrong
            ]
            if wrong:
                yield fault(
                    group, f"{name} {', '.join(wrong)}", "make a new key in the token, and use that"
                )
            else:
                yield good(group, f"{name} was made in the token and cannot leave it")
        if seen.audit_sequence:
            yield good(group, f"the audit log has {seen.audit_sequence} entries")
            if not any(key.key_id == AUDIT_KEY_ID for key in seen.keys):
                yield fault(group, "no key signs the audit log", "see the audit.unsigned events")


def _referenced(reference: TokenReference, tokens: list[SeenToken]) -> Iterator[Check]:
    found = [
        token
        for token in tokens
        if reference.matches(
            label=token.label,
            serial=token.serial,
            manufacturer=token.manufacturer,
            model=token.model,
            slot=token.slot,
        )
    ]
    if len(found) == 1:
        yield from _token(found[0])
        return
    labels = ", ".join(sorted(f'"{token.label}"' for token in tokens)) or "none"
    yield fault(
        "token",
        f"{len(found)} tokens bear {reference}; seen: {labels}",
        "compare P11_TOKEN with the slot label; exactly one token may be meant",
    )


def _token(token: SeenToken) -> Iterator[Check]:
    group = "token"
    yield good(group, f'"{token.label}": {token.model}, serial {token.serial}, slot {token.slot}')
    if token.max_sessions is not None and token.max_sessions <= 1:
        yield fault(
            group, f"it allows {token.max_sessions} session(s)", "allow this client 2 or more"
        )
    for flag in token.pin_flags:
        yield fault(
            group,
            f"PIN: {_PIN_FLAGS[flag]}",
            "try no PIN before it is known who sent the wrong one; then log in once by hand",
        )
    if not token.pin_flags:
        yield good(group, "PIN: no wrong one was tried since the last login")
    group = "mechanisms"
    if "AES_KEY_GEN" in token.mechanisms:
        yield good(group, "CKM_AES_KEY_GEN")
    else:
        yield fault(
            group,
            "CKM_AES_KEY_GEN is missing: making KEKs needs it",
            "enable it in the HSM's policy, or take another token",
        )
    if "AES_GCM" in token.mechanisms:
        yield good(group, "CKM_AES_GCM")
    elif all(name in token.mechanisms for name in _CBC):
        yield note(
            group,
            "CKM_AES_GCM is missing, AES-CBC with HMAC-SHA256 is there",
            "start serve with --algorithm aes-cbc",
        )
    else:
        yield fault(
            group,
            "CKM_AES_GCM is missing: wrapping DEKs needs it",
            f"enable it, or CKM_{', CKM_'.join(_CBC)} for --algorithm aes-cbc, in the HSM's policy",
        )
    if not any(name in token.mechanisms for name in _SIGNING):
        yield fault(
            group,
            "neither CKM_RSA_PKCS nor CKM_ECDSA is there: no key can sign",
            "enable one of them in the HSM's policy",
        )
    for name in (*_SIGNING, *_USEFUL):
        if name in token.mechanisms:
            yield good(group, f"CKM_{name}")
        else:
            yield note(group, f"CKM_{name} is missing", "calls that need it are UNIMPLEMENTED")


def _clock() -> Iterator[Check]:
    group = "clock"
    now = datetime.now(UTC)
    if now < _EARLIEST:
        yield fault(
            group,
            f"it says {now:%Y-%m-%d}: certificates of today are not valid yet",
            "set the host's clock, and have NTP keep it",
        )
        return
    yield good(group, f"it says {now:%Y-%m-%d %H:%M:%S} UTC")
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    if state == _TIME_ERROR:
        yield note(group, "the kernel does not know that NTP keeps it", "see the host's NTP client")
