"""Tells in log and metrics what is told in Kubernetes Events, also where there are none."""

from istiod_ca_bridge.conditions import Condition, Happening, Kind
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics


class ConditionReport:
    """An observer of the conditions."""

    def __init__(self, log: EventLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def turned(self, condition: Condition) -> None:
        """Tell that a condition holds, or holds no more."""
        self._metrics.condition(condition.kind.value, holds=condition.status)
        tell = self._log.info
        if not condition.status and condition.kind is not Kind.ROTATING:
            tell = self._log.warning
        tell(
            "condition.changed",
            type=condition.kind.value,
            status=str(condition.status),
            reason=condition.reason,
            message=condition.message,
        )

    def happened(self, happening: Happening) -> None:
        """Count what becomes an Event."""
        self._metrics.told.labels(happening.reason).inc()
