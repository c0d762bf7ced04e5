"""Tokens judged by the API server: asked once for many, remembered for seconds.

A sidecar that comes back and a herd that shares one ServiceAccount token cost one review each.
What is remembered is a keyed digest, never a token, and never longer than the token lives.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import jwt

from istiod_ca_bridge.authn import MAX_TOKEN_BYTES, Caller, Method
from istiod_ca_bridge.errors import UnauthenticatedError
from istiod_ca_bridge.identity import workload_identity
from istiod_ca_bridge.token_digest import TokenDigest

_MAX_REMEMBERED = 20_000
_MAX_NAME = 253
_SERVICE_ACCOUNT = "system:serviceaccount"
_PARTS = 4


@dataclass(frozen=True, slots=True)
class ReviewedToken:
    """Whose a token is, as the API server says."""

    username: str
    pod: str = ""
    pod_uid: str = ""


class TokenReviewer(Protocol):
    """Asks who a token was issued to."""

    async def review(self, token: str) -> ReviewedToken:
        """Return whose the token is.

        UnauthenticatedError when it is nobody's or not for us, ClusterUnavailableError when
        that cannot be told now.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    caller: Caller
    until: float
    """On the monotonic clock."""

    expires: float
    """The token, in seconds since 1970."""


class _Review:
    """One question under way, and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[Caller]) -> None:
        self.task = task
        self.waiting = 0


class ReviewedTokenAuthenticator:
    """Has tokens reviewed; one review at a time for each token."""

    def __init__(
        self,
        reviewer: TokenReviewer,
        trust_domain: str,
        remember: timedelta,
        clock: Callable[[], datetime],
        *,
        observe: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        capacity: int = _MAX_REMEMBERED,
    ) -> None:
        self._reviewer = reviewer
        self._trust_domain = trust_domain
        self._remember = remember.total_seconds()
        self._clock = clock
        self._observe = observe
        """Is told how each token was judged: remembered, shared or asked."""

        self._monotonic = monotonic
        self._capacity = capacity
        self._digest = TokenDigest()
        self._remembered: dict[bytes, _Remembered] = {}
        self._under_way: dict[bytes, _Review] = {}

    async def authenticate(self, token: str) -> Caller:
        """Return the ServiceAccount's workload; UnauthenticatedError otherwise.

        ClusterUnavailableError when the API server cannot be asked now.
        """
        now = self._clock()
        digest = self._digest.of(token)
        known = self._remembered.get(digest)
        if (
            known is not None
            and self._monotonic() < known.until
            and now.timestamp() < known.expires
        ):
            self._observe("remembered")
            return known.caller
        life = _life_left(token, now)
        self._remembered.pop(digest, None)
        review = self._under_way.get(digest)
        self._observe("shared" if review else "asked")
        if review is None:
            review = _Review(asyncio.create_task(self._review(token, digest, life)))
            self._under_way[digest] = review
        review.waiting += 1
        try:
            return await asyncio.shield(review.task)
        finally:
            review.waiting -= 1
            if not review.waiting:
                review.task.cancel()
                if self._under_way.get(digest) is review:
                    del self._under_way[digest]

    async def _review(self, token: str, digest: bytes, life: float) -> Caller:
        asked = self._monotonic()
        reviewed = await self._reviewer.review(token)
        caller = _caller(reviewed, self._trust_domain)
        expires = self._clock().timestamp() + life
        self._note(digest, _Remembered(caller, asked + min(self._remember, life), expires))
        return caller

    def _note(self, digest: bytes, entry: _Remembered) -> None:
        """Remember an answer; of too many, those that were learnt first are forgotten."""
        now = self._monotonic()
        if now >= entry.until:
            return
        for oldest in list(self._remembered)[:2]:
            if now >= self._remembered[oldest].until:
                del self._remembered[oldest]
        if len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = entry


def _life_left(token: str, now: datetime) -> float:
    """Return for how many seconds the token says it is good; refused when it is not.

    Nothing is verified here: what a forger writes can only shorten how long it is believed.
    """
    if not token or len(token) > MAX_TOKEN_BYTES:
        raise UnauthenticatedError(f"the token is empty or over {MAX_TOKEN_BYTES} bytes")
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise UnauthenticatedError("the token is refused: it is malformed") from None
    expires = claims.get("exp")
    if not isinstance(expires, int | float):
        raise UnauthenticatedError("the token is refused: it lacks an expiry")
    try:
        left = expires - now.timestamp()
    except OverflowError:
        raise UnauthenticatedError("the token is refused: it is malformed") from None
    if not left > 0:
        raise UnauthenticatedError("the token is refused: it is expired")
    return left


def _caller(reviewed: ReviewedToken, trust_domain: str) -> Caller:
    parts = reviewed.username.split(":")
    if len(parts) != _PARTS or ":".join(parts[:2]) != _SERVICE_ACCOUNT:
        raise UnauthenticatedError("the token is refused: it is not of a ServiceAccount")
    return Caller(
        workload_identity(trust_domain, *parts[2:]),
        Method.TOKEN,
        pod=reviewed.pod[:_MAX_NAME],
        pod_uid=reviewed.pod_uid[:_MAX_NAME],
    )
