import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest

from istiod_ca_bridge.authn import MAX_TOKEN_BYTES
from istiod_ca_bridge.errors import ClusterUnavailableError, UnauthenticatedError
from istiod_ca_bridge.token_review import ReviewedToken, ReviewedTokenAuthenticator
from tests.unit.istiod_ca_bridge.doubles import NOW

CART = ReviewedToken("system:serviceaccount:shop:cart", "cart-0", "u2")


@dataclass(slots=True)
class Reviewer:
    """An API server that answers when it is let."""

    answer: ReviewedToken | Exception = CART
    asked: list[str] = field(default_factory=list, repr=False)
    abandoned: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def review(self, token: str) -> ReviewedToken:
        self.asked.append(token)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass(slots=True)
class Clocks:
    """Wall and monotonic time, moved by hand."""

    now: datetime = NOW

    def wall(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.now.timestamp()

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def reviewer() -> Reviewer:
    reviewer = Reviewer()
    reviewer.open.set()
    return reviewer


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def authenticator(
    reviewer: Reviewer, clocks: Clocks, *, seconds: float = 10, capacity: int = 100
) -> ReviewedTokenAuthenticator:
    return ReviewedTokenAuthenticator(
        reviewer,
        "cluster.local",
        timedelta(seconds=seconds),
        clocks.wall,
        monotonic=clocks.monotonic,
        capacity=capacity,
    )


def token(name: str = "a", seconds: float = 600, **changes: Any) -> str:
    claims = {"exp": int(NOW.timestamp()) + seconds, "jti": name} | changes
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


async def test_a_reviewed_token_is_its_account_and_pod(reviewer: Reviewer, clocks: Clocks) -> None:
    caller = await authenticator(reviewer, clocks).authenticate(token())

    assert str(caller.identity) == "spiffe://cluster.local/ns/shop/sa/cart"
    assert (caller.pod, caller.pod_uid) == ("cart-0", "u2")


@pytest.mark.parametrize(
    "username",
    [
        "",
        "alice",
        "system:node:n1",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:cart:x",
        "system:serviceaccount:shop:../x",
        "System:serviceaccount:shop:cart",
    ],
)
async def test_who_is_no_service_account_is_refused(
    username: str, reviewer: Reviewer, clocks: Clocks
) -> None:
    reviewer.answer = ReviewedToken(username)

    with pytest.raises(UnauthenticatedError):
        await authenticator(reviewer, clocks).authenticate(token())


async def test_one_review_answers_all_that_ask_about_a_token_at_once(clocks: Clocks) -> None:
    reviewer = Reviewer()
    tested = authenticator(reviewer, clocks, seconds=0)
    callers = [asyncio.create_task(tested.authenticate(token())) for _ in range(50)]
    await asyncio.sleep(0)
    reviewer.open.set()

    assert {str(caller.identity) for caller in await asyncio.gather(*callers)} == {
        "spiffe://cluster.local/ns/shop/sa/cart"
    }
    assert len(reviewer.asked) == 1


async def test_different_tokens_are_never_taken_for_each_other(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks)
    first = await tested.authenticate(token("a"))
    reviewer.answer = ReviewedToken("system:serviceaccount:shop:till")

    assert await tested.authenticate(token("b")) != first
    assert await tested.authenticate(token("a")) == first
    assert len(reviewer.asked) == 2


async def test_an_answer_is_remembered_for_seconds_and_then_asked_for_again(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks)
    await tested.authenticate(token())
    clocks.pass_seconds(9.9)
    await tested.authenticate(token())
    assert len(reviewer.asked) == 1

    clocks.pass_seconds(0.1)
    reviewer.answer = UnauthenticatedError("deleted")
    with pytest.raises(UnauthenticatedError, match="deleted"):
        await tested.authenticate(token())


async def test_nothing_is_remembered_when_that_is_switched_off(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks, seconds=0)
    await tested.authenticate(token())
    await tested.authenticate(token())

    assert len(reviewer.asked) == 2


async def test_an_answer_is_not_believed_past_the_token_s_own_end(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks)
    await tested.authenticate(token(seconds=3))
    clocks.pass_seconds(3)

    with pytest.raises(UnauthenticatedError, match="expired"):
        await tested.authenticate(token(seconds=3))


async def test_an_answer_is_not_believed_when_the_wall_clock_jumps_past_the_token_s_end(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = ReviewedTokenAuthenticator(
        reviewer, "cluster.local", timedelta(seconds=10), clocks.wall, monotonic=lambda: 0.0
    )
    await tested.authenticate(token(seconds=3))
    clocks.pass_seconds(3)

    with pytest.raises(UnauthenticatedError, match="expired"):
        await tested.authenticate(token(seconds=3))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (UnauthenticatedError("no"), UnauthenticatedError),
        (ClusterUnavailableError("away"), ClusterUnavailableError),
    ],
)
async def test_a_refusal_is_not_remembered(
    answer: Exception, kind: type[Exception], reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks)
    reviewer.answer = answer
    with pytest.raises(kind):
        await tested.authenticate(token())
    reviewer.answer = CART

    await tested.authenticate(token())


async def test_a_caller_that_leaves_takes_no_answer_from_the_others(clocks: Clocks) -> None:
    reviewer = Reviewer()
    tested = authenticator(reviewer, clocks)
    leaving, staying = (asyncio.create_task(tested.authenticate(token())) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    reviewer.open.set()

    assert (await staying).pod == "cart-0"
    assert leaving.cancelled()


async def test_a_review_that_nobody_waits_for_is_given_up(clocks: Clocks) -> None:
    reviewer = Reviewer()
    tested = authenticator(reviewer, clocks)
    leaving = asyncio.create_task(tested.authenticate(token()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.sleep(0)
    assert reviewer.abandoned == 1

    reviewer.open.set()
    await tested.authenticate(token())
    assert len(reviewer.asked) == 2


async def test_only_so_many_are_remembered_and_no_token_itself(
    reviewer: Reviewer, clocks: Clocks
) -> None:
    tested = authenticator(reviewer, clocks, capacity=3)
    for number in range(10):
        await tested.authenticate(token(str(number)))

    assert len(tested._remembered) == 3
    assert not any(token(str(number)) in repr(vars(tested)) for number in range(10))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lambda: "", "empty"),
        (lambda: "x" * (MAX_TOKEN_BYTES + 1), "over"),
        (lambda: "garbage", "malformed"),
        (lambda: "a.b.c", "malformed"),
        (lambda: token(seconds=-1), "expired"),
        (lambda: token(exp="soon"), "expiry"),
        (lambda: token(exp=float("nan")), "expired"),
    ],
)
async def test_what_is_no_live_token_costs_the_api_server_nothing(
    text: Callable[[], str], reason: str, reviewer: Reviewer, clocks: Clocks
) -> None:
    with pytest.raises(UnauthenticatedError, match=reason):
        await authenticator(reviewer, clocks).authenticate(text())
    assert reviewer.asked == []
