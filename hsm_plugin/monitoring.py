"""The HTTP pages of a serving plugin, and the watch that feeds them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from hsm_plugin import http_listener
from hsm_plugin.http_listener import HttpAddress, Page
from hsm_plugin.log import event
from hsm_plugin.metrics import CONTENT_TYPE, Metrics
from hsm_plugin.watch import Watch


@asynccontextmanager
async def serving(
    address: HttpAddress, metrics: Metrics, watch: Watch, why_not_ready: Callable[[], str]
) -> AsyncIterator[None]:
    """While inside, the pages are served. `why_not_ready`: empty when calls are answered."""

    async def figures() -> Page:
        await watch.refresh()
        body = await asyncio.to_thread(metrics.exposition)
        return Page(HTTPStatus.OK, body, CONTENT_TYPE)

    async def alive() -> Page:
        return Page(HTTPStatus.OK, b"alive\n")

    async def ready() -> Page:
        reason = why_not_ready()
        if reason:
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode())
        return Page(HTTPStatus.OK, b"ready\n")

    pages = {"/metrics": figures, "/healthz": alive, "/readyz": ready}
    server = await http_listener.listen(address, pages)
    watching = asyncio.create_task(watch.run())
    event("metrics.listening", f"Metrics on http://{address.host}:{address.port}/metrics")
    try:
        yield
    finally:
        watching.cancel()
        server.close()
        await asyncio.gather(watching, return_exceptions=True)
