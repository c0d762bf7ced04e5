"""No PIN value is tried twice after a refusal, across restarts and crashes.

A token locks after a few wrong PINs, and a locked Luna partition may be lost. So each attempt
is written down, durably, before it is made, and only its success erases it. What is kept is a
salted scrypt hash (RFC 7914) of the PIN: enough to know the value again, not to learn it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hsm_plugin import whole_file
from hsm_plugin.errors import PinRefusedError

_SCRYPT = {"n": 1 << 14, "r": 8, "p": 1, "dklen": 32}
_SALT_BYTES = 16
_MAX_ATTEMPTS = 64
"""More wrong values than any token stands before it locks."""
_MAX_TOKENS = 64
_UNNAMED = ""
"""Written by a version that knew one token only: it counts for whichever is asked first."""


class Outcome(Enum):
    """What is known of the last attempt with a PIN value."""

    PENDING = "pending"
    """Written before the attempt: the process ended before it knew."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class _Record:
    """Hashes of the values tried since the last success, under one salt, the oldest first."""

    salt: bytes
    attempts: dict[str, Outcome]


@dataclass(frozen=True, slots=True)
class PinState:
    """What the token says of its user PIN (CK_TOKEN_INFO flags, PKCS#11 2.40, 3.2)."""

    locked: bool
    final_try: bool
    count_low: bool


class PinGuard:
    """The memory of one token's PIN attempts since the last success, in a file of mode 0600.

    The file may hold several tokens, each with a record of its own: what one of them accepts says
    nothing about another one.
    """

    def __init__(self, path: Path, token: str = "") -> None:
        """`token`: its serial number; empty for a file of one token."""
        self._path = path
        self._token = token

    def of_token(self, serial: str) -> "PinGuard":
        """Return the guard of this token, in the same file."""
        return PinGuard(self._path, serial)

    def permit(self, pin: str, state: PinState) -> None:
        """Return when this PIN may be tried once; the attempt is then on record.

        PinRefusedError when it was refused before, or when a try could lock the token.
        """
        if state.locked:
            raise PinRefusedError(
                "the token's user PIN is locked",
                hint="have the token's security officer reset it, then write the new PIN",
            )
        known = self._known(pin)
        if known is Outcome.REFUSED or (known is Outcome.PENDING and state.count_low):
            raise PinRefusedError(
                "this PIN was refused before and is not tried again",
                hint="write the right PIN into the PIN file; it is picked up by itself",
            )
        if state.final_try:
            raise PinRefusedError(
                "one wrong PIN more would lock the token, so none is tried",
                hint="log in once by hand with the right PIN, which resets the token's counter",
            )
        self._record(pin, Outcome.PENDING)

    def refused(self, pin: str) -> None:
        """Record that the token refused this PIN."""
        self._record(pin, Outcome.REFUSED)

    def settled(self) -> None:
        """Forget every attempt: the PIN was right, which resets the token's own counter."""
        others = {
            token: record
            for token, record in self._read().items()
            if token not in (self._token, _UNNAMED)
        }
        if others:
            self._keep(others)
        else:
            self._path.unlink(missing_ok=True)

    def outcomes(self) -> list[Outcome]:
        """Return what came of each value that the token was shown since its last success."""
        try:
            record = self._own(self._read())
        except PinRefusedError:
            return []
        return list(record.attempts.values()) if record else []

    def _known(self, pin: str) -> Outcome | None:
        record = self._own(self._read())
        return record.attempts.get(_hash(pin, record.salt)) if record else None

    def _record(self, pin: str, outcome: Outcome) -> None:
        records = self._read()
        record = self._own(records) or _Record(os.urandom(_SALT_BYTES), {})
        digest = _hash(pin, record.salt)
        others = [entry for entry in record.attempts.items() if entry[0] != digest]
        attempts = dict([*others, (digest, outcome)][-_MAX_ATTEMPTS:])
        kept = {token: entry for token, entry in records.items() if token != self._token}
        newest = [*kept.items(), (self._token, _Record(record.salt, attempts))]
        self._keep(dict(newest[-_MAX_TOKENS:]))

    def _own(self, records: dict[str, _Record]) -> _Record | None:
        """Return the token's record, or one that does not say of which token it is."""
        return records.get(self._token) or records.get(_UNNAMED)

    def _keep(self, records: dict[str, _Record]) -> None:
        try:
            whole_file.replace(self._path, _to_json(records).encode())
        except OSError as error:
            raise _unusable(self._path, error) from None

    def _read(self) -> dict[str, _Record]:
        try:
            return _from_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unusable(self._path, error) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise PinRefusedError(
                f"the record of PIN attempts {self._path} is damaged",
                hint="make sure that the PIN is right, then delete this file",
            ) from None


def _unusable(path: Path, error: OSError) -> PinRefusedError:
    return PinRefusedError(
        f"the record of PIN attempts {path} cannot be used: {error.strerror}",
        hint="no PIN is tried without it; check HSM_PLUGIN_STATE_DIR, its mode and its space",
    )


def _hash(pin: str, salt: bytes) -> str:
    return hashlib.scrypt(pin.encode(), salt=salt, **_SCRYPT).hex()


def _to_json(records: dict[str, _Record]) -> str:
    """Return one record as it is, others by token."""
    texts = {
        token: {
            "salt": record.salt.hex(),
            "attempts": {digest: outcome.value for digest, outcome in record.attempts.items()},
        }
        for token, record in records.items()
    }
    unnamed = texts.pop(_UNNAMED, {})
    return json.dumps(unnamed | ({"tokens": texts} if texts else {}))


def _from_json(text: bytes) -> dict[str, _Record]:
    kept = json.loads(text)
    found = {str(token): _record_of(entry) for token, entry in kept.get("tokens", {}).items()}
    if "salt" in kept or not found:
        found[_UNNAMED] = _record_of(kept)
    return found


def _record_of(kept: dict[str, Any]) -> _Record:
    attempts = {str(digest): Outcome(name) for digest, name in kept["attempts"].items()}
    return _Record(bytes.fromhex(kept["salt"]), attempts)
