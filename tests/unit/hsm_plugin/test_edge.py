"""The edge turns errors into statuses, and lets nothing else out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc
import pytest

from hsm_plugin.admission import Lane
from hsm_plugin.callers import Callers, local_address
from hsm_plugin.edge import Edge
from hsm_plugin.errors import AuditFailedError, BadRequestError, HsmPluginError


class Aborted(Exception):  # noqa: N818 - what gRPC's own abort raises has no public name
    """What a real context's abort raises."""


class Context:
    """The methods of a call's context that the edge uses."""

    def __init__(self, remaining: float | None = None, peer: str = "unix:") -> None:
        self._remaining = remaining
        self._peer = peer
        self.answer: tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]] | None = None

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return self._remaining

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, bytes], ...] = (),
    ) -> NoReturn:
        self.answer = (code, details, trailing_metadata)
        raise Aborted


class Token:
    """The one method of the token's client that the edge uses."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []

    def bound(self, lane: Lane, deadline: float) -> None:
        self.lanes.append(lane)
        assert deadline > 0


class Witness:
    """Sees what it is told, and may be told to fail."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, object, grpc.StatusCode]] = []
        self.is_blind = False
        self.is_full = False

    def check(self) -> None:
        if self.is_blind:
            raise AuditFailedError("the audit log cannot be written")

    def ended(
        self, request: object, response: object, code: grpc.StatusCode, seconds: float, _: object
    ) -> Awaitable[None]:
        assert seconds >= 0
        self.seen.append((request, response, code))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.is_full:
            written.set_exception(AuditFailedError("the disk is full"))
        else:
            written.set_result(None)
        return written


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def edge(witness: Witness) -> Edge[None]:
    return Edge(Token(), Callers(), lambda _: None, witness)  # type: ignore[arg-type] # the part it uses


def raiser(error: BaseException) -> Callable[[str], str]:
    def call(_: str) -> str:
        raise error

    return call


async def answered(edge: Edge[None], context: Context, call: Callable[[str], str]) -> str:
    async def method(_: None, request: str) -> str:
        return call(request)

    return await edge.answer(context, method, "request", b"lane")  # type: ignore[arg-type] # as above


async def test_an_answer_passes(edge: Edge[None]) -> None:
    assert await answered(edge, Context(), str.upper) == "REQUEST"


async def test_our_error_is_a_status_with_its_hint_apart(edge: Edge[None]) -> None:
    context = Context()
    with pytest.raises(Aborted):
        await answered(edge, context, raiser(BadRequestError("cause", hint="do this")))
    assert context.answer == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "cause (do this)",
        (("hint-bin", b"do this"),),
    )


async def test_an_error_without_a_hint_sends_none(edge: Edge[None]) -> None:
    context = Context()
    with pytest.raises(Aborted):
        await answered(edge, context, raiser(HsmPluginError("cause")))
    assert context.answer == (grpc.StatusCode.INTERNAL, "cause", ())


async def test_an_unforeseen_error_is_internal_and_its_words_stay_inside(
    edge: Edge[None], caplog: pytest.LogCaptureFixture
) -> None:
    context = Context()
    with caplog.at_level(logging.INFO), pytest.raises(Aborted):
        await answered(edge, context, raiser(ValueError("canary")))
    assert context.answer is not None
    assert context.answer[0] is grpc.StatusCode.INTERNAL
    assert "canary" not in context.answer[1] + caplog.text
    assert vars(caplog.records[-1])["error"] == "ValueError"


async def test_a_call_with_no_time_left_never_runs(edge: Edge[None]) -> None:
    context = Context(remaining=0.0)
    calls: list[str] = []

    def call(request: str) -> str:
        calls.append(request)
        return "answer"

    with pytest.raises(Aborted):
        await answered(edge, context, call)
    assert calls == []
    assert context.answer is not None
    assert context.answer[0] is grpc.StatusCode.DEADLINE_EXCEEDED


TAG = "0123456789abcdef"


def peer_of(tag: str) -> str:
    return "unix-abstract:" + local_address(tag, "n", pid=7, uid=1337, gid=1337).lstrip("\0")


async def test_a_call_waits_in_the_lane_of_its_client() -> None:
    token = Token()
    edge: Edge[None] = Edge(token, Callers(TAG), lambda _: None, Witness())  # type: ignore[arg-type] # as above
    await answered(edge, Context(peer=peer_of(TAG)), str.upper)
    assert token.lanes == [Lane(b"lane", "1337/7")]


@pytest.mark.parametrize("peer", ["unix:", "unix:/tmp/x", peer_of("f" * 16)])
async def test_a_call_that_came_past_the_front_is_refused(
    peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token, context = Token(), Context(peer=peer)
    edge: Edge[None] = Edge(token, Callers(TAG), lambda _: None, Witness())  # type: ignore[arg-type] # as above
    with pytest.raises(Aborted):
        await answered(edge, context, str.upper)
    assert context.answer is not None
    assert context.answer[0] is grpc.StatusCode.UNAUTHENTICATED
    assert token.lanes == []
    assert vars(caplog.records[-1])["caller"] == {"kind": "stranger"}


async def test_a_refusal_is_logged_with_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    edge: Edge[None] = Edge(Token(), Callers(TAG), lambda _: None, Witness())  # type: ignore[arg-type] # as above
    with caplog.at_level(logging.INFO), pytest.raises(Aborted):
        await answered(
            edge, Context(peer=peer_of(TAG)), raiser(BadRequestError("cause", hint="do this"))
        )
    assert vars(caplog.records[-1])["caller"]["uid"] == 1337


async def test_the_witness_sees_what_was_answered_and_what_was_refused(
    edge: Edge[None], witness: Witness
) -> None:
    await answered(edge, Context(), str.upper)
    with pytest.raises(Aborted):
        await answered(edge, Context(), raiser(BadRequestError("cause")))
    assert witness.seen == [
        ("request", "REQUEST", grpc.StatusCode.OK),
        ("request", None, grpc.StatusCode.INVALID_ARGUMENT),
    ]


async def test_the_witness_sees_a_call_that_its_client_gave_up(
    edge: Edge[None], witness: Witness
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await answered(edge, Context(), raiser(asyncio.CancelledError()))
    assert witness.seen == [("request", None, grpc.StatusCode.CANCELLED)]


async def test_no_answer_leaves_that_was_not_recorded(edge: Edge[None], witness: Witness) -> None:
    witness.is_full, context = True, Context()
    with pytest.raises(Aborted):
        await answered(edge, context, str.upper)
    assert context.answer is not None
    assert context.answer[0] is grpc.StatusCode.UNAVAILABLE


async def test_no_key_is_used_while_nothing_can_be_recorded(
    edge: Edge[None], witness: Witness
) -> None:
    witness.is_blind, calls = True, list[str]()

    def call(request: str) -> str:
        calls.append(request)
        return "answer"

    with pytest.raises(Aborted):
        await answered(edge, Context(), call)
    assert calls == []
    assert witness.seen == [("request", None, grpc.StatusCode.UNAVAILABLE)]
