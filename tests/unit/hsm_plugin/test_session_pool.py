"""Sessions are lent again, asked after a rest whether they live, and dropped when they failed."""

import threading
import time
from dataclasses import dataclass, field

import pytest

from hsm_plugin import deadline, pkcs11_store_sessions, recovery
from hsm_plugin.cryptoki import CKS_RW_USER_FUNCTIONS, CryptokiError
from hsm_plugin.errors import ExpiredError
from hsm_plugin.pkcs11_store_sessions import SessionPool

_CKS_RW_PUBLIC = 2


@dataclass(slots=True)
class Module:
    """The three functions of the module that the pool uses."""

    opened: int = 0
    closed: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    state: int | CryptokiError = CKS_RW_USER_FUNCTIONS
    most: int = 100

    def open_session(self, _slot: int) -> int:
        if self.opened - len(self.closed) >= self.most:
            raise CryptokiError("C_OpenSession", recovery.CKR_SESSION_COUNT)
        self.opened += 1
        return self.opened

    def close_session(self, handle: int) -> None:
        self.closed.append(handle)

    def session_state(self, handle: int) -> int:
        self.asked.append(handle)
        if isinstance(self.state, CryptokiError):
            raise self.state
        return self.state


def pool_of(module: Module, limit: int = 4) -> SessionPool:
    return SessionPool(module, 1, limit)  # type: ignore[arg-type] # the part it uses


def use(pool: SessionPool) -> int:
    with pool.session() as session:
        return session.handle


@pytest.fixture
def module() -> Module:
    return Module()


def test_a_session_in_use_lately_is_lent_again_without_a_question(module: Module) -> None:
    pool = pool_of(module)
    assert {use(pool) for _ in range(5)} == {1}
    assert module.asked == []


def test_a_session_that_rested_is_asked_whether_it_still_lives(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(module)
    use(pool)
    monkeypatch.setattr(pkcs11_store_sessions, "IDLE_SECONDS", -1.0)
    assert use(pool) == 1
    assert module.asked == [1]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (_CKS_RW_PUBLIC, recovery.CKR_USER_NOT_LOGGED_IN),
        (
            CryptokiError("C_GetSessionInfo", recovery.CKR_SESSION_HANDLE_INVALID),
            recovery.CKR_SESSION_HANDLE_INVALID,
        ),
    ],
    ids=["logged out", "gone"],
)
def test_a_session_that_died_while_it_rested_is_dropped_before_it_is_used(
    module: Module, monkeypatch: pytest.MonkeyPatch, state: int | CryptokiError, code: int
) -> None:
    pool = pool_of(module)
    use(pool)
    monkeypatch.setattr(pkcs11_store_sessions, "IDLE_SECONDS", -1.0)
    module.state = state
    with pytest.raises(CryptokiError) as caught:
        use(pool)
    assert caught.value.code == code
    assert module.closed == [1]
    assert pool.open == 0
    module.state = CKS_RW_USER_FUNCTIONS
    monkeypatch.setattr(pkcs11_store_sessions, "IDLE_SECONDS", 30.0)
    assert use(pool) == 2


@pytest.mark.parametrize(
    ("code", "is_kept"),
    [
        (recovery.CKR_DATA_INVALID, True),
        (recovery.CKR_SESSION_COUNT, True),
        (recovery.CKR_SESSION_HANDLE_INVALID, False),
        (recovery.CKR_DEVICE_ERROR, False),
    ],
)
def test_a_session_is_kept_after_a_refusal_and_dropped_after_a_fault(
    module: Module,
    code: int,
    is_kept: bool,  # noqa: FBT001 - a case of the table
) -> None:
    pool = pool_of(module)
    with pytest.raises(CryptokiError), pool.session():
        raise CryptokiError("C_Sign", code)
    assert module.closed == ([] if is_kept else [1])
    assert use(pool) == (1 if is_kept else 2)


def test_a_token_that_has_no_more_sessions_lowers_the_limit(module: Module) -> None:
    module.most = 1
    pool = pool_of(module)
    with pool.session():
        waited = threading.Thread(target=use, args=(pool,))
        waited.start()
        end = time.monotonic() + 5
        while pool.limit != 1 and time.monotonic() < end:
            time.sleep(0.001)
        assert waited.is_alive()
    waited.join(5)
    assert not waited.is_alive()
    assert (pool.limit, module.opened) == (1, 1)


def test_a_token_without_any_session_says_so(module: Module) -> None:
    module.most = 0
    with pytest.raises(CryptokiError) as caught:
        use(pool_of(module))
    assert caught.value.code == recovery.CKR_SESSION_COUNT


def test_who_waits_for_a_session_waits_no_longer_than_its_deadline(module: Module) -> None:
    pool = pool_of(module, limit=1)
    with (
        pool.session(),
        deadline.until(time.monotonic() + 0.05),
        pytest.raises(ExpiredError),
    ):
        use(pool)
