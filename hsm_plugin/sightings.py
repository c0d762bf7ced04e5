"""What was last seen of the worker, the keys and the certificates: read by /metrics and doctor."""

from dataclasses import dataclass, field

from hsm_plugin.call_times import Tally
from hsm_plugin.worker_snapshot import WorkerSnapshot


@dataclass(slots=True)
class Sightings:
    """The latest of each. Written on the event loop, read from anywhere."""

    worker: WorkerSnapshot | None = None
    """None before the first one."""
    workers: int = 0
    """Worker processes that were seen."""
    usable_keys: int = 0
    unusable_keys: int = 0
    roots: dict[str, float] = field(default_factory=dict)
    """CA id -> end of its validity, in Unix time."""
    certificates: dict[str, float] = field(default_factory=dict)
    """File -> end of its certificate, in Unix time; 0 when it is not readable."""
    _pid: int = 0
    _ended: dict[str, Tally] = field(default_factory=dict)
    """The calls of the workers before this one."""

    def see_worker(self, pid: int, snapshot: WorkerSnapshot) -> None:
        """Take what a worker told; another process id is another worker."""
        if pid != self._pid:
            if self.worker is not None:
                self._ended = _sum(self._ended, self.worker.calls)
            self._pid = pid
            self.workers += 1
        self.worker = snapshot

    def calls(self) -> dict[str, Tally]:
        """Return the calls of all workers, which never decrease."""
        return _sum(self._ended, self.worker.calls) if self.worker else {}


def _sum(one: dict[str, Tally], other: dict[str, Tally]) -> dict[str, Tally]:
    total: dict[str, Tally] = {}
    for tallies in (one, other):
        for function, tally in tallies.items():
            total.setdefault(function, Tally()).add(tally)
    return total
