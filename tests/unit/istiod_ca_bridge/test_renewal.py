from datetime import timedelta

import pytest
from cryptography import x509

from istiod_ca_bridge.conditions import Kind
from istiod_ca_bridge.config import read_config
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.renewal import RenewalPolicy
from istiod_ca_bridge.store import CSR_SECRET, KEY_SECRET, RENEWAL_SECRET
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    CrashError,
    Effects,
    ca_certificate,
    local_signer,
)
from tests.unit.istiod_ca_bridge.lifecycle_world import ROOT, WAITING, World

LIFE = timedelta(days=30)
TWO_THIRDS = NOW + timedelta(days=20, hours=1)


async def serving() -> World:
    world = World()
    await world.run_until(WAITING)
    await world.offer(life=LIFE)
    await world.run_until("root cert:")
    return world


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("33%", NOW + timedelta(days=20)),
        ("50%", NOW + timedelta(days=15)),
        ("240h", NOW + timedelta(days=20)),
    ],
)
def test_renewal_is_due_a_part_of_the_life_or_a_duration_before_the_end(
    text: str, due: object
) -> None:
    policy = read_config(
        {
            "KEY_MANAGEMENT_KEY_ID": "k",
            "CA_RENEW_BEFORE": text,
            "BRIDGE_STORE": "directory",
            "BRIDGE_STORE_DIR": "/tmp",  # noqa: S108 - it is not used
        }
    ).renewal
    certificate = ca_certificate(
        local_signer().public_key, ROOT, not_before=NOW, not_after=NOW + LIFE
    )

    found = policy.due_at(certificate)

    assert abs(found - due) < timedelta(hours=3)  # type: ignore[operator]
    assert not policy.is_late(certificate, found)
    assert policy.is_late(certificate, NOW + timedelta(days=29))


@pytest.mark.parametrize("text", ["0%", "91%", "x%", "0h", "soon"])
def test_a_renewal_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CA_RENEW_BEFORE"):
        read_config({"KEY_MANAGEMENT_KEY_ID": "k", "CA_RENEW_BEFORE": text})


async def test_when_two_thirds_are_over_a_fresh_csr_of_the_same_key_is_there() -> None:
    world = await serving()
    first = dict(world.store.secrets[CSR_SECRET])
    world.happened()
    world.now = TWO_THIRDS

    await world.run_until("ca_renewal.requested")

    csr = await world.csr(RENEWAL_SECRET)
    assert csr.is_signature_valid
    assert csr.public_key() == (await world.csr()).public_key()
    assert world.store.secrets[CSR_SECRET] == first
    assert world.condition(Kind.FRESH)[:2] == (False, "RenewalRequested")
    assert "RenewalRequested" in world.happened()


async def test_before_that_there_is_none_and_it_says_when() -> None:
    world = await serving()
    await world.run_until("ca_key.ready")
    await world.run_until("CA cert:")
    await world.rounds()

    assert RENEWAL_SECRET not in world.store.secrets
    status, reason, message = world.condition(Kind.FRESH)
    assert (status, reason) == (True, "Fresh")
    assert f"{NOW + timedelta(days=20):%FT}"[:8] in message


async def test_the_new_chain_is_taken_up_and_the_request_cleared_away() -> None:
    world = await serving()
    world.now = TWO_THIRDS
    await world.run_until("ca_renewal.requested")
    await world.offer(life=LIFE, csr_secret=RENEWAL_SECRET)

    await world.run_until("ca_renewal.done")

    assert RENEWAL_SECRET not in world.store.secrets
    assert world.adopted[-1].chain.ca.not_valid_after_utc > NOW + timedelta(days=40)
    assert world.condition(Kind.FRESH)[1] == "Fresh"


async def test_a_wrong_chain_leaves_the_old_one_serving_and_the_request_standing() -> None:
    world = await serving()
    world.now = TWO_THIRDS
    await world.run_until("ca_renewal.requested")
    asked = dict(world.store.secrets[RENEWAL_SECRET])
    served = len(world.adopted)

    def spoil(_name: str) -> None:
        if len(world.adopted) > served:
            world.store.secrets["istio-ca-cert"] = {"cert-chain.pem": b"nonsense"}

    world.store.on_read = spoil
    await world.run_until("ca_chain.refused")

    assert len(world.adopted) == served + 1
    assert world.store.secrets[RENEWAL_SECRET] == asked
    assert world.condition(Kind.CHAIN)[:2] == (False, "Refused")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_the_write_the_next_start_has_one_request(*, after: bool) -> None:
    world = await serving()
    world.now = TWO_THIRDS
    world.store.effects = Effects(0, after=after)
    with pytest.raises(CrashError):
        await world.run_until("ca_renewal.requested")
    asked = world.store.secrets.get(RENEWAL_SECRET)
    world.store.effects = Effects()

    await world.rounds()

    assert (await world.csr(RENEWAL_SECRET)).public_key() == (await world.csr()).public_key()
    if asked is not None:
        assert world.store.secrets[RENEWAL_SECRET] == asked


async def test_a_request_deleted_by_hand_is_written_again() -> None:
    world = await serving()
    world.now = TWO_THIRDS
    await world.run_until("ca_renewal.requested")
    del world.store.secrets[RENEWAL_SECRET]

    await world.run_until("ca_renewal.requested")


async def test_a_follower_writes_none() -> None:
    world = await serving()
    world.now = TWO_THIRDS
    world.leads = False

    await world.rounds()

    assert RENEWAL_SECRET not in world.store.secrets
    assert KEY_SECRET in world.store.secrets


async def test_most_of_the_time_over_it_is_urgent() -> None:
    world = await serving()
    world.now = NOW + timedelta(days=28)
    await world.run_until("ca_renewal.requested")
    await world.rounds()

    assert world.condition(Kind.FRESH)[:2] == (False, "Expiring")


def test_the_policy_takes_a_duration_over_the_fraction() -> None:
    certificate = ca_certificate(local_signer().public_key, ROOT)
    assert isinstance(certificate, x509.Certificate)
    ends = certificate.not_valid_after_utc
    assert RenewalPolicy(timedelta(days=3)).due_at(certificate) == ends - timedelta(days=3)
