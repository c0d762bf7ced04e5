"""A worker's place among those of one bridge: what it inherits, and its share of the settings."""

import math
from dataclasses import dataclass, replace

from istiod_ca_bridge.config import Config
from istiod_ca_bridge.issuance_chain_name import log_of_worker


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """One of several workers, and the descriptors that its bridge hands it."""

    number: int
    """From 1 on."""

    count: int
    listener: int
    """The bound socket of CA_LISTEN."""

    shares: int
    """The memory in which workers tell each other how many connections they have."""

    channel: int
    """The bridge's end of it is how a worker is asked and heard."""

    def arguments(self) -> list[str]:
        """Return the seat as a command's arguments: numbers, and nothing that is secret."""
        values = (self.number, self.count, self.listener, self.shares, self.channel)
        return [str(value) for value in values]

    def descriptors(self) -> tuple[int, ...]:
        """Return what the worker inherits."""
        return (self.listener, self.shares, self.channel)


def share_of(config: Config, seat: WorkerSeat) -> Config:
    """Return the settings of one worker: limits are divided, and what is the bridge's left out."""
    log = config.issuance_log
    return replace(
        config,
        worker=seat.number,
        health_listen=None,
        metrics_listen=None,
        max_connections=math.ceil(config.max_connections / seat.count),
        max_waiting=math.ceil(config.max_waiting / seat.count),
        issuance_log=replace(log, path=log_of_worker(log.path, seat.number)) if log else None,
    )
