"""Has the token sign the audit log's head, every so many entries and every so often.

The key is a resident one of a reserved id, made at its first use: no caller of the socket can
sign with it, so a checkpoint is the plugin's own word. Each token has one of its own, and a
checkpoint names the key that signed it.
"""

import asyncio
import base64
import hashlib
import logging
import time
from dataclasses import dataclass

from hsm_plugin.admission import Lane
from hsm_plugin.audit_chain import Fields, Kind, checkpoint_message
from hsm_plugin.audit_log import AuditLog
from hsm_plugin.audit_signatures import is_signed_by
from hsm_plugin.bound_token import BoundToken
from hsm_plugin.errors import (
    HsmPluginError,
    HsmUnavailableError,
    KeyNotFoundError,
    UnsupportedError,
)
from hsm_plugin.keys import (
    AUDIT_KEY_ID,
    KeyAlgorithm,
    KeyKind,
    SignatureAlgorithm,
    SigningKey,
)
from hsm_plugin.log import event
from hsm_plugin.token_client import TokenClient

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 10.0
_CALL_SECONDS = 10.0
_LANE = Lane(b" audit")
_SCHEMES = {
    KeyKind.EC: SignatureAlgorithm.ECDSA_SHA256,
    KeyKind.RSA: SignatureAlgorithm.RSA_PKCS1_SHA256,
}


@dataclass(slots=True)
class Checkpoints:
    """The loop, and the last entry that is covered."""

    log: AuditLog
    token: TokenClient
    every_entries: int
    every_seconds: float
    covered: int = 0
    """Sequence number of the last entry that this process had signed."""
    signed_at: float = 0.0
    """Unix time of the last checkpoint; 0 before the first."""
    _last: int = 0
    """Sequence number of the last checkpoint itself."""

    @property
    def unsigned(self) -> int:
        """Entries after the last one that is covered, the checkpoint not counted."""
        head = self.log.head.sequence
        return 0 if head == self._last else head - self.covered

    async def run(self) -> None:
        """Never returns; cancel it."""
        due_at = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self.token.breaker.is_open or not self.unsigned:
                continue
            if self.unsigned < self.every_entries and time.monotonic() < due_at:
                continue
            due_at = time.monotonic() + self.every_seconds
            if not await self.sign():
                await asyncio.sleep(_RETRY_SECONDS)

    async def sign(self) -> bool:
        """Return true when the head is signed and the checkpoint is in the log."""
        try:
            return await self._sign()
        except Exception as error:  # noqa: BLE001 - the loop must go on; the type tells enough
            event(
                "audit.unsigned",
                f"No checkpoint was signed: unforeseen {type(error).__name__}",
                level=logging.ERROR,
                hint=f"look at the key {AUDIT_KEY_ID.decode()} in the token",
            )
            return False

    async def _sign(self) -> bool:
        covered = self.log.head
        store = self.token.bound(_LANE, time.monotonic() + _CALL_SECONDS)
        try:
            key = await _key_of(store)  # anew: another token may be in use now
            scheme = _SCHEMES[key.algorithm.kind]
            digest = hashlib.sha256(checkpoint_message(covered)).digest()
            signature = await store.sign(key.key_id, scheme, digest)
            if not is_signed_by(key.public_key, scheme.name, digest, signature):
                raise HsmUnavailableError(
                    "another token came into use in the meantime", hint="it is tried again"
                )
            fields: Fields = {
                "covers": covered.sequence,
                "digest": covered.digest,
                "key": key.key_id.decode(),
                "mechanism": scheme.name,
                "public_key_sha256": hashlib.sha256(key.public_key).hexdigest(),
                "signature": base64.b64encode(signature).decode(),
            }
            await self.log.record(Kind.CHECKPOINT, fields)
        except HsmPluginError as error:
            event(
                "audit.unsigned",
                f"No checkpoint was signed: {error}",
                level=logging.ERROR,
                hint=error.hint,
            )
            return False
        self.covered, self._last = covered.sequence, self.log.head.sequence
        self.signed_at = time.time()
        event(
            "audit.checkpoint",
            f"The audit log is signed up to entry {covered.sequence}",
            sequence=covered.sequence,
            digest=covered.digest,
        )
        return True


async def _key_of(store: BoundToken) -> SigningKey:
    """Return the key that signs checkpoints, made when it is not there."""
    try:
        return await store.signing_key(AUDIT_KEY_ID)
    except KeyNotFoundError:
        pass
    try:
        key, _ = await store.generate_signing_key(AUDIT_KEY_ID, KeyAlgorithm.ECDSA_P256)
    except UnsupportedError:
        key, _ = await store.generate_signing_key(AUDIT_KEY_ID, KeyAlgorithm.RSA_2048)
    return key
