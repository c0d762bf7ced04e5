"""The CA key's state machine: no key -> key -> CSR -> waiting -> serving -> renewal, rotation.

Each step reads what is there before it makes anything, and writes one Secret whole, so the
process may die anywhere and the next one goes on. At a start, a Secret that exists and cannot be
used stops the process. Once it serves, nothing does: what it cannot use is told and looked at
again, and the CA goes on with what it has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.ca_key import CaKeys, KeyMode, KeySettings
from istiod_ca_bridge.chain import CaChain, certificates_in, name_of
from istiod_ca_bridge.chain_check import ChainCheck
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.errors import (
    BridgeError,
    ConfigError,
    CorruptSecretError,
    KeyServiceNotPreparedError,
    KeyServiceUnavailableError,
    LeaderAwaitedError,
    RefusedChainError,
    SecretExistsError,
    StoreUnavailableError,
)
from istiod_ca_bridge.key_service import KeyService
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.name_constraints import IssuedNames
from istiod_ca_bridge.records import KeyRecord
from istiod_ca_bridge.renewal import RenewalPolicy
from istiod_ca_bridge.renewal_request import RenewalRequest
from istiod_ca_bridge.rotation import Rotation
from istiod_ca_bridge.rotation_keeper import RotationKeeper
from istiod_ca_bridge.signer import KeyAlgorithm, Signer
from istiod_ca_bridge.store import ACTIVE, CHAIN_KEY, SecretStore, Slot

T = TypeVar("T")

_AWAIT_SECONDS = 0.25
"""A first leader is found, and has made a key, soon."""

_LOOKS_BEFORE_RESTORING = 5
"""So that whoever replaces a Secret by deleting it first is not in a race with us."""


@dataclass(frozen=True, slots=True)
class LifecycleSettings:
    """What the operator chose."""

    kek_id: str
    mode: KeyMode
    algorithm: KeyAlgorithm
    """Of a key made anew; a key that exists stays as it is."""

    trust_domain: str
    namespace: str
    poll_seconds: float = 2.0
    names: IssuedNames = field(default_factory=IssuedNames)
    renewal: RenewalPolicy = field(default_factory=RenewalPolicy)

    @property
    def keys(self) -> KeySettings:
        """What concerns CA keys."""
        return KeySettings(self.kek_id, self.mode, self.algorithm, self.trust_domain)


@dataclass(frozen=True, slots=True)
class _OpenKey:
    values: Mapping[str, bytes] = field(repr=False)
    record: KeyRecord
    signer: Signer = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Offer:
    """All that an authority is made of; another one is looked at anew."""

    key_values: Mapping[str, bytes] = field(repr=False)
    chain_pem: bytes
    further_roots: bytes


class Lifecycle:
    """Runs the state machine and hands over each authority that may serve."""

    def __init__(
        self,
        settings: LifecycleSettings,
        store: SecretStore,
        keys: KeyService,
        adopt: Callable[[Authority], None],
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        leads: Callable[[], bool] = lambda: True,
        conditions: Conditions | None = None,
        rotation: RotationKeeper | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._adopt = adopt
        self._log = log
        self._leads = leads
        self._conditions = conditions or Conditions(clock)
        self._rotation = rotation
        self._ca_keys = CaKeys(settings.keys, store, keys, leads, log)
        self._check = ChainCheck(keys, settings.names, clock)
        self._renewal = RenewalRequest(
            settings.renewal, store, self._ca_keys, self._conditions, clock, log
        )
        self._key: _OpenKey | None = None
        self._served: _Offer | None = None
        self._serving: Authority | None = None
        self._further_keys: set[bytes] = set()
        self._looks_without_key = 0
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Go through the stages, then look after all of it for ever.

        Raises CorruptSecretError, ConfigError or KeyServiceRefusedError when only an operator
        can help before it serves; everything passing is waited out.
        """
        await self._persistently(self._start)
        while True:
            await self._guarded("ca_chain.not_checked", self._look)
            if self._serving is not None and self._leads():
                await self._guarded("ca_renewal.delayed", self._renew)
                await self._guarded("ca_rotation.delayed", self._rotate)
            if self._serving is None:
                self._log.info(
                    "Wait until the CA certificate secret "
                    f"{self._settings.namespace}.{ACTIVE.certificate} can be loaded..."
                )
            await asyncio.sleep(self._settings.poll_seconds)

    async def _start(self) -> None:
        """Have a key, and what asks for its certificate."""
        rotation = await self._rotation.follow() if self._rotation else None
        if rotation is not None and rotation.slot is not ACTIVE:
            return  # the record holds all that is needed, and the Secrets are being moved
        record, signer = await self._ca_keys.ready(ACTIVE)
        self._key = _OpenKey(dict(record.values()), record, signer)
        await self._ca_keys.request(ACTIVE, record, signer)

    async def _look(self) -> None:
        """Serve with what the Secrets hold, when it is new and right."""
        rotation = await self._rotation.follow() if self._rotation else None
        self._refuse_key_of(rotation)
        slot = rotation.slot if rotation else ACTIVE
        pem = (
            rotation.next_chain
            if rotation and slot is not ACTIVE
            else (await self._store.read(slot.certificate) or {}).get(CHAIN_KEY, b"")
        )
        key, fault = await self._open_key(slot, is_certified=bool(pem))
        try:
            await self._serve(slot, key, pem, rotation.further_roots if rotation else b"")
        except KeyServiceUnavailableError as error:
            fault = fault or (_word_of(error), _full(error))
            raise
        finally:
            reason, message = fault or ("Available", f"{slot.key} holds the CA key")
            self._set(Kind.KEY, reason, message, status=fault is None)

    def _refuse_key_of(self, rotation: Rotation | None) -> None:
        """Issue no leaf for the next key, whatever becomes of the chain that is offered."""
        self._further_keys = {rotation.next_key} if rotation and rotation.next_key else set()
        if self._serving is not None and not self._further_keys <= self._serving.own_keys:
            self._serving = self._serving.refusing(self._further_keys)
            self._adopt(self._serving)

    async def _serve(self, slot: Slot, key: _OpenKey, pem: bytes, further_roots: bytes) -> None:
        offer = _Offer(key.values, pem, further_roots)
        if not pem:
            if self._served is not None:
                raise RefusedChainError(f"{slot.certificate} is gone; the CA keeps its chain")
            self._set(Kind.CHAIN, "Waiting", f"waits for {slot.certificate}", status=False)
            return
        if offer != self._served:
            further = certificates_in(further_roots) if further_roots else ()
            chain = await self._check.accepted(pem, key.signer.public_key, further)
            self._serving = authority(chain, key.signer).refusing(self._further_keys)
            self._served = offer
            self._adopt(self._serving)
            self._tell(chain)
        if self._serving is not None:
            until = self._serving.not_after
            self._set(Kind.CHAIN, "Accepted", f"serves until {until:%FT%TZ}", status=True)

    async def _open_key(
        self, slot: Slot, *, is_certified: bool
    ) -> tuple[_OpenKey, tuple[str, str] | None]:
        """Return the key of the Secret; when that cannot be used, the one that is open, and why."""
        values = await self._store.read(slot.key)
        if values is not None:
            self._looks_without_key = 0
        if self._key is None or values != self._key.values:
            try:
                self._key = await self._opened(slot, values)
            except (CorruptSecretError, ConfigError) as error:
                if self._key is None:
                    raise
                self._trouble("ca_key.secret_unusable", error)
                if values is None and is_certified:
                    await self._restore(slot, self._key)
                word = "SecretMissing" if values is None else "SecretUnusable"
                return self._key, (word, _full(error))
        self._told.pop("ca_key.secret_unusable", None)
        return self._key, None

    async def _opened(self, slot: Slot, values: Mapping[str, bytes] | None) -> _OpenKey:
        if values is None:
            raise CorruptSecretError(
                f"{slot.key} is gone", hint="the leader writes it again while it serves"
            )
        record, signer = await self._ca_keys.opened(slot, values)
        return _OpenKey(dict(values), record, signer)

    async def _restore(self, slot: Slot, key: _OpenKey) -> None:
        """Write the Secret of the key that serves again, when somebody deleted it."""
        self._looks_without_key += 1
        is_ours = self._served is not None and key.values == self._served.key_values
        if is_ours and self._leads() and self._looks_without_key > _LOOKS_BEFORE_RESTORING:
            await self._store.create(slot.key, key.values)
            self._log.warning("ca_key.restored", secret=slot.key)
            self._conditions.happened("KeySecretRestored", f"{slot.key} was deleted, and is back")

    async def _renew(self) -> None:
        if self._serving is not None and self._key is not None:
            await self._renewal.look(self._serving, self._key.record)

    async def _rotate(self) -> None:
        if self._serving is not None and self._rotation is not None:
            await self._rotation.step(self._serving)

    def _tell(self, chain: CaChain) -> None:
        for title, certificates in (
            ("CA cert:", (chain.ca,)),
            ("intermediate certs:", chain.intermediates),
            ("root cert:", chain.roots),
        ):
            for entry in certificates:
                self._log.info(
                    title,
                    subject=name_of(entry).strip('"'),
                    serial=f"{entry.serial_number:x}",
                    not_after=entry.not_valid_after_utc,
                )

    async def _guarded(self, event: str, step: Callable[[], Awaitable[None]]) -> None:
        """Do one thing; tell what went wrong, and go on."""
        try:
            await step()
        except SecretExistsError:
            pass  # another writer was first: what it wrote is looked at next
        except RefusedChainError as error:
            self._trouble("ca_chain.refused", error)
            self._set(Kind.CHAIN, "Refused", _full(error), status=False)
        except BridgeError as error:
            self._trouble(event, error)
            if step == self._look:
                self._blame(error)
        else:
            self._told.pop(event, None)
            if step == self._look:
                self._told.pop("ca_chain.refused", None)

    async def _persistently(self, step: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                result = await step()
            except SecretExistsError:
                continue
            except LeaderAwaitedError as error:
                self._trouble("ca_key.awaited", error)
                await asyncio.sleep(min(self._settings.poll_seconds, _AWAIT_SECONDS))
            except (KeyServiceUnavailableError, StoreUnavailableError) as error:
                self._trouble(
                    "ca_key.not_prepared"
                    if isinstance(error, KeyServiceNotPreparedError)
                    else "ca_key.delayed",
                    error,
                )
                self._blame(error)
                await asyncio.sleep(self._settings.poll_seconds)
            else:
                self._told.clear()
                return result

    def _blame(self, error: BridgeError) -> None:
        if isinstance(error, KeyServiceUnavailableError):
            self._set(Kind.KEY, _word_of(error), _full(error), status=False)

    def _set(self, kind: Kind, reason: str, message: str, *, status: bool) -> None:
        self._conditions.set(kind, reason, message, status=status)

    def _trouble(self, event: str, error: BridgeError) -> None:
        """Tell each trouble once, until it changes or passes."""
        if self._told.get(event) != str(error):
            self._told[event] = str(error)
            self._log.warning(event, reason=str(error), hint=error.hint)


def _full(error: BridgeError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _word_of(error: KeyServiceUnavailableError) -> str:
    return "NotPrepared" if isinstance(error, KeyServiceNotPreparedError) else "HsmUnavailable"
