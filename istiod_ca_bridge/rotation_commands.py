"""`istiod-ca-bridge rotation …`: the operator's wishes, written into the record for the leader."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from istiod_ca_bridge.conditions import Kind
from istiod_ca_bridge.errors import BridgeError, SecretExistsError
from istiod_ca_bridge.rotation import Phase, Rotation, Wish, rotation_of
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import NEXT, PREVIOUS_KEY_SECRET, ROTATION_SECRET, VersionedStore

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RotationCommands:
    """What an operator may ask for; each returns what to print, BridgeError says why not."""

    store: VersionedStore
    clock: Callable[[], datetime]
    longest_lifetime: timedelta
    messages: Callable[[], Awaitable[Mapping[str, str]]]
    """What the leader tells, by the type of the condition."""

    patience: timedelta = timedelta(seconds=60)

    async def start(self, algorithm: KeyAlgorithm) -> str:
        """Begin a rotation."""
        if await self.store.read(PREVIOUS_KEY_SECRET) is not None:
            raise BridgeError(
                f"{PREVIOUS_KEY_SECRET} is still there, of the rotation before",
                hint="delete it when that key is needed no more; its id is in it",
            )
        rotation = Rotation(Phase.PREPARE, algorithm, self.clock(), self.longest_lifetime)
        try:
            await self.store.create(ROTATION_SECRET, rotation.values())
        except SecretExistsError:
            raise BridgeError("a rotation is under way", hint="say `rotation status`") from None
        return f"started; the next key's CSR will be in {NEXT.csr}"

    async def status(self) -> str:
        """Return the record as JSON, less what is long, and why it does not go on."""
        rotation = await self._rotation()
        if rotation is None:
            return json.dumps({"phase": "none"}, indent=2)
        texts = {
            key: value.decode()
            for key, value in rotation.values().items()
            if value and not key.endswith(".pem")
        }
        waits_for = (await self.messages()).get(Kind.ROTATING.value, "")
        return json.dumps(texts | {"waits-for": waits_for}, indent=2)

    async def ask(self, wish: Wish) -> str:
        """Have the leader grant the wish, and wait for its answer."""
        stored = await self.store.load(ROTATION_SECRET)
        if stored is None:
            raise BridgeError("no rotation is under way", hint="say `rotation start`")
        before = rotation_of(stored.values)
        if wish is Wish.ACTIVATE and before.activated_at is not None:
            raise BridgeError("the next key was activated before", hint="say `rotation status`")
        try:
            await self.store.replace(
                ROTATION_SECRET, stored, replace(before, wish=wish, answer="").values()
            )
        except SecretExistsError:
            raise BridgeError("the rotation has just moved on", hint="say it again") from None
        return await self._answer(wish)

    async def _answer(self, wish: Wish) -> str:
        for _ in range(int(self.patience.total_seconds() / _LOOK_SECONDS)):
            await asyncio.sleep(_LOOK_SECONDS)
            now = await self._rotation()
            if now is None:
                return "done; the rotation is over"
            if wish is Wish.ACTIVATE and now.activated_at is not None:
                return "done; the next key signs"
            if now.wish is Wish.NONE and now.answer:
                raise BridgeError(now.answer, hint="nothing was changed; say it again then")
        raise BridgeError(
            "the leader has not answered yet", hint="say `rotation status`; is a bridge running?"
        )

    async def _rotation(self) -> Rotation | None:
        values = await self.store.read(ROTATION_SECRET)
        return None if values is None else rotation_of(values)
