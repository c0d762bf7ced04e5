from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes

from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.errors import (
    BridgeError,
    ConfigError,
    CorruptSecretError,
    KeyServiceUnavailableError,
    StoreUnavailableError,
)
from istiod_ca_bridge.records import key_record
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import CERTIFICATE_SECRET, CSR_SECRET, KEY_SECRET
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    CrashError,
    Effects,
)
from tests.unit.istiod_ca_bridge.lifecycle_world import ROOT, WAITING, World

MODES = [
    (KeyMode.RESIDENT, KeyAlgorithm.ECDSA_P256),
    (KeyMode.RESIDENT, KeyAlgorithm.ECDSA_P384),
    (KeyMode.RESIDENT, KeyAlgorithm.RSA_2048),
    (KeyMode.SEALED, KeyAlgorithm.RSA_2048),
]


@pytest.mark.parametrize(("mode", "algorithm"), MODES)
async def test_from_nothing_to_waiting_with_a_key_and_a_csr(
    mode: KeyMode, algorithm: KeyAlgorithm
) -> None:
    world = World(mode, algorithm)

    await world.run_until(WAITING, 2)

    csr = await world.csr()
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == "O=cluster.local"
    assert not list(csr.extensions)
    expected = hashes.SHA384 if algorithm is KeyAlgorithm.ECDSA_P384 else hashes.SHA256
    assert isinstance(csr.signature_hash_algorithm, expected)
    assert world.store.secrets[CSR_SECRET]["csr-id"] == b"cluster.local"
    assert world.keys.generated == 1
    assert world.adopted == []


async def test_a_right_chain_is_served_with_the_guide_s_lines() -> None:
    world = World()
    await world.run_until(WAITING)
    await world.offer()

    await world.run_until("root cert:")

    assert world.adopted[0].chain.roots == (ROOT.certificate,)
    titles = [line.split(":")[0] for line in world.lines if "cert" in line.split(":")[0]]
    assert titles[-3:] == ["CA cert", "intermediate certs", "root cert"]


async def test_a_chain_to_a_root_that_the_hsm_does_not_know_is_refused_and_waiting_goes_on() -> (
    None
):
    world = World()
    await world.run_until(WAITING)
    await world.offer(pki.root("Foreign Root"))

    await world.run_until(WAITING, 3)

    assert world.adopted == []
    assert sum("ca_chain.refused" in line for line in world.lines) == 1
    await world.offer()
    await world.run_until("root cert:")


async def test_a_second_root_is_served_only_when_the_hsm_knows_it() -> None:
    world = World()
    await world.run_until(WAITING)
    chain = await world.offer()
    second = pki.root("Second Root")
    world.store.secrets[CERTIFICATE_SECRET] = {"cert-chain.pem": chain + second.pem}

    await world.run_until("ca_chain.refused")
    assert world.adopted == []

    world.keys.roots = (ROOT.certificate, second.certificate)
    await world.run_until("root cert:")
    assert world.adopted[0].chain.roots == (ROOT.certificate, second.certificate)


async def test_a_wrong_chain_leaves_the_old_one_serving_and_a_right_one_replaces_it() -> None:
    world = World()
    await world.run_until(WAITING)
    first = await world.offer()
    changes = iter([first.replace(b"M", b"N", 1), None])

    def change(name: str) -> None:
        if name == CERTIFICATE_SECRET and world.adopted:
            new = next(changes, None)
            if new is not None:
                world.store.secrets[CERTIFICATE_SECRET] = {"cert-chain.pem": new}

    world.store.on_read = change
    await world.run_until("ca_chain.refused")
    assert len(world.adopted) == 1
    world.store.on_read = lambda _name: None

    world.adopted.clear()
    await world.offer()
    await world.run_until("root cert:")
    assert len(world.adopted) == 1


async def test_a_chain_that_disappears_while_serving_is_told_and_not_forgotten() -> None:
    world = World()
    await world.run_until(WAITING)
    await world.offer()

    def take_away(name: str) -> None:
        if name == CERTIFICATE_SECRET and world.adopted:
            world.store.secrets.pop(CERTIFICATE_SECRET, None)

    world.store.on_read = take_away
    await world.run_until("is gone; the CA keeps its chain")

    assert WAITING not in world.lines[-1]
    assert len(world.adopted) == 1


async def test_a_chain_not_valid_yet_is_taken_up_when_its_time_comes() -> None:
    world = World()
    await world.run_until(WAITING)
    await world.offer()
    world.now = NOW - timedelta(days=1)
    await world.run_until("not valid before")

    world.now = NOW
    await world.run_until("root cert:")


@pytest.mark.parametrize(("mode", "algorithm"), [MODES[0], MODES[3]])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(3))
async def test_killed_at_any_step_the_next_start_goes_on_with_one_key(
    mode: KeyMode, algorithm: KeyAlgorithm, step: int, *, after: bool
) -> None:
    world = World(mode, algorithm)
    world.store.effects = world.keys.effects = Effects(step, after=after)
    with pytest.raises(CrashError):
        await world.run_until(WAITING)
    record_before = world.store.secrets.get(KEY_SECRET)
    world.store.effects = world.keys.effects = Effects()

    await world.run_until(WAITING)

    if record_before is not None:
        assert world.store.secrets[KEY_SECRET] == record_before
    if mode is KeyMode.RESIDENT:
        assert len(world.keys.resident) == 1
        assert list(world.keys.resident) == [world.store.secrets[KEY_SECRET]["key-id"].decode()]
    signer = await (
        world.keys.open_resident(key_record(world.store.secrets[KEY_SECRET]))  # type: ignore[arg-type]
        if mode is KeyMode.RESIDENT
        else world.keys.unseal(key_record(world.store.secrets[KEY_SECRET]))  # type: ignore[arg-type]
    )
    assert (await world.csr()).public_key() == signer.public_key


