"""Whose lists of revocations are signed at each stage of a rotation, wherever the keys lie."""

from dataclasses import replace

from istiod_ca_bridge.ca_key import CaKeys
from istiod_ca_bridge.list_issuers import ListIssuers
from istiod_ca_bridge.rotation import Phase
from istiod_ca_bridge.signer import KeyAlgorithm, key_der
from istiod_ca_bridge.store import KEY_SECRET, NEXT, PREVIOUS_KEY_SECRET, ROTATION_SECRET
from tests.unit.istiod_ca_bridge.test_rotation import LONG_AFTER, Rotating


def list_issuers(world: Rotating) -> ListIssuers:
    keys = CaKeys(world.settings.keys, world.store, world.keys, lambda: False, world.log)
    return ListIssuers(
        world.store,
        keys,
        lambda: world.record if ROTATION_SECRET in world.store.secrets else None,
        lambda: world.now,
    )


async def signing(found: ListIssuers) -> set[bytes]:
    return {it.key for it in await found.issuers()}


async def lists(found: ListIssuers) -> tuple[int, int, int]:
    """Return how many keys sign lists, of how many chains, and how many of these are shown."""
    return len(await found.issuers()), len(found.listed), len(found.shown)


async def test_the_next_key_signs_lists_before_it_signs_leaves_and_the_old_one_after() -> None:
    world = await Rotating.serving()
    found = list_issuers(world)
    old = key_der(world.adopted[-1].signer.public_key)
    await world.operator().start(KeyAlgorithm.ECDSA_P384)
    await world.live()
    assert await lists(found) == (0, 0, 0)

    await world.offer_next()
    await world.live()
    assert world.phase() is Phase.DISTRIBUTE
    [following] = await signing(found)
    assert following != old
    assert await lists(found) == (1, 1, 0)

    await world.activate()
    assert await signing(found) == await signing(list_issuers(world)) == {old, following}
    assert await lists(found) == (2, 2, 2)

    await world.retire()
    assert await lists(found) == (0, 0, 0)


async def test_the_old_key_is_found_while_its_secret_is_being_moved() -> None:
    world = await Rotating.serving()
    await world.prepare()
    before = dict(world.store.secrets[KEY_SECRET])
    await world.activate()
    both = await signing(list_issuers(world))

    moved = world.store.secrets
    moved[NEXT.key], moved[KEY_SECRET] = moved[KEY_SECRET], before
    del moved[PREVIOUS_KEY_SECRET]
    assert await signing(list_issuers(world)) == both

    del moved[KEY_SECRET]  # a key that is gone is left out, and what it showed still counts
    assert await lists(list_issuers(world)) == (1, 2, 2)


async def test_a_chain_that_has_expired_needs_no_list() -> None:
    world = await Rotating.serving()
    await world.prepare()
    await world.activate()
    world.now += 1000 * LONG_AFTER

    assert await lists(list_issuers(world)) == (0, 0, 0)


async def test_a_chain_that_was_spoilt_by_hand_is_left_out() -> None:
    world = await Rotating.serving()
    await world.prepare()
    await world.activate()
    world.store.secrets[ROTATION_SECRET] = replace(world.record, old_chain=b"spoilt").values()

    assert await lists(list_issuers(world)) == (1, 1, 1)


async def test_a_key_is_opened_once_and_again_when_its_secret_has_changed() -> None:
    world = await Rotating.serving()
    await world.prepare()
    found = list_issuers(world)
    opened = sum("ca_key.ready" in line for line in world.lines)
    for _ in range(3):
        await found.issuers()
    assert sum("ca_key.ready" in line for line in world.lines) == opened + 1

    await world.activate()
    assert await lists(found) == (2, 2, 2)
