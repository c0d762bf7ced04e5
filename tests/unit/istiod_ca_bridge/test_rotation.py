"""The rotation's decisions on facts, and the whole way, killed at each of its effects."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from istiod_ca_bridge.adoption import Adoption
from istiod_ca_bridge.conditions import Kind
from istiod_ca_bridge.errors import BridgeError, CorruptSecretError
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.replica_report import report_of
from istiod_ca_bridge.rotation import (
    SLACK,
    Facts,
    Gate,
    Phase,
    Rotation,
    Step,
    Wish,
    next_step,
    rotation_of,
)
from istiod_ca_bridge.rotation_commands import RotationCommands
from istiod_ca_bridge.signer import KeyAlgorithm, key_der
from istiod_ca_bridge.store import (
    ACTIVE,
    CERTIFICATE_SECRET,
    CSR_SECRET,
    KEY_SECRET,
    NEXT,
    PREVIOUS_KEY_SECRET,
    ROTATION_SECRET,
)
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import NOW, CrashError, Effects
from tests.unit.istiod_ca_bridge.lifecycle_world import LONGEST, ROOT, WAITING, World

NEW_ROOT = pki.root("Next Root", valid_until=pki.MOMENT + timedelta(days=3650))
LONG_AFTER = LONGEST + SLACK
READY = Facts(NOW, has_next_key=True, has_next_csr=True, next_chain_fault=None, lacking=())
GONE = Facts(NOW, next_chain_fault=None, lacking=())


def rotation(
    phase: Phase,
    *,
    wish: Wish = Wish.NONE,
    distributed: timedelta | None = None,
    activated: timedelta | None = None,
    old_ends: datetime | None = None,
) -> Rotation:
    """Return a record; its moments so long ago."""
    return Rotation(
        phase,
        KeyAlgorithm.ECDSA_P256,
        NOW,
        LONGEST,
        distributed_at=None if distributed is None else NOW - distributed,
        activated_at=None if activated is None else NOW - activated,
        old_expires_at=old_ends,
        wish=wish,
    )


@pytest.mark.parametrize(
    ("record", "facts", "step"),
    [
        (rotation(Phase.PREPARE), Facts(NOW), Step.MAKE_KEY),
        (rotation(Phase.PREPARE), replace(READY, next_key=b"made"), Step.NOTE_KEY),
        (replace(rotation(Phase.PREPARE), next_key=b"forged"), READY, Step.NOTE_KEY),
        (rotation(Phase.PREPARE), Facts(NOW, has_next_key=True), Step.WRITE_CSR),
        (rotation(Phase.PREPARE), READY, Step.DISTRIBUTE),
        (rotation(Phase.DISTRIBUTE), READY, Step.NOTE_DISTRIBUTED),
        (
            rotation(Phase.DISTRIBUTE, wish=Wish.ACTIVATE, distributed=LONG_AFTER),
            READY,
            Step.ACTIVATE,
        ),
        (rotation(Phase.ACTIVATE), Facts(NOW), Step.SETTLE),
        (rotation(Phase.OVERLAP, activated=timedelta(0)), READY, Step.CLEAR_NEXT),
        (rotation(Phase.OVERLAP, wish=Wish.RETIRE, activated=LONG_AFTER), GONE, Step.RETIRE),
        (
            rotation(Phase.OVERLAP, wish=Wish.RETIRE_AND_DESTROY, activated=LONG_AFTER),
            GONE,
            Step.RETIRE,
        ),
        (
            rotation(
                Phase.OVERLAP, wish=Wish.RETIRE, activated=timedelta(hours=1), old_ends=NOW - SLACK
            ),
            GONE,
            Step.RETIRE,
        ),
        (rotation(Phase.RETIRE), GONE, Step.FINISH),
        (rotation(Phase.PREPARE, wish=Wish.ABORT), Facts(NOW), Step.ABORT),
        (rotation(Phase.DISTRIBUTE, wish=Wish.ABORT), READY, Step.ABORT),
    ],
)
def test_when_the_facts_allow_it_the_next_step_is_taken(
    record: Rotation, facts: Facts, step: Step
) -> None:
    assert next_step(record, facts) is step


_SOON = LONG_AFTER - timedelta(seconds=1)
_MAY = rotation(Phase.DISTRIBUTE, wish=Wish.ACTIVATE, distributed=LONG_AFTER)
_MAY_RETIRE = rotation(Phase.OVERLAP, wish=Wish.RETIRE, activated=LONG_AFTER)


@pytest.mark.parametrize(
    ("record", "facts", "reason"),
    [
        (rotation(Phase.PREPARE), replace(READY, next_chain_fault="not our key"), "not our key"),
        (_MAY, replace(READY, lacking=None), "not known"),
        (_MAY, replace(READY, lacking=("shop", "bank")), "trusted yet by shop, bank"),
        (_MAY, replace(READY, lacking=tuple("abcdefg")), "a, b, c, d, e and 2 more"),
        (_MAY, replace(READY, next_chain_fault="expired"), "expired"),
        (_MAY, replace(READY, unlisted='"CN=Next Root"'), 'is published of "CN=Next Root"'),
        (replace(_MAY, distributed_at=NOW - _SOON), READY, "trust the old root only"),
        (replace(_MAY, wish=Wish.NONE), READY, "rotation activate"),
        (replace(_MAY, wish=Wish.RETIRE), READY, "rotation activate"),
        (replace(_MAY_RETIRE, activated_at=NOW - _SOON), GONE, "may be valid"),
        (replace(_MAY_RETIRE, activated_at=None), GONE, "may be valid"),
        (replace(_MAY_RETIRE, wish=Wish.ABORT), GONE, "too late"),
        (replace(_MAY_RETIRE, wish=Wish.NONE), GONE, "rotation retire"),
        (replace(_MAY_RETIRE, wish=Wish.ACTIVATE), GONE, "rotation retire"),
        (_MAY_RETIRE, replace(GONE, served_by_old=("istiod-tls",)), "served by istiod-tls"),
    ],
)
def test_a_gate_that_is_closed_says_why(record: Rotation, facts: Facts, reason: str) -> None:
    outcome = next_step(record, facts)

    assert isinstance(outcome, Gate)
    assert reason in str(outcome)


def test_a_clock_that_jumps_back_opens_no_gate() -> None:
    assert isinstance(next_step(_MAY, replace(READY, now=NOW - timedelta(days=900))), Gate)


def test_a_record_is_read_as_it_was_written() -> None:
    record = replace(
        rotation(Phase.OVERLAP, wish=Wish.RETIRE, distributed=LONGEST, activated=LONGEST),
        next_key=key_der(ROOT.certificate.public_key()),
        next_chain=b"chain",
        old_chain=b"chain and roots",
        answer="why",
        old_expires_at=NOW,
    )
    assert rotation_of(record.values()) == record


@pytest.mark.parametrize(
    "spoilt",
    [
        *("phase", "key-algorithm", "started-at", "longest-lifetime-seconds", "activated-at"),
        *("wish", "next-key.pem"),
    ],
)
def test_a_record_that_cannot_be_read_is_corrupt(spoilt: str) -> None:
    values = rotation(Phase.PREPARE).values() | {spoilt: b"\xff?"}
    with pytest.raises(CorruptSecretError):
        rotation_of(values)


# The whole way


class Rotating(World):
    """A world whose operator rotates the key, and whose processes may die."""

    def __init__(self) -> None:
        super().__init__()
        self.keys.roots = (ROOT.certificate, NEW_ROOT.certificate)
        self.deaths = 0

    @classmethod
    async def serving(cls) -> "Rotating":
        world = cls()
        await world.run_until(WAITING)
        await world.offer(life=timedelta(days=900))
        await world.run_until("root cert:")
        return world

    def operator(self) -> RotationCommands:
        async def messages() -> dict[str, str]:
            return {it.kind.value: it.message for it in self.conditions.current()}

        return RotationCommands(
            self.store, lambda: self.now, LONGEST, messages, patience=timedelta(seconds=0.5)
        )

    @property
    def record(self) -> Rotation:
        return rotation_of(self.store.secrets[ROTATION_SECRET])

    def phase(self) -> Phase | None:
        return self.record.phase if ROTATION_SECRET in self.store.secrets else None

    def wish(self, wish: Wish) -> None:
        self.store.secrets[ROTATION_SECRET] = replace(self.record, wish=wish, answer="").values()

    def mortal(self, die_at: int, *, after: bool) -> None:
        self.store.effects = self.keys.effects = Effects(die_at, after=after)

    async def live(self) -> None:
        """Run processes, each started when the one before died, until nothing moves."""
        while True:
            try:
                await self.rounds(8)
            except CrashError:
                self.deaths += 1
                self.store.effects = self.keys.effects = Effects()
            else:
                return

    async def prepare(self) -> None:
        await self.operator().start(KeyAlgorithm.ECDSA_P384)
        await self.live()
        await self.offer_next()
        await self.live()

    async def offer_next(self, root: pki.Issued = NEW_ROOT) -> None:
        await self.offer(
            root, life=timedelta(days=900), csr_secret=NEXT.csr, secret=NEXT.certificate
        )

    async def activate(self) -> None:
        self.now += LONG_AFTER
        self.wish(Wish.ACTIVATE)
        await self.live()

    async def retire(self, wish: Wish = Wish.RETIRE_AND_DESTROY) -> None:
        self.now += LONG_AFTER
        self.wish(wish)
        await self.live()

    def roots(self) -> list[str]:
        return [
            entry.subject.rfc4514_string().removeprefix("CN=")
            for entry in self.adopted[-1].chain.roots
        ]


async def test_from_the_old_key_and_root_to_the_new_ones() -> None:
    world = await Rotating.serving()
    old = dict(world.store.secrets[KEY_SECRET])

    await world.operator().start(KeyAlgorithm.ECDSA_P384)
    await world.live()
    assert world.phase() is Phase.PREPARE
    assert "sign the CSR in istio-ca-cert-csr-next" in world.condition(Kind.ROTATING)[2]
    assert world.roots() == ["Mesh Root"]

    await world.offer_next()
    await world.live()
    assert world.phase() is Phase.DISTRIBUTE
    assert world.record.distributed_at is not None
    assert world.roots() == ["Mesh Root", "Next Root"]
    assert world.store.secrets[KEY_SECRET] == old
    keys = {key_der((await world.csr(it)).public_key()) for it in (CSR_SECRET, NEXT.csr)}
    assert keys <= world.adopted[-1].own_keys  # no leaf is issued for either
    following = dict(world.store.secrets[NEXT.key])

    await world.activate()
    assert world.phase() is Phase.OVERLAP
    assert world.store.secrets[KEY_SECRET] == following
    assert world.store.secrets[PREVIOUS_KEY_SECRET] == old
    assert not {NEXT.key, NEXT.csr, NEXT.certificate} & world.store.secrets.keys()
    assert world.roots() == ["Next Root", "Mesh Root"]
    assert len(world.keys.resident) == 2
    assert keys <= world.adopted[-1].own_keys

    await world.retire()
    assert world.phase() is None
    assert world.roots() == ["Next Root"]
    assert list(world.keys.resident) == [following["key-id"].decode()]
    assert set(world.store.secrets) == {KEY_SECRET, CSR_SECRET, CERTIFICATE_SECRET}
    assert world.condition(Kind.ROTATING)[:2] == (False, "Idle")
    assert (await world.csr()).public_key() == world.adopted[-1].signer.public_key


@pytest.mark.parametrize("wish", [Wish.NONE, Wish.ABORT])
async def test_no_leaf_is_issued_for_the_next_key_from_its_making_on(wish: Wish) -> None:
    world = await Rotating.serving()
    before_csr: list[bool] = []
    await world.operator().start(KeyAlgorithm.ECDSA_P384)
    world.store.on_read = lambda _name: before_csr.append(
        NEXT.csr not in world.store.secrets or bool(world.record.next_key)
    )
    await world.live()
    world.store.on_read = lambda _name: None
    following = key_der((await world.csr(NEXT.csr)).public_key())
    assert all(before_csr)
    assert following in world.adopted[-1].own_keys
    assert following not in world.adopted[0].own_keys

    # another replica, which leads not, and whose chain was spoilt since it began to serve
    world.leads = False
    adopted = len(world.adopted)
    record = dict(world.store.secrets[ROTATION_SECRET])
    del world.store.secrets[ROTATION_SECRET]

    def spoil(name: str) -> None:
        if name == ROTATION_SECRET and len(world.adopted) > adopted:
            world.store.secrets[ROTATION_SECRET] = record | {"wish": wish.value.encode()}
            world.store.secrets[CERTIFICATE_SECRET] = {"cert-chain.pem": b"spoilt"}

    world.store.on_read = spoil
    await world.run_until("ca_chain.refused")
    assert following not in world.adopted[adopted].own_keys
    assert following in world.adopted[-1].own_keys

    adoption = Adoption(Metrics())
    adoption.adopt(world.adopted[-1])
    assert adoption.authority is not None
    assert following in adoption.authority.own_keys


async def test_the_old_key_is_kept_when_the_operator_says_so_and_named_until_it_is_gone() -> None:
    world = await Rotating.serving()
    await world.prepare()
    await world.activate()

    await world.retire(Wish.RETIRE)

    assert len(world.keys.resident) == 2
    assert PREVIOUS_KEY_SECRET in world.store.secrets
    with pytest.raises(BridgeError, match=PREVIOUS_KEY_SECRET):
        await world.operator().start(KeyAlgorithm.ECDSA_P256)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("die_at", range(-1, 6))
async def test_an_abort_leaves_what_was_before_wherever_it_is_killed(
    die_at: int, *, after: bool
) -> None:
    world = await Rotating.serving()
    before = {name: dict(values) for name, values in world.store.secrets.items()}
    await world.prepare()
    world.wish(Wish.ABORT)
    world.mortal(die_at if die_at >= 0 else 10_000, after=after)
    await world.live()

    assert world.deaths == (die_at >= 0)
    assert world.store.secrets == before
    assert list(world.keys.resident) == [before[KEY_SECRET]["key-id"].decode()]
    assert world.roots() == ["Mesh Root"]


async def test_a_key_is_rotated_under_the_same_root() -> None:
    world = await Rotating.serving()
    await world.operator().start(KeyAlgorithm.ECDSA_P256)
    await world.live()
    await world.offer_next(ROOT)
    await world.live()
    await world.activate()
    await world.retire()

    assert world.roots() == ["Mesh Root"]
    assert len(world.keys.resident) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("die_at", range(20))
async def test_killed_at_any_effect_it_goes_on_and_never_goes_back_to_the_old_key(
    die_at: int, *, after: bool
) -> None:
    world = await Rotating.serving()
    world.mortal(die_at, after=after)
    starts = world.keys.generated
    if die_at == 0:
        with pytest.raises(CrashError):
            await world.operator().start(KeyAlgorithm.ECDSA_P384)
        world.store.effects = world.keys.effects = Effects()
        world.store.secrets.pop(ROTATION_SECRET, None)
        world.deaths = 1
    await world.prepare()
    following = dict(world.store.secrets[NEXT.key])
    await world.activate()
    await world.retire()

    assert world.deaths == 1
    assert world.phase() is None
    assert set(world.store.secrets) == {KEY_SECRET, CSR_SECRET, CERTIFICATE_SECRET}
    assert world.store.secrets[KEY_SECRET] == following
    assert world.keys.generated == starts + 1
    assert list(world.keys.resident) == [following["key-id"].decode()]
    signers = [key_der(entry.signer.public_key) for entry in world.adopted]
    assert signers == sorted(signers, key=lambda it: it == signers[-1])
    assert world.roots() == ["Next Root"]


async def test_the_effects_of_a_rotation_are_as_many_as_are_tried() -> None:
    world = await Rotating.serving()
    count = Effects(10_000)
    world.store.effects = world.keys.effects = count
    await world.prepare()
    await world.activate()
    await world.retire()

    assert 10_000 - count._left == 20


async def test_the_lives_that_are_killed_everywhere_take_every_step_there_is() -> None:
    world, aborted = await Rotating.serving(), await Rotating.serving()
    await world.prepare()
    await world.activate()
    await world.retire()
    await aborted.prepare()
    aborted.wish(Wish.ABORT)
    await aborted.live()

    lines = [it for it in (*world.lines, *aborted.lines) if it.startswith("ca_rotation.step")]
    assert {step for step in Step if any(step.value in line for line in lines)} == set(Step)


async def test_a_namespace_without_both_roots_keeps_the_gate_closed_whatever_is_wished() -> None:
    world = await Rotating.serving()
    world.readback.lack = ("shop",)
    await world.prepare()
    assert world.record.distributed_at is None
    old = dict(world.store.secrets[KEY_SECRET])

    await world.activate()

    assert world.phase() is Phase.DISTRIBUTE
    assert world.record.wish is Wish.NONE
    assert "shop" in world.record.answer
    assert world.store.secrets[KEY_SECRET] == old


async def test_a_replica_that_lags_or_is_silent_keeps_both_gates_closed() -> None:
    world = await Rotating.serving()
    lagging = report_of("bridge-2", world.adopted[-1].chain, NOW + timedelta(days=900))
    world.reports = (lagging,)
    await world.prepare()
    assert "trusted yet by replica bridge-2" in world.condition(Kind.ROTATING)[2]
    assert world.record.distributed_at is None

    world.reports = ()
    await world.live()
    await world.activate()
    world.reports = (replace(lagging, at=NOW),)
    await world.retire()
    assert "replica bridge-2, silent since" in world.record.answer
    assert len(world.keys.resident) == 2


async def test_a_wish_before_its_time_is_taken_back_with_the_reason() -> None:
    world = await Rotating.serving()
    await world.prepare()
    world.wish(Wish.ACTIVATE)
    await world.live()

    assert "trust the old root only" in world.record.answer
    world.now += LONG_AFTER
    await world.live()
    assert world.phase() is Phase.DISTRIBUTE


async def test_a_chain_of_another_key_or_of_a_root_not_imported_is_not_distributed() -> None:
    world = await Rotating.serving()
    await world.operator().start(KeyAlgorithm.ECDSA_P256)
    await world.live()
    await world.offer_next(pki.root("Foreign"))
    await world.live()
    assert "the HSM plugin refuses" in world.condition(Kind.ROTATING)[2]

    await world.offer(NEW_ROOT, csr_secret=ACTIVE.csr, secret=NEXT.certificate)
    await world.live()
    assert "not of this CA's key" in world.condition(Kind.ROTATING)[2]
    assert world.phase() is Phase.PREPARE
    assert world.roots() == ["Mesh Root"]


async def test_a_chain_changed_after_it_was_distributed_changes_nothing() -> None:
    world = await Rotating.serving()
    await world.prepare()
    world.store.secrets[NEXT.certificate] = {"cert-chain.pem": b"nonsense"}

    await world.activate()

    assert world.phase() is Phase.OVERLAP
    assert world.roots() == ["Next Root", "Mesh Root"]


@pytest.mark.parametrize("spoil", ["deleted", "spoilt"])
async def test_a_record_lost_in_the_midst_is_written_again_and_the_rotation_goes_on(
    spoil: str,
) -> None:
    world = await Rotating.serving()
    await world.prepare()
    reads = 0

    def lose(name: str) -> None:
        nonlocal reads
        if name == ROTATION_SECRET:
            reads += 1
            if reads == 3:
                if spoil == "deleted":
                    del world.store.secrets[ROTATION_SECRET]
                else:
                    world.store.secrets[ROTATION_SECRET] = {"phase": b"nonsense"}

    world.store.on_read = lose
    adopted = len(world.adopted)
    await world.run_until("ca_rotation.record_restored")
    world.store.on_read = lambda _name: None

    assert len(world.adopted) == adopted + 1
    assert world.phase() is Phase.DISTRIBUTE
    await world.activate()
    assert world.phase() is Phase.OVERLAP


async def test_a_follower_serves_along_and_takes_no_step() -> None:
    world = await Rotating.serving()
    await world.prepare()
    before = {name: dict(values) for name, values in world.store.secrets.items()}
    world.leads = False
    world.now += LONG_AFTER
    world.wish(Wish.ACTIVATE)
    await world.live()
    assert world.phase() is Phase.DISTRIBUTE
    assert world.roots() == ["Mesh Root", "Next Root"]
    assert {
        name: values for name, values in world.store.secrets.items() if name != ROTATION_SECRET
    } == {name: values for name, values in before.items() if name != ROTATION_SECRET}

    world.leads = True
    world.wish(Wish.ACTIVATE)
    await world.live()
    world.leads = False
    await world.live()
    assert world.roots() == ["Next Root", "Mesh Root"]


async def test_the_key_that_serves_is_never_destroyed() -> None:
    world = await Rotating.serving()
    await world.prepare()
    await world.activate()
    world.store.secrets[PREVIOUS_KEY_SECRET] = dict(world.store.secrets[KEY_SECRET])

    await world.retire()

    assert len(world.keys.resident) == 2
    assert any("names the key that serves" in line for line in world.lines)


async def test_what_cannot_be_asked_for_is_told_with_a_hint() -> None:
    world = await Rotating.serving()
    with pytest.raises(BridgeError, match="no rotation is under way"):
        await world.operator().ask(Wish.ACTIVATE)
    await world.operator().start(KeyAlgorithm.ECDSA_P256)
    with pytest.raises(BridgeError, match="under way"):
        await world.operator().start(KeyAlgorithm.ECDSA_P256)
    with pytest.raises(BridgeError, match="has not answered"):
        await world.operator().ask(Wish.ACTIVATE)
    await world.live()
    status = json.loads(await world.operator().status())
    assert status["phase"] == "prepare"
    assert "istio-ca-cert-csr-next" in status["waits-for"]
