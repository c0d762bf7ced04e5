import asyncio

import pytest

from istiod_ca_bridge.errors import KeyServiceUnavailableError
from istiod_ca_bridge.signature_batch import MAX_BATCH, SignatureBatches


class Hsm:
    """Signs by reversing, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.free = asyncio.Event()
        self.error: Exception | None = None
        self.lost = 0

    async def send(self, digests: list[bytes]) -> list[bytes]:
        self.batches.append(digests)
        await self.free.wait()
        if self.error:
            raise self.error
        return [digest[::-1] for digest in digests][: len(digests) - self.lost]


def digests(count: int) -> list[bytes]:
    return [f"digest {number}".encode() for number in range(count)]


async def started(batches: SignatureBatches, wanted: list[bytes]) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(batches.sign(digest)) for digest in wanted]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_each_caller_gets_the_signature_of_its_own_digest() -> None:
    hsm = Hsm()
    hsm.free.set()
    batches = SignatureBatches(hsm.send)
    wanted = digests(100)
    signatures = await asyncio.gather(*(batches.sign(digest) for digest in wanted))
    assert signatures == [digest[::-1] for digest in wanted]


async def test_one_alone_is_sent_at_once() -> None:
    hsm = Hsm()
    batches = SignatureBatches(hsm.send)
    (task,) = await started(batches, [b"one"])
    assert hsm.batches == [[b"one"]]
    hsm.free.set()
    assert await task == b"eno"


async def test_fewer_than_expected_wait_for_the_end_of_the_call_under_way() -> None:
    hsm = Hsm()
    batches = SignatureBatches(hsm.send, pace_seconds=0)
    tasks = await started(batches, [b"a"])
    tasks += await started(batches, [b"b"])
    assert hsm.batches == [[b"a"]]
    hsm.free.set()
    await asyncio.gather(*tasks)
    assert hsm.batches == [[b"a"], [b"b"]]


async def test_as_many_as_expected_get_a_second_call_beside_the_first_and_no_third() -> None:
    hsm = Hsm()
    batches = SignatureBatches(hsm.send)
    tasks = await started(batches, [b"a"])
    tasks += await started(batches, [b"b", b"c"])
    assert hsm.batches == [[b"a"], [b"b", b"c"]]
    many = digests(20)
    tasks += await started(batches, many)
    assert len(hsm.batches) == 2
    hsm.free.set()
    await asyncio.gather(*tasks)
    assert hsm.batches == [[b"a"], [b"b", b"c"], many]


async def test_who_comes_soon_after_a_call_is_waited_with_until_nobody_comes() -> None:
    hsm = Hsm()
    hsm.free.set()
    batches = SignatureBatches(hsm.send, pace_seconds=60, lull_seconds=0.02)
    assert await batches.sign(b"a") == b"a"
    tasks = await started(batches, [b"b"])
    assert hsm.batches == [[b"a"]]
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert hsm.batches == [[b"a"], [b"b"]]


async def test_nobody_is_waited_with_when_a_call_is_due() -> None:
    hsm = Hsm()
    hsm.free.set()
    batches = SignatureBatches(hsm.send, pace_seconds=0.02, lull_seconds=60)
    assert await batches.sign(b"a") == b"a"
    assert await asyncio.wait_for(batches.sign(b"b"), 5) == b"b"


async def test_no_call_has_more_digests_than_the_plugin_takes() -> None:
    hsm = Hsm()
    hsm.free.set()
    batches = SignatureBatches(hsm.send)
    await asyncio.gather(*(batches.sign(digest) for digest in digests(3 * MAX_BATCH)))
    assert max(map(len, hsm.batches)) <= MAX_BATCH


async def test_a_failed_call_fails_its_own_callers_only() -> None:
    hsm = Hsm()
    hsm.free.set()
    hsm.error = KeyServiceUnavailableError("the HSM is away")
    batches = SignatureBatches(hsm.send)
    with pytest.raises(KeyServiceUnavailableError, match="away"):
        await batches.sign(b"one")
    hsm.error = None
    assert await batches.sign(b"two") == b"owt"


async def test_too_few_signatures_are_given_to_nobody() -> None:
    hsm = Hsm()
    hsm.free.set()
    hsm.lost = 1
    batches = SignatureBatches(hsm.send)
    answers = await asyncio.gather(
        *(batches.sign(digest) for digest in digests(4)), return_exceptions=True
    )
    assert all(isinstance(answer, KeyServiceUnavailableError) for answer in answers)


async def test_a_caller_that_gave_up_is_not_signed_for() -> None:
    hsm = Hsm()
    batches = SignatureBatches(hsm.send)
    first = await started(batches, [b"a"])
    first += await started(batches, [b"b", b"c"])
    gone, stays = await started(batches, [b"gone", b"stays"])
    gone.cancel()
    hsm.free.set()
    assert await stays == b"syats"
    assert [b"stays"] in hsm.batches
    await asyncio.gather(*first)
