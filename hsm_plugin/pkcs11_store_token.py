"""The connection to a token: found by its label or serial number, logged in, and lost.

One session logs in and stays open; it carries the login of the whole process (PKCS#11 2.40,
section 5.6). Calls borrow sessions of a pool, with the handles found through them. When the
token is lost, every session and handle is void: the module is initialised again, the tokens of
the list are looked for in their order, and keys are found by label and id. What a failed call
calls for is said by hsm_plugin.recovery alone.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from hsm_plugin import recovery
from hsm_plugin.cryptoki import (
    CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED,
    Cryptoki,
    CryptokiError,
    TokenInfo,
)
from hsm_plugin.errors import (
    ConfigError,
    ConflictError,
    HsmPluginError,
    HsmUnavailableError,
    PinRefusedError,
    UnsupportedError,
)
from hsm_plugin.keys import TokenIdentity
from hsm_plugin.pin_guard import Outcome, PinGuard, PinState
from hsm_plugin.pkcs11_store_constants import Mechanism
from hsm_plugin.pkcs11_store_sessions import Session, SessionPool
from hsm_plugin.recovery import Action
from hsm_plugin.token_reference import TokenReference
from hsm_plugin.worker_snapshot import PinSigns, WorkerSnapshot

_Result = TypeVar("_Result")

_PROBE_BYTES = 8


class TokenConnection:
    """One token of a list, logged in. All methods may be called from any thread."""

    def __init__(
        self,
        module: str,
        tokens: Sequence[TokenReference],
        read_pin: Callable[[], str],
        guard: PinGuard,
        *,
        max_sessions: int = 64,
    ) -> None:
        self.cryptoki = Cryptoki(module)
        self._tokens = tokens
        self._rank = 0
        self._read_pin = read_pin
        self._guard = guard
        self._max_sessions = max_sessions
        self._pool: SessionPool | None = None
        self._mechanisms: frozenset[int] = frozenset()
        self._slot, self._serial = 0, ""
        self._pin_states: dict[str, PinState] = {}
        self._loss = Action.REINITIALISE
        self._gate = threading.Condition()
        self._inside = 0
        self._changing = threading.Lock()

    def connect(self, order: Sequence[int] = ()) -> TokenIdentity:
        """Return the first token that can be used, logged in; what was open before is void.

        `order`: places in the list; all in its order when empty. HsmUnavailableError when none
        can be used, PinRefusedError when each that is named refuses the PIN.
        """
        failures: list[HsmPluginError] = []
        with self._changing:
            self._empty()
            for rank in order or range(len(self._tokens)):
                try:
                    return replace(self._connect(rank), passed_over=_listed(failures))
                except CryptokiError as error:
                    failures.append(self._unavailable(error, "connecting"))
                except (HsmUnavailableError, ConfigError) as error:
                    failures.append(error)
        raise _together(failures)

    def close(self) -> None:
        """Log out and finalise the module; calls that are under way end first."""
        with self._changing:
            self._empty()
            try:
                self.cryptoki.stop()
            except CryptokiError as error:
                raise self._unavailable(error, "closing") from None

    @property
    def is_connected(self) -> bool:
        """True until a call finds the token lost, or close."""
        return self._pool is not None

    @property
    def loss(self) -> Action:
        """What the loss of the token calls for: REINITIALISE or HSM_DOWN."""
        return self._loss

    def require(self, mechanism: Mechanism, purpose: str) -> None:
        """Return when the token's list has the mechanism; UnsupportedError otherwise."""
        if mechanism not in self._mechanisms:
            raise UnsupportedError(
                f"the token does not offer CKM_{mechanism.name}, which {purpose} needs",
                hint="choose another algorithm, or enable the mechanism in the HSM's policy",
            )

    def require_preferred(self, doing: str) -> None:
        """Return when the token is the list's first; ConflictError on a stand-by.

        What is made or destroyed on a stand-by is not on the others.
        """
        if self._rank:
            raise ConflictError(
                f"{doing} waits for the preferred token: {self._tokens[self._rank].name}, a "
                "stand-by, is in use",
                hint=f"bring {self._tokens[0].name} back, then copy the key to the stand-bys",
            )

    def probe(self) -> None:
        """Return when the token answers and knows us; HsmUnavailableError when it does not."""
        self.call("probing the token", self.check)

    def check(self, pool: SessionPool, session: Session) -> None:
        """Raise CryptokiError when the token does not answer, or does not know our login."""
        self.cryptoki.random(session.handle, _PROBE_BYTES)
        pool.expect_login(session)

    def snapshot(self) -> WorkerSnapshot:
        """Return sessions, calls and the PIN's signs: as the token tells them, or last told."""
        pool = self._pool
        if pool is not None:
            with contextlib.suppress(HsmUnavailableError, CryptokiError), self._admitted():
                self._see_pin()
        return WorkerSnapshot(
            sessions_open=pool.open if pool else 0,
            sessions_limit=pool.limit if pool else 0,
            pins={
                serial: _signs(state, self._guard.of_token(serial).outcomes())
                for serial, state in list(self._pin_states.items())
            },
            calls=self.cryptoki.times.total(),
        )

    def _empty(self) -> None:
        """Refuse new calls, and return when those inside the module have left it."""
        with self._gate:
            self._pool = None
            self._gate.wait_for(lambda: self._inside == 0)

    def _connect(self, rank: int) -> TokenIdentity:
        self.cryptoki.restart()
        slot, token = self._find_token(self._tokens[rank])
        self._slot, self._serial = slot, token.serial or token.label
        self._pin_states[self._serial] = _pin_state(token)
        self._mechanisms = self.cryptoki.mechanisms(slot)
        limit = self._max_sessions
        if token.max_sessions is not None:
            limit = min(limit, token.max_sessions - 1)  # the login keeps one
        if limit < 1:
            raise HsmUnavailableError(
                f'the token "{token.label}" allows {token.max_sessions} session(s) in all',
                hint="allow this client 2 sessions or more in the HSM's settings",
            )
        self._log_in(self.cryptoki.open_session(slot), token.label)
        pool = SessionPool(self.cryptoki, slot, limit)
        with pool.session() as session:
            self.check(pool, session)
        self._rank = rank
        self._pool = pool
        return TokenIdentity(
            label=token.label,
            serial=token.serial,
            model=token.model,
            slot_id=slot,
            session_limit=limit,
            rank=rank,
        )

    def _find_token(self, wanted: TokenReference) -> tuple[int, TokenInfo]:
        tokens = [(slot, self.cryptoki.token_info(slot)) for slot in self.cryptoki.slots()]
        found = [
            (slot, token)
            for slot, token in tokens
            if wanted.matches(
                label=token.label,
                serial=token.serial,
                manufacturer=token.manufacturer,
                model=token.model,
                slot=slot,
            )
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"{len(found)} tokens bear {wanted}",
                hint="give each token a label of its own, or name one by its serial number: "
                "pkcs11:token=...;serial=...",
            )
        labels = sorted({token.label for _, token in tokens if token.label})
        seen = ", ".join(f'"{label}"' for label in labels) or "none"
        raise HsmUnavailableError(
            f"no token bears {wanted}; tokens seen: {seen}",
            hint="compare P11_TOKEN with the slot label, and check the HSM's network and "
            "client certificate",
        )

    def _log_in(self, session: int, label: str) -> None:
        """Return logged in. An attempt without an answer stays on the guard's record."""
        pin = self._read_pin()
        guard = self._guard.of_token(self._serial)
        guard.permit(pin, self._pin_states[self._serial])
        try:
            self.cryptoki.login(session, pin.encode())
        except CryptokiError as error:
            if error.code not in recovery.PIN_REFUSED:
                raise
            guard.refused(pin)
            with contextlib.suppress(CryptokiError):
                self._see_pin()
            self.cryptoki.stop()
            raise PinRefusedError(
                f'the token "{label}" refused the PIN: {recovery.name_of(error.code)}',
                hint="write the right PIN into the PIN file; it is picked up by itself",
            ) from None
        guard.settled()

    def _see_pin(self) -> None:
        token = self.cryptoki.token_info(self._slot)
        if (token.serial or token.label) == self._serial:
            self._pin_states[self._serial] = _pin_state(token)

    def call(self, doing: str, operation: Callable[[SessionPool, Session], _Result]) -> _Result:
        """Return what the operation returns, tried twice where the table says that it helps."""
        with self._admitted() as pool:
            try:
                with pool.session() as session:
                    return operation(pool, session)
            except CryptokiError as error:
                if recovery.action_of(error.code) not in (Action.RETRY, Action.NEW_SESSION):
                    raise self._failure(error, doing) from None
            try:
                with pool.session() as session:
                    return operation(pool, session)
            except CryptokiError as error:
                self._probe_after(error, pool)
                raise self._failure(error, doing) from None

    def _probe_after(self, error: CryptokiError, pool: SessionPool) -> None:
        """Declare the token lost when a call failed twice and a probe fails too."""
        if recovery.action_of(error.code) is Action.FATAL:
            return
        try:
            with pool.session() as session:
                self.check(pool, session)
        except CryptokiError as probe:
            self._lost(recovery.action_of(probe.code))

    def _failure(self, error: CryptokiError, doing: str) -> HsmPluginError:
        action = recovery.action_of(error.code)
        if action is Action.FATAL:
            return UnsupportedError(
                f"the token cannot do this: {error} while {doing}",
                hint="compare with the token's mechanism list and its policies",
            )
        if action in (Action.REINITIALISE, Action.HSM_DOWN):
            self._lost(action)
        return self._unavailable(error, doing)

    def _lost(self, action: Action) -> None:
        self._loss = Action.HSM_DOWN if action is Action.HSM_DOWN else Action.REINITIALISE
        self._pool = None

    def _unavailable(self, error: CryptokiError, doing: str) -> HsmUnavailableError:
        return HsmUnavailableError(
            f"the token failed: {error} while {doing}",
            hint="check the HSM and its client; the plugin reconnects by itself",
        )

    @contextmanager
    def _admitted(self) -> Iterator[SessionPool]:
        with self._gate:
            pool = self._pool
            if pool is None:
                raise HsmUnavailableError(
                    f'the token "{self._tokens[self._rank].name}" is not connected',
                    hint="the plugin looks for it in the background; its log says what it meets",
                )
            self._inside += 1
        try:
            yield pool
        finally:
            with self._gate:
                self._inside -= 1
                if not self._inside:
                    self._gate.notify_all()


def _together(failures: list[HsmPluginError]) -> HsmPluginError:
    """Return one error for all tokens that were tried; the PIN's only when each refused it."""
    if len(failures) == 1:
        return failures[0]
    text = f"none of {len(failures)} tokens can be used: {_listed(failures)}"
    refused = all(isinstance(failure, PinRefusedError) for failure in failures)
    kind = PinRefusedError if refused else HsmUnavailableError
    return kind(text, hint=failures[0].hint)


def _listed(failures: list[HsmPluginError]) -> str:
    return "; ".join(map(str, failures))


def _signs(state: PinState, attempts: list[Outcome]) -> PinSigns:
    return PinSigns(
        locked=state.locked,
        final_try=state.final_try,
        count_low=state.count_low,
        refused_values=attempts.count(Outcome.REFUSED),
        pending_values=attempts.count(Outcome.PENDING),
    )


def _pin_state(token: TokenInfo) -> PinState:
    return PinState(
        locked=bool(token.flags & CKF_USER_PIN_LOCKED),
        final_try=bool(token.flags & CKF_USER_PIN_FINAL_TRY),
        count_low=bool(token.flags & CKF_USER_PIN_COUNT_LOW),
    )