async def test_of_two_first_starts_the_loser_takes_the_winner_s_key() -> None:
    world = World()
    rival = World()
    await rival.run_until(WAITING)
    world.keys = rival.keys
    reads = iter([None])

    def win(name: str) -> None:
        if name == CERTIFICATE_SECRET and next(reads, "done") is None:
            world.store.secrets.update(rival.store.secrets)

    world.store.on_read = win
    await world.run_until(WAITING)

    assert world.store.secrets == rival.store.secrets
    assert world.keys.generated == 1


@pytest.mark.parametrize("spoilt", ["kek-id", "encrypted-dek", "key-id", "key-algorithm"])
async def test_a_spoilt_key_secret_stops_the_process_and_makes_no_key(spoilt: str) -> None:
    world = World()
    await world.run_until(WAITING)
    world.store.secrets[KEY_SECRET][spoilt] = b""
    before = {name: dict(values) for name, values in world.store.secrets.items()}

    error = await world.failure()

    assert isinstance(error, CorruptSecretError)
    assert spoilt in str(error)
    assert world.keys.generated == 1
    assert world.store.secrets == before


async def test_a_sealed_key_that_was_tampered_with_stops_the_process() -> None:
    world = World(KeyMode.SEALED, KeyAlgorithm.RSA_2048)
    await world.run_until(WAITING)
    blob = world.store.secrets[KEY_SECRET]["encrypted-skey"]
    world.store.secrets[KEY_SECRET]["encrypted-skey"] = blob[:8] + b"AAAA" + blob[12:]

    error = await world.failure()

    assert isinstance(error, CorruptSecretError)
    assert KEY_SECRET in str(error)
    assert world.keys.generated == 1


async def test_a_csr_secret_that_was_tampered_with_stops_the_process() -> None:
    world = World()
    await world.run_until(WAITING)
    blob = world.store.secrets[CSR_SECRET]["encrypted-csr"]
    world.store.secrets[CSR_SECRET]["encrypted-csr"] = blob[:8] + b"AAAA" + blob[12:]

    error = await world.failure()

    assert isinstance(error, CorruptSecretError)
    assert CSR_SECRET in str(error)


async def test_the_csr_of_another_key_stops_the_process() -> None:
    world, other = World(), World()
    await world.run_until(WAITING)
    await other.run_until(WAITING)
    world.store.secrets[CSR_SECRET] = other.store.secrets[CSR_SECRET]

    error = await world.failure()

    assert isinstance(error, CorruptSecretError)
    assert "another key" in str(error)


@pytest.mark.parametrize("left", [CSR_SECRET, CERTIFICATE_SECRET])
async def test_a_lost_key_secret_is_not_replaced_while_its_csr_or_certificate_exists(
    left: str,
) -> None:
    world = World()
    await world.run_until(WAITING)
    await world.offer()
    world.store.secrets = {left: world.store.secrets[left]}

    error = await world.failure()

    assert isinstance(error, CorruptSecretError)
    assert "the CA key is lost" in str(error)
    assert world.keys.generated == 1


async def test_a_key_that_the_hsm_lost_is_never_made_again_under_its_csr() -> None:
    world = World()
    await world.run_until(WAITING)
    world.keys.resident.clear()

    await world.run_until("ca_key.not_prepared")

    assert world.keys.generated == 1


async def test_a_lost_csr_secret_is_made_again_of_the_same_key() -> None:
    world = World()
    await world.run_until(WAITING)
    before = await world.csr()
    del world.store.secrets[CSR_SECRET]

    await world.run_until(WAITING)

    assert (await world.csr()).public_key() == before.public_key()


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        (World(KeyMode.SEALED, KeyAlgorithm.RSA_2048), "CA_KEY_MODE=resident"),
        (World(kek_id="other"), "KEY_MANAGEMENT_KEY_ID=kek"),
        (World(trust_domain="else.test"), "TRUST_DOMAIN=cluster.local"),
    ],
)
async def test_settings_that_do_not_fit_the_secrets_stop_the_process(
    changed: World, hint: str
) -> None:
    world = World()
    await world.run_until(WAITING)
    world.settings = changed.settings

    error = await world.failure()

    assert isinstance(error, ConfigError)
    assert hint in error.hint


async def test_a_key_that_exists_keeps_its_algorithm() -> None:
    world = World()
    await world.run_until(WAITING)
    world.settings = World(algorithm=KeyAlgorithm.RSA_4096).settings

    await world.run_until("ca_key.algorithm_kept")

    assert world.keys.generated == 1


async def test_a_missing_kek_is_waited_for() -> None:
    world = World()
    world.keys.kek_id = "not made yet"
    await world.run_until("ca_key.not_prepared")

    world.keys.kek_id = "kek"
    await world.run_until(WAITING)


async def test_a_store_and_a_plugin_that_are_away_are_waited_for() -> None:
    world = World()
    troubles: list[BridgeError | None] = [
        StoreUnavailableError("the API server cannot be reached"),
        KeyServiceUnavailableError("the plugin cannot be reached"),
        None,
    ]

    def fail(_name: str) -> None:
        trouble = troubles[0] if len(troubles) == 1 else troubles.pop(0)
        if trouble is not None:
            raise trouble

    world.store.on_read = fail
    await world.run_until(WAITING)

    assert sum("ca_key.delayed" in line for line in world.lines) == 2
