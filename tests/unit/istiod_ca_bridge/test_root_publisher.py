import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.observed import Change, Listing
from istiod_ca_bridge.root_cert import Events, Pace, contested
from istiod_ca_bridge.root_publisher import RootPublisher

_LOG = EventLog(logging.getLogger("test.root_publisher"))


@dataclass(slots=True)
class Source:
    """One kind of object, and who watches it."""

    contents: dict[str, str] = field(default_factory=dict)
    watches: list[asyncio.Queue[Change[str] | Exception | None]] = field(default_factory=list)

    async def events(self) -> Events:
        queue: asyncio.Queue[Change[str] | Exception | None] = asyncio.Queue()
        self.watches.append(queue)
        yield Listing(dict(self.contents))
        while (event := await queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def put(self, name: str, content: str | None) -> None:
        if content is None:
            self.contents.pop(name, None)
        else:
            self.contents[name] = content
        for queue in self.watches:
            queue.put_nowait(Change(name, content))

    def end_watches(self, error: Exception | None) -> None:
        for queue in self.watches:
            queue.put_nowait(error)
        self.watches.clear()


@dataclass(slots=True)
class Cluster:
    """Namespaces and ConfigMaps in memory."""

    spaces: Source = field(default_factory=Source)
    maps: Source = field(default_factory=Source)
    writes: list[tuple[str, str, bool]] = field(default_factory=list)
    failures: int = 0
    stubborn: bool = False
    """Whether another program changes back what is written."""

    def namespaces(self) -> Events:
        return self.spaces.events()

    def held(self) -> Events:
        return self.maps.events()

    async def write(self, namespace: str, roots_pem: str, *, exists: bool) -> None:
        self.writes.append((namespace, roots_pem, exists))
        if self.failures:
            self.failures -= 1
            raise ClusterUnavailableError("away")
        self.maps.put(namespace, roots_pem)
        if self.stubborn:
            self.maps.put(namespace, "theirs")


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[RootPublisher]:
    publisher = RootPublisher(cluster, _LOG)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the double has no event for it
            await asyncio.sleep(0.005)


def cluster_of(*names: str) -> Cluster:
    return Cluster(spaces=Source(dict.fromkeys(names, "")))


async def test_every_namespace_gets_the_roots_and_a_right_one_is_left_alone() -> None:
    cluster = cluster_of("a", "b", "c")
    cluster.maps.contents.update({"b": "ROOT", "c": "other"})
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: cluster.maps.contents == {"a": "ROOT", "b": "ROOT", "c": "ROOT"})

    assert sorted(cluster.writes) == [("a", "ROOT", False), ("c", "ROOT", True)]


async def test_nothing_is_written_before_the_ca_serves() -> None:
    cluster = cluster_of("a")
    async with running(cluster) as publisher:
        await until(lambda: bool(cluster.spaces.watches and cluster.maps.watches))
        await asyncio.sleep(0.02)
        assert cluster.writes == []

        publisher.publish("ROOT")
        await until(lambda: cluster.maps.contents == {"a": "ROOT"})


async def test_a_new_namespace_gets_them_and_one_that_is_gone_does_not() -> None:
    cluster = cluster_of("a")
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: len(cluster.writes) == 1)
        cluster.spaces.put("a", None)
        cluster.maps.put("a", None)
        cluster.spaces.put("b", "")
        await until(lambda: "b" in cluster.maps.contents)

    assert [name for name, _, _ in cluster.writes] == ["a", "b"]


@pytest.mark.parametrize("tampered", ["theirs", "", None])
async def test_what_is_changed_or_deleted_by_hand_is_mended(tampered: str | None) -> None:
    cluster = cluster_of("a")
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: cluster.maps.contents == {"a": "ROOT"})
        cluster.maps.put("a", tampered)
        await until(lambda: len(cluster.writes) == 2)

    assert cluster.maps.contents == {"a": "ROOT"}
    assert cluster.writes[1] == ("a", "ROOT", tampered is not None)


async def test_new_roots_replace_the_old_ones_everywhere() -> None:
    cluster = cluster_of("a", "b")
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: len(cluster.writes) == 2)
        publisher.publish("ROOT AND NEXT")
        await until(lambda: set(cluster.maps.contents.values()) == {"ROOT AND NEXT"})


@pytest.mark.parametrize("error", [None, ClusterUnavailableError("away")])
async def test_what_happens_while_no_watch_is_open_is_found_by_the_next_listing(
    error: Exception | None,
) -> None:
    cluster = cluster_of("a")
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: cluster.maps.contents == {"a": "ROOT"})
        cluster.maps.end_watches(error)
        cluster.spaces.end_watches(error)
        cluster.maps.contents["a"] = "theirs"
        cluster.spaces.contents["b"] = ""
        await until(lambda: cluster.maps.contents == {"a": "ROOT", "b": "ROOT"})


async def test_a_write_that_fails_is_tried_again() -> None:
    cluster = cluster_of("a")
    cluster.failures = 2
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: cluster.maps.contents == {"a": "ROOT"})

    assert len(cluster.writes) == 3


async def test_a_program_that_writes_back_is_not_fought_at_full_speed() -> None:
    cluster = cluster_of("a")
    cluster.stubborn = True
    async with running(cluster) as publisher:
        publisher.publish("ROOT")
        await until(lambda: len(cluster.writes) == 3)
        await asyncio.sleep(0.1)

        assert len(cluster.writes) == 3


def test_the_pace_slows_down_with_the_attempts_and_recovers_in_a_minute() -> None:
    pace = Pace()
    delays = []
    for _ in range(9):
        delays.append(pace.delay("a", 0.0))
        pace.note("a", 0.0)

    assert delays == [0, 0, 0, 1, 2, 4, 8, 16, 30]
    assert pace.delay("b", 0.0) == 0
    assert pace.delay("a", 60.0) == 0
    assert [contested(count) for count in (1, 3, 4)] == [False, False, True]
