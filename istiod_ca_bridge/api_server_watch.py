"""Whether the API server answers: found out by the lease, for every replica asks for that most."""

from datetime import datetime

from istiod_ca_bridge.conditions import Conditions, Kind
from istiod_ca_bridge.election import LeaseRecord
from istiod_ca_bridge.errors import ClusterUnavailableError, ForbiddenByClusterError
from istiod_ca_bridge.leadership import Lease


class WatchedLease:
    """A lease; what becomes of reading it is the condition ApiServerReachable."""

    def __init__(self, lease: Lease, conditions: Conditions) -> None:
        self._lease = lease
        self._conditions = conditions
        self._answers: bool | None = None

    async def read(self) -> LeaseRecord | None:
        """Return what the lease says; an answer that is a refusal is an answer, too."""
        try:
            record = await self._lease.read()
        except ForbiddenByClusterError:
            self._tell(answers=True)
            raise
        except ClusterUnavailableError as error:
            self._tell(answers=False, why=f"{error} ({error.hint})" if error.hint else str(error))
            raise
        self._tell(answers=True)
        return record

    async def write(self, record: LeaseRecord, now: datetime, *, is_new_holder: bool) -> None:
        """Write it."""
        await self._lease.write(record, now, is_new_holder=is_new_holder)

    def _tell(self, *, answers: bool, why: str = "the API server answers") -> None:
        """Tell each change once, whatever else is wrong with it meanwhile."""
        if answers is self._answers:
            return
        self._answers = answers
        word = "Reachable" if answers else "ApiServerAway"
        self._conditions.set(Kind.API_SERVER, word, why, status=answers)
