"""Once it serves, whatever is done to its Secrets by hand is told, and the CA goes on."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from istiod_ca_bridge.conditions import Kind
from istiod_ca_bridge.errors import KeyServiceUnavailableError, StoreUnavailableError
from istiod_ca_bridge.store import CERTIFICATE_SECRET, CSR_SECRET, KEY_SECRET
from tests.unit.istiod_ca_bridge.doubles import NOW
from tests.unit.istiod_ca_bridge.lifecycle_world import WAITING, World


async def serving() -> World:
    world = World()
    await world.run_until(WAITING)
    await world.offer()
    await world.run_until("root cert:")
    world.adopted.clear()
    return world


def once_serving(world: World, change: Callable[[], object]) -> None:
    """Do this as soon as the next process serves."""
    done = False

    def note(_name: str) -> None:
        nonlocal done
        if world.adopted and not done:
            done = True
            change()

    world.store.on_read = note


async def test_a_deleted_key_secret_is_told_and_written_again_by_the_leader() -> None:
    world = await serving()
    before = dict(world.store.secrets[KEY_SECRET])
    once_serving(world, lambda: world.store.secrets.pop(KEY_SECRET))

    await world.run_until("ca_key.restored")

    assert world.store.secrets[KEY_SECRET] == before
    assert world.keys.generated == 1
    assert len(world.adopted) == 1
    reasons = world.happened()
    assert reasons.index("SecretMissing") < reasons.index("KeySecretRestored")


async def test_a_follower_does_not_write_it_again() -> None:
    world = await serving()
    world.leads = False
    once_serving(world, lambda: world.store.secrets.pop(KEY_SECRET))

    await world.rounds(12)

    assert KEY_SECRET not in world.store.secrets
    assert world.condition(Kind.KEY)[:2] == (False, "SecretMissing")


async def test_whoever_deletes_key_and_certificate_wants_another_ca() -> None:
    world = await serving()

    def clear() -> None:
        world.store.secrets.clear()

    once_serving(world, clear)
    await world.rounds(12)

    assert world.store.secrets == {}
    assert len(world.adopted) == 1


@pytest.mark.parametrize("spoilt", ["key-id", "encrypted-dek", "kek-id", "key-algorithm"])
async def test_a_spoilt_key_secret_is_told_and_not_written_over_and_mended_it_is_well(
    spoilt: str,
) -> None:
    world = await serving()
    right = dict(world.store.secrets[KEY_SECRET])
    wrong = right | {spoilt: b""}
    once_serving(world, lambda: world.store.secrets.update({KEY_SECRET: wrong}))
    await world.run_until("ca_key.secret_unusable")

    assert world.store.secrets[KEY_SECRET] == wrong
    assert len(world.adopted) == 1
    assert world.condition(Kind.KEY)[:2] == (False, "SecretUnusable")
    world.store.secrets[KEY_SECRET] = right
    world.store.on_read = lambda _name: None
    await world.rounds()
    assert world.condition(Kind.KEY)[:2] == (True, "Available")


async def test_another_key_in_the_secret_is_not_served_with() -> None:
    world, other = await serving(), World()
    await other.run_until(WAITING)
    world.keys.resident |= other.keys.resident
    before = dict(world.store.secrets[KEY_SECRET])
    once_serving(
        world, lambda: world.store.secrets.update({KEY_SECRET: other.store.secrets[KEY_SECRET]})
    )

    await world.run_until("ca_chain.refused")

    assert len(world.adopted) == 1
    assert "not of this CA's key" in world.condition(Kind.CHAIN)[2]
    world.store.secrets[KEY_SECRET] = before


async def test_a_spoilt_or_deleted_csr_disturbs_nobody_who_serves() -> None:
    world = await serving()
    once_serving(world, lambda: world.store.secrets.update({CSR_SECRET: {"csr-id": b""}}))
    await world.rounds()

    assert len(world.adopted) == 1
    assert world.condition(Kind.CHAIN)[:2] == (True, "Accepted")


async def test_a_new_chain_is_taken_up_though_the_key_secret_is_gone() -> None:
    world = await serving()
    world.leads = False
    new = await world.offer(life=timedelta(days=60))
    world.store.secrets[CERTIFICATE_SECRET] = {"cert-chain.pem": new}

    once_serving(world, lambda: world.store.secrets.pop(KEY_SECRET))
    await world.run_until("ca_key.secret_unusable")

    assert world.adopted[-1].chain.ca.not_valid_after_utc == NOW + timedelta(days=60)


@pytest.mark.parametrize(
    "trouble",
    [
        StoreUnavailableError("the API server cannot be reached"),
        KeyServiceUnavailableError("the plugin cannot be reached"),
    ],
)
async def test_what_is_away_while_it_serves_is_told_once_and_nothing_ends(
    trouble: Exception,
) -> None:
    world = await serving()
    looks = 0

    def fail(_name: str) -> None:
        nonlocal looks
        if world.adopted:
            looks += 1
            if looks < 20:
                raise trouble

    world.store.on_read = fail
    await world.run_until("ca_chain.not_checked")
    await world.rounds()

    assert sum("ca_chain.not_checked" in line for line in world.lines) == 1
    assert world.condition(Kind.CHAIN)[:2] == (True, "Accepted")


async def test_the_first_start_waits_for_the_leader_and_takes_up_what_it_made() -> None:
    world = World()
    world.leads = False
    await world.run_until("ca_key.awaited")
    assert world.store.secrets == {}
    assert world.keys.generated == 0

    leader = World()
    leader.store, leader.keys = world.store, world.keys
    await leader.run_until(WAITING)
    await world.run_until(WAITING)

    assert world.keys.generated == 1


@pytest.mark.parametrize("jump", [timedelta(days=4000), -timedelta(days=4000)])
async def test_a_clock_that_jumps_and_comes_back_leaves_all_as_it_was(jump: timedelta) -> None:
    world = await serving()
    before = {name: dict(values) for name, values in world.store.secrets.items()}
    rounds = 0

    def turn(name: str) -> None:
        nonlocal rounds
        if world.adopted and name == KEY_SECRET:
            rounds += 1
            world.now = NOW + jump if 2 <= rounds < 6 else NOW

    world.store.on_read = turn
    await world.rounds(12)

    assert len(world.adopted) == 1
    assert world.store.secrets == before
    assert world.condition(Kind.FRESH)[1] == "Fresh"
    assert world.condition(Kind.CHAIN)[:2] == (True, "Accepted")


async def test_the_hsm_away_while_a_chain_is_offered_is_one_event_not_many() -> None:
    world = await serving()
    new = await world.offer(life=timedelta(days=60))

    async def away(certificates: list[bytes]) -> None:
        del certificates
        raise KeyServiceUnavailableError("the plugin cannot be reached")

    right = world.keys.verify_chain
    world.store.secrets[CERTIFICATE_SECRET] = {"cert-chain.pem": new}
    world.happened()
    world.keys.verify_chain = away  # type: ignore[method-assign]
    await world.rounds(6)
    assert world.happened().count("HsmUnavailable") == 1
    assert world.condition(Kind.KEY)[:2] == (False, "HsmUnavailable")

    world.keys.verify_chain = right  # type: ignore[method-assign]
    await world.rounds()
    assert world.condition(Kind.KEY)[:2] == (True, "Available")
