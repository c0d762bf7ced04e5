"""What is remembered of the token lives for a bounded time, and not beyond its loss."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from hsm_plugin.envelope import Dek
from hsm_plugin.errors import HsmUnavailableError
from hsm_plugin.token_memory import (
    DEK_SECONDS,
    MAX_CHAINS,
    ROOT_SECONDS,
    TokenMemory,
    Validity,
)
from tests.support import pki

NOW = datetime(2026, 1, 31, tzinfo=UTC)
SECOND = timedelta(seconds=1)
VALIDITY = Validity(NOW - timedelta(days=1), NOW + timedelta(days=1))


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> TokenMemory:
    return TokenMemory(clock, max_deks=2)


def kept(memory: TokenMemory, blob: bytes, kek_id: bytes = b"kek") -> Dek:
    dek = Dek.generate()
    memory.keep_dek(kek_id, blob, dek, memory.begin())
    return dek


def assert_wiped(dek: Dek) -> None:
    assert dek.key == bytes(32)
    with pytest.raises(HsmUnavailableError, match="forgotten"):
        dek.encrypt(b"plaintext")


def test_a_dek_is_remembered_for_its_blob_and_its_kek_only(memory: TokenMemory) -> None:
    dek = kept(memory, b"blob")
    assert memory.dek(b"kek", b"blob") is dek
    assert memory.dek(b"kek", b"blub") is None
    assert memory.dek(b"kel", b"blob") is None
    assert memory.dek(b"kek\0b", b"lob") is None


def test_a_long_blob_is_known_by_itself_and_not_by_its_digest(memory: TokenMemory) -> None:
    blob = b"b" * 5000
    dek = kept(memory, blob)
    assert memory.dek(b"kek", blob) is dek
    assert memory.dek(b"kek", blob + b"b") is None
    assert memory.dek(b"kek", hashlib.sha256(blob).digest()) is None


def test_a_dek_is_wiped_when_its_time_is_over(memory: TokenMemory, clock: Clock) -> None:
    dek = kept(memory, b"blob")
    clock.seconds += DEK_SECONDS - 1
    assert memory.dek(b"kek", b"blob") is dek
    assert any(dek.key)
    clock.seconds += 1
    assert memory.dek(b"kek", b"blob") is None
    assert_wiped(dek)


def test_a_dek_is_wiped_on_time_although_nobody_asks(memory: TokenMemory, clock: Clock) -> None:
    dek = kept(memory, b"blob")
    clock.seconds += DEK_SECONDS
    memory.expire()
    assert_wiped(dek)


def test_the_use_of_a_dek_does_not_lengthen_its_life(memory: TokenMemory, clock: Clock) -> None:
    kept(memory, b"blob")
    for _ in range(3):
        clock.seconds += DEK_SECONDS / 3
        found = memory.dek(b"kek", b"blob")
    assert found is None


def test_the_oldest_of_too_many_deks_is_wiped(memory: TokenMemory) -> None:
    deks = [kept(memory, b"blob %d" % number) for number in range(3)]
    assert [memory.dek(b"kek", b"blob %d" % number) for number in range(3)] == [None, *deks[1:]]
    assert_wiped(deks[0])


def test_a_dek_that_is_unwrapped_twice_is_kept_once(memory: TokenMemory) -> None:
    first, second = kept(memory, b"blob"), kept(memory, b"blob")
    other = kept(memory, b"other")
    assert memory.dek(b"kek", b"blob") is second
    assert memory.dek(b"kek", b"other") is other
    assert_wiped(first)


def test_all_is_forgotten_when_the_token_is_lost(memory: TokenMemory) -> None:
    dek = kept(memory, b"blob")
    memory.keep_roots([pki.root("Root").certificate], memory.begin())
    memory.clear()
    assert memory.dek(b"kek", b"blob") is None
    assert memory.roots() is None
    assert_wiped(dek)


def test_what_the_token_told_before_its_loss_is_not_kept_after_it(memory: TokenMemory) -> None:
    begun, dek = memory.begin(), Dek.generate()
    memory.clear()
    memory.keep_dek(b"kek", b"blob", dek, begun)
    memory.keep_roots([], begun)
    assert memory.dek(b"kek", b"blob") is None
    assert memory.roots() is None
    assert dek.decrypt(dek.encrypt(b"still usable by its caller")) == b"still usable by its caller"


def test_roots_are_remembered_for_a_short_time(memory: TokenMemory, clock: Clock) -> None:
    roots = [pki.root("Root").certificate]
    memory.keep_roots(roots, memory.begin())
    assert memory.roots() == roots
    clock.seconds += ROOT_SECONDS
    assert memory.roots() is None


def test_no_root_at_all_is_remembered_too(memory: TokenMemory) -> None:
    assert memory.roots() is None
    memory.keep_roots([], memory.begin())
    assert memory.roots() == []


def test_roots_that_were_read_before_an_import_are_not_kept(memory: TokenMemory) -> None:
    begun = memory.begin()
    memory.forget_roots()
    memory.keep_roots([], begun)
    assert memory.roots() is None


def test_a_verified_chain_is_remembered_while_it_is_valid(memory: TokenMemory) -> None:
    roots = [pki.root().certificate]
    memory.keep_roots(roots, memory.begin())
    memory.keep_chain(b"chain", VALIDITY, roots)
    assert memory.is_verified(b"chain", NOW)
    assert not memory.is_verified(b"another", NOW)
    assert memory.is_verified(b"chain", VALIDITY.end)
    assert not memory.is_verified(b"chain", VALIDITY.end + SECOND)
    assert not memory.is_verified(b"chain", VALIDITY.begin - SECOND)


def test_a_chain_is_forgotten_with_the_roots_that_verified_it(
    memory: TokenMemory, clock: Clock
) -> None:
    for forget in (
        memory.forget_roots,
        memory.clear,
        lambda: memory.keep_roots([], memory.begin()),
        lambda: setattr(clock, "seconds", clock.seconds + ROOT_SECONDS),
    ):
        roots = [pki.root().certificate]
        memory.keep_roots(roots, memory.begin())
        memory.keep_chain(b"chain", VALIDITY, roots)
        assert memory.is_verified(b"chain", NOW)
        forget()
        assert not memory.is_verified(b"chain", NOW)


def test_what_other_roots_verified_is_not_kept(memory: TokenMemory) -> None:
    roots = [pki.root().certificate]
    memory.keep_roots(roots, memory.begin())
    memory.keep_chain(b"chain", VALIDITY, list(roots))
    assert not memory.is_verified(b"chain", NOW)


def test_only_so_many_chains_are_kept(memory: TokenMemory) -> None:
    roots = [pki.root().certificate]
    memory.keep_roots(roots, memory.begin())
    for number in range(MAX_CHAINS + 1):
        memory.keep_chain(bytes([number % 256, number // 256]), VALIDITY, roots)
    assert not memory.is_verified(bytes([MAX_CHAINS % 256, MAX_CHAINS // 256]), NOW)


def test_a_dek_shows_no_key() -> None:
    dek = Dek.generate()
    assert dek.key.hex() not in repr(dek)
    assert repr(bytes(dek.key))[2:-1] not in repr(dek)
