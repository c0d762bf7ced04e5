"""What the store does with tokens that others have filled, and with its own sessions."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag

from hsm_plugin.errors import (
    ConflictError,
    HsmUnavailableError,
    KeyNotFoundError,
    PinRefusedError,
    RejectedBlobError,
)
from hsm_plugin.keys import (
    KEK_LABEL,
    SIGNING_KEY_LABEL,
    KeyAlgorithm,
    KeyStore,
    Sealed,
    SignatureAlgorithm,
)
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from tests.contract.key_stores import pkcs11_store
from tests.support import token_view
from tests.support.softhsm import SoftHsm


def make_kek(hsm: SoftHsm, kek_id: bytes, *, times: int = 1, label: str = KEK_LABEL) -> None:
    """Make KEKs as the reference does: as often as it is asked."""
    with token_view.viewed(hsm) as view:
        for _ in range(times):
            view.session.generate_key(KeyType.AES, 256, id=kek_id, label=label, store=True)


def make_pair(hsm: SoftHsm, key_id: bytes, *, times: int = 1, extractable: bool = False) -> None:
    with token_view.viewed(hsm) as view:
        for _ in range(times):
            view.session.generate_keypair(
                KeyType.RSA,
                2048,
                id=key_id,
                label=SIGNING_KEY_LABEL,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template={Attribute.EXTRACTABLE: extractable, Attribute.SENSITIVE: True},
            )


def test_two_keks_of_one_id_are_not_chosen_from(hsm: SoftHsm) -> None:
    make_kek(hsm, b"twice", times=2)
    with pkcs11_store(hsm) as store:
        for call in (
            lambda: store.wrap(b"twice", b"plaintext", b""),
            lambda: store.unwrap(b"twice", Sealed(b"i" * 16, b"c", b"t" * 16), b""),
            lambda: store.generate_kek(b"twice"),
        ):
            with pytest.raises(ConflictError, match="2 objects"):
                cast("Any", call)()


def test_a_key_of_that_id_with_another_label_is_no_kek(hsm: SoftHsm) -> None:
    make_kek(hsm, b"other", label="someone-elses")
    with pkcs11_store(hsm) as store:
        with pytest.raises(KeyNotFoundError):
            store.wrap(b"other", b"plaintext", b"")
        assert store.generate_kek(b"other")


def test_a_signing_key_that_can_leave_the_token_is_not_used(hsm: SoftHsm) -> None:
    make_pair(hsm, b"loose", extractable=True)
    make_pair(hsm, b"tight")
    with pkcs11_store(hsm) as store:
        assert store.signing_key(b"tight").key_id == b"tight"
        with pytest.raises(ConflictError, match="can leave the token"):
            store.signing_key(b"loose")
        with pytest.raises(ConflictError, match="can leave the token"):
            store.generate_signing_key(b"loose", KeyAlgorithm.RSA_2048)
        assert store.sign(b"tight", SignatureAlgorithm.RSA_PKCS1_SHA256, b"d" * 32)


def test_a_signing_key_that_can_leave_the_token_does_not_sign(hsm: SoftHsm) -> None:
    make_pair(hsm, b"loose", extractable=True)
    with pkcs11_store(hsm) as store, pytest.raises(ConflictError, match="can leave the token"):
        store.sign(b"loose", SignatureAlgorithm.RSA_PKCS1_SHA256, b"d" * 32)


def test_two_signing_keys_of_one_id_are_not_chosen_from(hsm: SoftHsm) -> None:
    make_pair(hsm, b"twice", times=2)
    with pkcs11_store(hsm) as store:
        with pytest.raises(ConflictError, match="2 objects"):
            store.signing_key(b"twice")
        with pytest.raises(ConflictError, match="2 objects"):
            store.sign(b"twice", SignatureAlgorithm.RSA_PKCS1_SHA256, b"d" * 32)


def destroy_kek_elsewhere(hsm: SoftHsm, kek_id: bytes) -> None:
    """Destroy a KEK in another process."""
    script = (
        "import sys; from pathlib import Path; from pkcs11 import ObjectClass;"
        "from tests.support import token_view; from tests.support.softhsm import SoftHsm;"
        "folder, label, pin, module, kek_id = sys.argv[1:];"
        "hsm = SoftHsm(folder=Path(folder), label=label, pin=pin, module=module);"
        "view = token_view.viewed(hsm); token = view.__enter__();"
        "token.the(ObjectClass.SECRET_KEY, kek_id.encode()).destroy()"
    )
    arguments = [str(hsm.folder), hsm.label, hsm.pin, hsm.module, kek_id.decode()]
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=root, check=True)


def test_a_kek_that_another_process_removed_is_not_found_and_can_be_made_again(
    hsm: SoftHsm,
) -> None:
    with pkcs11_store(hsm) as store:
        store.generate_kek(b"k")
        sealed = store.wrap(b"k", b"plaintext", b"")
        assert store.unwrap(b"k", sealed, b"") == b"plaintext"
        destroy_kek_elsewhere(hsm, b"k")
        with pytest.raises(KeyNotFoundError):
            store.wrap(b"k", b"plaintext", b"")
        assert store.generate_kek(b"k")
        with pytest.raises(RejectedBlobError):
            store.unwrap(b"k", sealed, b"")
        assert store.wrap(b"k", b"plaintext", b"").ciphertext


@pytest.fixture
def store(hsm: SoftHsm) -> Iterator[KeyStore]:
    with pkcs11_store(hsm) as store:
        yield store


def test_there_is_one_session_a_thread_at_most_however_many_calls_and_how_they_end(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cryptoki = cast("Pkcs11Store", store)._cryptoki
    opened: list[int] = []
    open_session = cryptoki.open_session

    def counted(slot: int) -> int:
        opened.append(slot)
        return open_session(slot)

    monkeypatch.setattr(cryptoki, "open_session", counted)
    store.generate_kek(b"k")
    sealed = store.wrap(b"k", b"plaintext", b"")

    def work(_: int) -> None:
        assert store.unwrap(b"k", sealed, b"") == b"plaintext"
        with pytest.raises(RejectedBlobError):
            store.unwrap(b"k", sealed, b"other")
        with pytest.raises(KeyNotFoundError):
            store.wrap(b"gone", b"plaintext", b"")
        assert not store.generate_kek(b"k")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert len(opened) <= 8


def test_calls_under_way_end_before_a_reconnect_and_later_ones_find_all_again(
    store: KeyStore,
) -> None:
    opened = cast("Pkcs11Store", store)
    store.generate_kek(b"k")
    sealed = store.wrap(b"k", b"plaintext", b"")
    stop = threading.Event()

    def work() -> int:
        done = 0
        while not stop.is_set():
            try:
                assert store.unwrap(b"k", sealed, b"") == b"plaintext"
                done += 1
            except HsmUnavailableError as error:
                assert "is not connected" in str(error)  # noqa: PT017 - allowed, not required
        return done

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        for _ in range(10):
            opened.connect()
        stop.set()
        assert all(worker.result() > 0 for worker in workers)
    assert store.unwrap(b"k", sealed, b"") == b"plaintext"


def test_a_closed_store_refuses_every_call(hsm: SoftHsm) -> None:
    with pkcs11_store(hsm) as store:
        store.generate_kek(b"k")
    assert not cast("Pkcs11Store", store).is_connected
    with pytest.raises(HsmUnavailableError, match="is not connected"):
        store.wrap(b"k", b"plaintext", b"")


def test_a_refused_pin_reaches_the_token_once(
    hsm: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", str(hsm.config))
    pins = ["wrong"]
    store = Pkcs11Store(
        hsm.module, hsm.label, lambda: pins[0], PinGuard(tmp_path / "pin-guard.json")
    )
    with pytest.raises(PinRefusedError, match="refused the PIN"):
        store.connect()
    for _ in range(3):
        with pytest.raises(PinRefusedError, match="not tried again"):
            store.connect()
    assert not store.is_connected
    pins[0] = hsm.pin
    assert store.connect().label == hsm.label
    store.probe()
    store.close()
