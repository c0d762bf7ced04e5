"""One writer among the processes that share a directory of Secrets: it holds the folder's lock."""

import asyncio
import fcntl
import os
from pathlib import Path

from istiod_ca_bridge.log import EventLog

_LOOK_SECONDS = 1.0


class DirectoryLeadership:
    """Tells whether this process may write; the kernel gives the lock on however a holder ends."""

    def __init__(self, directory: Path, log: EventLog) -> None:
        self._directory = directory
        self._log = log
        self._lock: int | None = None
        self._has_no_locks = False

    def leads(self) -> bool:
        """Tell whether this process may write now.

        On a file system without locks each may: nothing is written over then either.
        """
        return self._lock is not None or self._has_no_locks

    async def run(self) -> None:
        """Take the lock as soon as it is free; give it up when cancelled."""
        try:
            while not self.leads():
                self._try()
                if self.leads():
                    self._log.info("leader.leading", directory=str(self._directory))
                    break
                await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.Event().wait()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _try(self) -> None:
        descriptor = -1
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                self._has_no_locks = True
                self._log.warning(
                    "leader.no_lock",
                    reason=f"{self._directory} cannot be locked: {error.strerror}",
                    hint="start one process on it at a time, or keep it on a local disk",
                )
        else:
            self._lock = descriptor
