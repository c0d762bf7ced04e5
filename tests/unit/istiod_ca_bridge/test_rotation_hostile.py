"""A record of a rotation that somebody forged delays the rotation, and never ends the process."""

import pytest

from istiod_ca_bridge.errors import CorruptSecretError
from istiod_ca_bridge.rotation import Phase, Step, rotation_of
from istiod_ca_bridge.store import ROTATION_SECRET
from tests.unit.istiod_ca_bridge.doubles import pem
from tests.unit.istiod_ca_bridge.lifecycle_world import ROOT
from tests.unit.istiod_ca_bridge.test_rotation import Rotating, rotation


@pytest.mark.parametrize(
    "chain", [b"", b"no PEM", pem(ROOT.certificate)[:300], pem(ROOT.certificate) + b"-----BEGIN X"]
)
async def test_a_forged_chain_of_the_next_key_is_told_and_the_ca_serves_on(chain: bytes) -> None:
    world = await Rotating.serving()
    await world.prepare()
    record = dict(world.store.secrets[ROTATION_SECRET])
    adopted = len(world.adopted)

    def forge(name: str) -> None:
        if name == ROTATION_SECRET and len(world.adopted) > adopted:
            world.store.secrets[ROTATION_SECRET] = record | {"next-chain.pem": chain}

    world.store.on_read = forge
    await world.run_until("ca_rotation.delayed")
    world.store.on_read = lambda _name: None

    assert world.adopted[-1].chain.roots[0] == ROOT.certificate
    [told] = [line for line in world.lines if "ca_rotation.delayed" in line]
    assert "next-chain.pem of istio-ca-rotation cannot be read" in told
    world.store.secrets[ROTATION_SECRET] = record
    await world.activate()
    assert world.phase() is Phase.OVERLAP


async def test_a_rotation_whose_chain_was_spoilt_can_be_aborted() -> None:
    world = await Rotating.serving()
    await world.prepare()
    record = dict(world.store.secrets[ROTATION_SECRET])
    adopted = len(world.adopted)

    def forge(name: str) -> None:
        if name == ROTATION_SECRET and len(world.adopted) > adopted:
            held = world.store.secrets.get(ROTATION_SECRET)
            if held == record:
                forged = {"next-chain.pem": b"no PEM", "wish": b"abort"}
                world.store.secrets[ROTATION_SECRET] = record | forged

    world.store.on_read = forge
    await world.run_until(Step.FINISH.value)
    assert ROTATION_SECRET not in world.store.secrets


def _overlap() -> dict[str, bytes]:
    return rotation(Phase.OVERLAP).values() | {"old-chain.pem": pem(ROOT.certificate)}


@pytest.mark.parametrize("phase", [Phase.ACTIVATE, Phase.OVERLAP])
@pytest.mark.parametrize(
    ("roots", "hint"),
    [({}, "backup"), ({"old-roots.pem": pem(ROOT.certificate)}, "the version of the bridge that")],
    ids=["spoilt", "of-an-earlier-version"],
)
def test_a_record_that_would_have_nobody_trust_the_old_root_is_refused(
    phase: Phase, roots: dict[str, bytes], hint: str
) -> None:
    values = rotation(phase).values() | {"old-chain.pem": b""} | roots
    with pytest.raises(CorruptSecretError, match=r"there is no old-chain\.pem") as caught:
        rotation_of(values)
    assert hint in caught.value.hint


async def test_an_old_chain_that_is_taken_away_in_the_overlap_stays_trusted() -> None:
    world = await Rotating.serving()
    await world.prepare()
    await world.activate()
    record = dict(world.store.secrets[ROTATION_SECRET])
    adopted = len(world.adopted)

    def forge(name: str) -> None:
        if name == ROTATION_SECRET and len(world.adopted) > adopted:
            forged = {"old-chain.pem": b""}
            if world.store.secrets[ROTATION_SECRET] == record:
                world.store.secrets[ROTATION_SECRET] = record | forged

    world.store.on_read = forge
    await world.run_until("ca_rotation.record_restored")
    world.store.on_read = lambda _name: None

    assert {entry.subject for entry in world.adopted[-1].chain.roots} >= {ROOT.certificate.subject}
    assert world.store.secrets[ROTATION_SECRET] == record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("longest-lifetime-seconds", b"9999999999900"),
        ("longest-lifetime-seconds", b"-1"),
        ("longest-lifetime-seconds", "٣".encode()),
        ("activated-at", b"9999-12-31T23:59:59Z"),
        ("started-at", b"0001-01-01T00:00:00Z"),
        ("wish", b"x" * (1 << 20)),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_name_of_its_key(key: str, value: bytes) -> None:
    sound = _overlap()
    rotation_of(sound)
    with pytest.raises(CorruptSecretError, match=key) as caught:
        rotation_of(dict(sound) | {key: value})
    assert len(str(caught.value)) < 200
