"""Sessions of one login: opened when needed, fewer than the token allows, checked after a rest."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hsm_plugin import deadline, recovery
from hsm_plugin.cryptoki import CKS_RW_USER_FUNCTIONS, Cryptoki, CryptokiError
from hsm_plugin.recovery import Action

IDLE_SECONDS = 30.0
"""How long a session may rest before it is asked whether it still lives."""


@dataclass(slots=True)
class Session:
    """An open session and the objects found through it; both end together."""

    handle: int
    keys: dict[tuple[int, str, bytes], "KeyHandle"] = field(default_factory=dict)
    used_at: float = 0.0
    keys_version: int = 0
    """The pool's when the keys were found."""

    def known_keys(self, version: int) -> dict[tuple[int, str, bytes], "KeyHandle"]:
        """Return the keys found since the last one was destroyed: handles may be used again."""
        if self.keys_version != version:
            self.keys.clear()
            self.keys_version = version
        return self.keys


@dataclass(frozen=True, slots=True)
class KeyHandle:
    """A key as one session knows it."""

    handle: int
    key_type: int


class SessionPool:
    """At most `limit` sessions. The most recently used is lent first."""

    def __init__(self, cryptoki: Cryptoki, slot: int, limit: int) -> None:
        self._cryptoki = cryptoki
        self._slot = slot
        self._limit = limit
        self._open = 0
        self._idle: list[Session] = []
        self._changed = threading.Condition()
        self.keys_version = 0
        """Grows when a key is destroyed, so that no session uses its handle any more."""
        self.token_makes_iv = False
        """The token was found to refuse the caller's IV for AES-GCM."""

    @property
    def limit(self) -> int:
        """Sessions that may be open at once; less than at first when the token refused one."""
        return self._limit

    @property
    def open(self) -> int:
        """Sessions that are open now."""
        return self._open

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session, waiting for one until the deadline. One that failed is closed."""
        lent = self._take()
        try:
            self._check(lent)
            yield lent
        except CryptokiError as error:
            if recovery.action_of(error.code) in (Action.FATAL, Action.RETRY):
                self._give(lent)
            else:
                self._discard(lent)
            raise
        except BaseException:
            self._give(lent)
            raise
        self._give(lent)

    def expect_login(self, session: Session) -> None:
        """Raise CKR_USER_NOT_LOGGED_IN when the session cannot see private objects."""
        if self._cryptoki.session_state(session.handle) != CKS_RW_USER_FUNCTIONS:
            raise CryptokiError("C_GetSessionInfo", recovery.CKR_USER_NOT_LOGGED_IN)

    def _take(self) -> Session:
        while True:
            with self._changed:
                while not self._idle and self._open >= self._limit:
                    self._changed.wait(deadline.remaining())
                deadline.remaining()
                if self._idle:
                    return self._idle.pop()
                self._open += 1
            try:
                return Session(self._cryptoki.open_session(self._slot), used_at=time.monotonic())
            except CryptokiError as error:
                if not self._may_wait_after(error):
                    raise

    def _may_wait_after(self, error: CryptokiError) -> bool:
        """Return true when the token has no session left for us, but we have some already."""
        with self._changed:
            self._open -= 1
            if error.code != recovery.CKR_SESSION_COUNT or not self._open:
                return False
            self._limit = self._open
            return True

    def _check(self, session: Session) -> None:
        if time.monotonic() - session.used_at > IDLE_SECONDS:
            self.expect_login(session)

    def _give(self, session: Session) -> None:
        session.used_at = time.monotonic()
        with self._changed:
            self._idle.append(session)
            self._changed.notify()

    def _discard(self, session: Session) -> None:
        try:
            self._cryptoki.close_session(session.handle)
        except CryptokiError:
            pass  # it was void already, which may be why it is dropped
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify()
