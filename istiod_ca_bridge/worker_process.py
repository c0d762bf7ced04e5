"""One worker of a bridge: a whole replica that accepts from a socket that its bridge has bound."""

import contextlib
from collections.abc import Awaitable, Callable

from istiod_ca_bridge.connection_shares import ConnectionShares, SharedAccept
from istiod_ca_bridge.errors import BridgeError, ConfigError, error_in
from istiod_ca_bridge.served_place import ServedPlace
from istiod_ca_bridge.tls_front import inherited
from istiod_ca_bridge.worker_channel import open_channel
from istiod_ca_bridge.worker_messages import Ended
from istiod_ca_bridge.worker_seat import WorkerSeat


async def work(seat: WorkerSeat, serve: Callable[[ServedPlace], Awaitable[None]]) -> None:
    """Serve from a seat until that ends; the bridge is told of what only a person can mend."""
    channel = await open_channel(seat.channel)
    turns = SharedAccept(ConnectionShares(seat.shares, seat.count), seat.number)

    def answering(
        serving: Callable[[], bool], figures: Callable[[], bytes]
    ) -> contextlib.AbstractAsyncContextManager[None]:
        turns.serves = serving
        return channel.answering(serving, figures)

    place = ServedPlace(lambda: inherited(seat.listener), turns.accept, answering)
    try:
        await serve(place)
    except (BridgeError, BaseExceptionGroup) as raised:
        error = error_in(raised)
        if error is not None:
            await channel.end(Ended(str(error), error.hint, isinstance(error, ConfigError)))
        raise
