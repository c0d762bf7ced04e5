"""List and watch (Kubernetes API concepts, "Efficient detection of changes")."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Generic, TypeVar

import urllib3
from kubernetes import client

from istiod_ca_bridge.errors import ClusterUnavailableError
from istiod_ca_bridge.kube_client import FAILURES, TIMEOUT_SECONDS, unavailable
from istiod_ca_bridge.observed import Change, Listing

T = TypeVar("T")

RELIST_SECONDS = 240
"""What a watch missed is found at the latest now."""

_GRACE_SECONDS = 30
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading an object of wrong kinds may raise: the watch ends with it, and begins anew."""

_OK = 200

Request = Callable[..., Any]
"""A list call of the driver."""

Read = Callable[[dict[str, Any]], Change[T]]
"""Object -> what its name has."""


async def watched(
    what: str, request: Request, read: Read[T]
) -> AsyncGenerator[Listing[T] | Change[T]]:
    """Yield a listing, then each change, until it is time to list again.

    `what` is the resource, as a right on it is named. ClusterUnavailableError when the API
    server is away, answers nonsense, or does not let us.
    """
    reader = _Reader(what, request, read)
    threading.Thread(target=reader.run, name=f"watch {what}", daemon=True).start()
    try:
        while (event := await reader.events.get()) is not None:
            if isinstance(event, ClusterUnavailableError):
                raise event
            yield event
    finally:
        reader.stop()


class _Reader(Generic[T]):
    """Reads on a thread of its own, for a watch blocks until something changes."""

    def __init__(self, what: str, request: Request, read: Read[T]) -> None:
        self.events: asyncio.Queue[Listing[T] | Change[T] | ClusterUnavailableError | None] = (
            asyncio.Queue()
        )
        self._what = what
        self._request = request
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._response: urllib3.HTTPResponse | None = None
        self._stopped = False

    def run(self) -> None:
        """Put each event, then the error or None."""
        end: ClusterUnavailableError | None = None
        try:
            self._watch(self._list())
        except FAILURES as error:
            end = unavailable("list and watch", self._what, error)
        except MALFORMED:
            end = ClusterUnavailableError(f"the API server's answer on {self._what} is malformed")
        self._put(end)

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stopped = True
        response = self._response
        if response is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                response.shutdown()

    def _list(self) -> str:
        response = self._answer(_request_timeout=TIMEOUT_SECONDS)
        try:
            body = json.loads(response.data)
        finally:
            response.release_conn()
        changes = [self._read(entry) for entry in body["items"]]
        self._put(Listing({it.name: it.content for it in changes if it.content is not None}))
        version: str = body["metadata"]["resourceVersion"]
        return version

    def _watch(self, version: str) -> None:
        connect, _ = TIMEOUT_SECONDS
        response = self._answer(
            watch=True,
            resource_version=version,
            timeout_seconds=RELIST_SECONDS,
            _request_timeout=(connect, RELIST_SECONDS + _GRACE_SECONDS),
        )
        self._response = response
        try:
            for line in _lines(response):
                event = json.loads(line)
                if self._stopped or event["type"] == "ERROR":
                    return
                change = self._read(event["object"])
                if event["type"] == "DELETED":
                    change = Change(change.name, None)
                self._put(change)
        finally:
            response.close()

    def _answer(self, **options: Any) -> urllib3.HTTPResponse:
        response: urllib3.HTTPResponse = self._request(_preload_content=False, **options)
        if response.status != _OK:
            response.close()
            raise client.ApiException(status=response.status)
        return response

    def _put(self, event: Listing[T] | Change[T] | ClusterUnavailableError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody listens
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


def _lines(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    """Yield whole lines, each as soon as it is there."""
    rest = b""
    for chunk in response.stream(None):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)
