"""`istio-ca-root-cert` in every namespace: made, kept up to date, mended when changed by hand.

Level-triggered: two watches say what there is, and whatever lacks the served roots is written.
Several replicas may do so at once, for they all write the same.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.observed import Listing
from istiod_ca_bridge.root_cert import (
    CONFIG_MAP,
    CRL,
    Events,
    Pace,
    RootCertificates,
    contested,
)

_WRITERS = 4
_RELIST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


class RootPublisher:
    """Publishes the roots that the CA serves with."""

    def __init__(
        self,
        cluster: RootCertificates,
        log: EventLog,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        name: str = CONFIG_MAP,
        topic: str = "root_cert",
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._monotonic = monotonic
        self._name = name
        self._topic = topic
        self._roots_pem = ""
        self._namespaces: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._held_listed = False
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._pace = Pace()
        self._told: dict[str, str] = {}

    def publish(self, roots_pem: str) -> None:
        """Have every namespace hold these roots from now on."""
        self._roots_pem = roots_pem
        self._mark_all()

    async def run(self) -> None:
        """Watch and write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(self._cluster.namespaces, self._namespaces))
            tasks.create_task(self._follow(self._cluster.held, self._held))
            for _ in range(_WRITERS):
                tasks.create_task(self._write())

    async def _follow(self, source: Callable[[], Events], seen: dict[str, str]) -> None:
        failures = 0
        while True:
            try:
                async with contextlib.aclosing(source()) as events:
                    async for event in events:
                        failures = 0
                        if isinstance(event, Listing):
                            self._replace(seen, event)
                        else:
                            self._change(seen, event.name, event.content)
                pause = _RELIST_PAUSE_SECONDS
            except ClusterUnavailableError as error:
                if not failures:
                    self._log.warning(
                        f"{self._topic}.not_watched", reason=str(error), hint=error.hint
                    )
                pause = min(_RELIST_PAUSE_SECONDS * 2.0**failures, _LONGEST_PAUSE_SECONDS)
                failures = min(failures + 1, 16)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def _replace(self, seen: dict[str, str], listing: Listing[str]) -> None:
        if seen is self._held:
            self._held_listed = True
        for namespace in seen.keys() - listing.contents.keys():
            self._change(seen, namespace, None)
        seen.update(listing.contents)
        self._mark_all()

    def _change(self, seen: dict[str, str], namespace: str, content: str | None) -> None:
        if content is not None:
            seen[namespace] = content
        else:
            seen.pop(namespace, None)
            if seen is self._namespaces:
                self._pace.forget(namespace)
                self._told.pop(namespace, None)
        self._mark(namespace)

    def _mark_all(self) -> None:
        for namespace in self._namespaces:
            self._mark(namespace)

    def _mark(self, namespace: str) -> None:
        """Have the namespace written as soon as it may be, when it needs to be."""
        if namespace in self._queued or not self._lacks(namespace):
            return
        self._queued.add(namespace)
        delay = self._pace.delay(namespace, self._monotonic())
        if delay:
            asyncio.get_running_loop().call_later(delay, self._due.put_nowait, namespace)
        else:
            self._due.put_nowait(namespace)

    def _lacks(self, namespace: str) -> bool:
        return (
            bool(self._roots_pem)
            and self._held_listed
            and namespace in self._namespaces
            and self._held.get(namespace) != self._roots_pem
        )

    async def _write(self) -> None:
        while True:
            namespace = await self._due.get()
            self._queued.discard(namespace)
            if self._lacks(namespace):
                await self._write_to(namespace)

    async def _write_to(self, namespace: str) -> None:
        attempts = self._pace.note(namespace, self._monotonic())
        exists = namespace in self._held
        try:
            await self._cluster.write(namespace, self._roots_pem, exists=exists)
        except ClusterUnavailableError as error:
            if self._told.get(namespace) != str(error):
                self._told[namespace] = str(error)
                self._log.warning(
                    f"{self._topic}.not_published",
                    namespace=namespace,
                    reason=str(error),
                    hint=error.hint,
                )
            self._mark(namespace)
            return
        self._told.pop(namespace, None)
        if contested(attempts):
            self._log.warning(
                f"{self._topic}.contested",
                namespace=namespace,
                hint=f"what else writes {self._name}? an istiod with a CA of its own does",
            )
        else:
            self._log.info(f"{self._topic}.published", namespace=namespace, mended=exists)


def crl_publisher(cluster: RootCertificates, log: EventLog) -> RootPublisher:
    """Return what publishes the revocation list in the same way."""
    return RootPublisher(cluster, log, name=CRL[0], topic="crl")
