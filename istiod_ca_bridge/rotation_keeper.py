"""Carries out the rotation: gathers facts, asks `rotation.next_step`, does that one step.

Every replica follows the record; the leader alone takes steps. Each step may be done twice.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.ca_key import CaKeys
from istiod_ca_bridge.chain import certificates_in, is_signed_by
from istiod_ca_bridge.chain_check import ChainCheck
from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import (
    BridgeError,
    ClusterUnavailableError,
    CorruptSecretError,
    KeyServiceNotPreparedError,
    RefusedChainError,
)
from istiod_ca_bridge.istiod_tls import CERTIFICATE_KEY, ISTIOD_TLS_SECRET
from istiod_ca_bridge.key_service import KeyService
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.records import KeyRecord, ResidentKey, key_record
from istiod_ca_bridge.replica_report import ReplicaReport, not_serving, not_trusting
from istiod_ca_bridge.root_readback import RootReadback
from istiod_ca_bridge.rotation import Facts, Phase, Rotation, Step, Wish, next_step, rotation_of
from istiod_ca_bridge.signer import Signer, key_der
from istiod_ca_bridge.store import (
    ACTIVE,
    CHAIN_KEY,
    NEXT,
    PREVIOUS_KEY_SECRET,
    ROTATION_SECRET,
    StoredSecret,
    VersionedStore,
)

_LOOKS_BEFORE_RESTORING = 5


@dataclass(frozen=True, slots=True)
class _Next:
    """The next key, as far as it is there."""

    record: KeyRecord | None = None
    signer: Signer | None = field(default=None, repr=False)
    has_csr: bool = False
    chain_pem: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> bytes:
        """Its public half as DER SubjectPublicKeyInfo."""
        return key_der(self.signer.public_key) if self.signer is not None else b""


class RotationKeeper:
    """Follows the record, and as the leader moves it on."""

    def __init__(
        self,
        store: VersionedStore,
        keys: KeyService,
        ca_keys: CaKeys,
        check: ChainCheck,
        roots: RootReadback,
        reports: Callable[[], Awaitable[tuple[ReplicaReport, ...]]],
        longest_lifetime: timedelta,
        conditions: Conditions,
        clock: Callable[[], datetime],
        log: EventLog,
        *,
        watches_istiod_tls: bool = False,
        unlisted: Callable[[bytes], str] = lambda _: "",
    ) -> None:
        self._store = store
        self._keys = keys
        self._ca_keys = ca_keys
        self._check = check
        self._roots = roots
        self._reports = reports
        self._longest_lifetime = longest_lifetime
        self._conditions = conditions
        self._clock = clock
        self._log = log
        self._watches_istiod_tls = watches_istiod_tls
        self._unlisted = unlisted
        self._stored: StoredSecret | None = None
        self._known: Rotation | None = None
        self._bad_looks = 0

    @property
    def known(self) -> Rotation | None:
        """The rotation under way, as it was last followed."""
        return self._known

    async def follow(self) -> Rotation | None:
        """Return the rotation that is under way.

        A record that was deleted or spoilt by hand is no end of it: what was last read holds.
        """
        self._stored = await self._store.load(ROTATION_SECRET)
        fault = ""
        try:
            if self._stored is not None:
                self._known = rotation_of(self._stored.values)
            elif self._known is not None and self._known.phase is Phase.RETIRE:
                self._known = None
            elif self._known is not None:
                fault = f"{ROTATION_SECRET} is gone in the midst of a rotation"
        except CorruptSecretError as error:
            if self._known is None:
                raise
            fault = str(error)
        if fault and not self._bad_looks:
            self._log.warning("ca_rotation.record_unusable", reason=fault)
            self._conditions.happened("RotationRecordUnusable", fault, is_warning=True)
        self._bad_looks = self._bad_looks + 1 if fault else 0
        return self._known

    async def step(self, serving: Authority) -> None:
        """Take the one step that is next, or tell why none is."""
        rotation = self._known
        if rotation is None:
            self._conditions.set(Kind.ROTATING, "Idle", "no rotation is under way", status=False)
            return
        if self._bad_looks:
            await self._restore(rotation)
            return
        following = await self._next(rotation)
        outcome = next_step(rotation, await self._facts(rotation, following, serving))
        if isinstance(outcome, Step):
            await self._take(outcome, rotation, following, serving)
            return
        self._tell(rotation, str(outcome))
        if rotation.wish is not Wish.NONE:
            await self._write(replace(rotation, wish=Wish.NONE, answer=str(outcome)))

    async def _restore(self, rotation: Rotation) -> None:
        """Write the record again as it was last read."""
        if self._bad_looks <= _LOOKS_BEFORE_RESTORING:
            return
        if self._stored is None:
            await self._store.create(ROTATION_SECRET, rotation.values())
        else:
            await self._write(rotation)
        self._log.warning("ca_rotation.record_restored", secret=ROTATION_SECRET)
        self._conditions.happened("RotationRecordRestored", f"{ROTATION_SECRET} is back")

    # Facts

    async def _next(self, rotation: Rotation) -> _Next:
        values = await self._store.read(NEXT.key)
        has_csr = await self._store.read(NEXT.csr) is not None
        if values is None:
            return _Next(has_csr=has_csr)
        if rotation.phase is Phase.PREPARE:
            offered = await self._store.read(NEXT.certificate)
            pem = (offered or {}).get(CHAIN_KEY, b"")
        else:
            pem = rotation.next_chain
        try:
            record, signer = await self._ca_keys.opened(NEXT, values)
        except KeyServiceNotPreparedError:
            return _Next(has_csr=has_csr, chain_pem=pem)
        return _Next(record, signer, has_csr, pem)

    async def _facts(self, rotation: Rotation, following: _Next, serving: Authority) -> Facts:
        facts = Facts(
            now=self._clock(),
            has_next_key=following.signer is not None,
            next_key=following.key,
            has_next_csr=following.has_csr,
        )
        match rotation.phase:
            case Phase.PREPARE:
                return replace(facts, next_chain_fault=await self._fault(following))
            case Phase.DISTRIBUTE if rotation.wish is not Wish.ABORT:
                return replace(
                    facts,
                    next_chain_fault=await self._fault(following),
                    lacking=await self._lacking(rotation, serving),
                    unlisted=self._unlisted(rotation.next_chain),
                )
            case Phase.OVERLAP:
                return replace(facts, served_by_old=await self._served_by_old(serving))
            case _:
                return facts

    async def _fault(self, following: _Next) -> str | None:
        if following.signer is None:
            return f"the key of {NEXT.key} is not in the HSM"
        if not following.chain_pem:
            return f"{NEXT.certificate} is not there"
        try:
            await self._check.accepted(following.chain_pem, following.signer.public_key)
        except RefusedChainError as error:
            return f"{error} ({error.hint})" if error.hint else str(error)
        return None

    async def _lacking(self, rotation: Rotation, serving: Authority) -> tuple[str, ...] | None:
        """Return who lacks a root of either chain, this replica's own answers included."""
        try:
            wanted = certificates_in(rotation.next_chain)
        except RefusedChainError as error:
            raise CorruptSecretError(
                f"next-chain.pem of {ROTATION_SECRET} cannot be read: {error}",
                hint="restore it from a backup, or say `rotation abort`",
            ) from None
        roots = [entry for entry in wanted if entry.subject == entry.issuer]
        if not set(roots) <= set(serving.chain.roots):
            return ("this CA's own answers",)
        try:
            reports = await self._reports()
            replicas = not_trusting(reports, serving.chain, self._clock())
            return (*replicas, *await self._roots.lacking(serving.chain.roots))
        except ClusterUnavailableError:
            return None

    async def _served_by_old(self, serving: Authority) -> tuple[str, ...]:
        replicas = not_serving(await self._reports(), serving.chain, self._clock())
        if replicas or not self._watches_istiod_tls:
            return replicas
        values = await self._store.read(ISTIOD_TLS_SECRET) or {}
        try:
            leaf = x509.load_pem_x509_certificates(values.get(CERTIFICATE_KEY, b""))[0]
        except (IndexError, *MALFORMED):
            return (ISTIOD_TLS_SECRET,)
        return () if is_signed_by(leaf, serving.chain.ca) else (ISTIOD_TLS_SECRET,)

    # Steps

    async def _take(
        self, step: Step, rotation: Rotation, following: _Next, serving: Authority
    ) -> None:
        match step:
            case Step.MAKE_KEY:
                await self._ca_keys.ready(NEXT, rotation.algorithm)
            case Step.WRITE_CSR if following.record and following.signer:
                await self._ca_keys.request(NEXT, following.record, following.signer)
                self._conditions.happened("RotationCsrWritten", f"sign the CSR in {NEXT.csr}")
            case Step.SETTLE:
                await self._settle(rotation)
            case Step.CLEAR_NEXT:
                await self._clear_next()
            case Step.FINISH:
                await self._finish(rotation)
            case _:
                await self._write(self._moved(step, rotation, following, serving))
        self._log.info("ca_rotation.step", phase=rotation.phase.value, step=step.value)

    def _moved(
        self, step: Step, rotation: Rotation, following: _Next, serving: Authority
    ) -> Rotation:
        """Return the record after a step that is one write of it."""
        if step is Step.NOTE_KEY:
            return replace(rotation, next_key=following.key)
        if step is Step.DISTRIBUTE:
            return replace(rotation, phase=Phase.DISTRIBUTE, next_chain=following.chain_pem)
        if step is Step.NOTE_DISTRIBUTED:
            return replace(rotation, distributed_at=self._clock())
        if step is Step.ACTIVATE:
            return replace(
                rotation,
                phase=Phase.ACTIVATE,
                wish=Wish.NONE,
                answer="",
                activated_at=self._clock(),
                old_chain=(serving.intermediates_pem + serving.roots_pem).encode(),
                old_expires_at=serving.not_after,
            )
        assert step in {Step.RETIRE, Step.ABORT}  # noqa: S101 - there is no other
        return replace(rotation, phase=Phase.RETIRE, answer="")

    async def _settle(self, rotation: Rotation) -> None:
        """Keep the old key's record, then make the active Secrets those of the next key."""
        following = await self._store.read(NEXT.key)
        if following is None:
            raise CorruptSecretError(
                f"{NEXT.key} is gone in the midst of a rotation",
                hint=f"the CA goes on; write it again from a backup, or from {ACTIVE.key}",
            )
        old = await self._store.read(ACTIVE.key)
        is_kept = await self._store.read(PREVIOUS_KEY_SECRET) is not None
        if old is not None and old != following and not is_kept:
            await self._store.create(PREVIOUS_KEY_SECRET, old)
        await self._put(ACTIVE.key, following)
        if (csr := await self._store.read(NEXT.csr)) is not None:
            await self._put(ACTIVE.csr, csr)
        await self._put(ACTIVE.certificate, {CHAIN_KEY: rotation.next_chain})
        await self._write(replace(rotation, phase=Phase.OVERLAP))

    async def _put(self, name: str, values: Mapping[str, bytes]) -> None:
        before = await self._store.load(name)
        if before is None:
            await self._store.create(name, values)
        elif before.values != values:
            await self._store.replace(name, before, values)

    async def _finish(self, rotation: Rotation) -> None:
        if rotation.wish is Wish.ABORT:
            await self._destroy(NEXT.key)
            await self._clear_next()
        elif rotation.wish is Wish.RETIRE_AND_DESTROY:
            await self._destroy(PREVIOUS_KEY_SECRET)
            await self._store.delete(PREVIOUS_KEY_SECRET)
        await self._store.delete(ROTATION_SECRET)
        self._conditions.happened(
            "RotationAborted" if rotation.wish is Wish.ABORT else "RotationFinished",
            "one root alone is trusted again",
        )

    async def _clear_next(self) -> None:
        for name in (NEXT.certificate, NEXT.csr, NEXT.key):
            await self._store.delete(name)

    async def _destroy(self, secret: str) -> None:
        """Destroy the key in the HSM that a Secret names; never the active one."""
        values = await self._store.read(secret)
        doomed = key_record(values, secret) if values is not None else None
        if not isinstance(doomed, ResidentKey):
            return  # a sealed key is gone with its Secret
        active = key_record(await self._store.read(ACTIVE.key) or {}, ACTIVE.key)
        if isinstance(active, ResidentKey) and active.key_id == doomed.key_id:
            raise BridgeError(
                f"{secret} names the key that serves; it is not destroyed",
                hint=f"delete {secret}",
            )
        await self._keys.destroy_resident(doomed)
        self._log.warning("ca_rotation.key_destroyed", key_id=doomed.key_id)
        self._conditions.happened("KeyDestroyed", f"{doomed.key_id} is gone from the HSM for good")

    async def _write(self, rotation: Rotation) -> None:
        """Write the record over the state that was read, or not at all."""
        assert self._stored is not None  # noqa: S101 - follow() has just read it
        longest = max(rotation.longest_lifetime, self._longest_lifetime)
        await self._store.replace(
            ROTATION_SECRET, self._stored, replace(rotation, longest_lifetime=longest).values()
        )

    def _tell(self, rotation: Rotation, message: str) -> None:
        self._conditions.set(Kind.ROTATING, rotation.phase.value.capitalize(), message, status=True)
