"""What operators read of a CA: Events, and one ConfigMap with the conditions that hold.

The ConfigMap `istio-hsm-ca-status` has `conditions.json`, a list of Kubernetes-style conditions,
`cert-chain.pem`, the chain that serves, which is public and worth a backup, and in `replica.<pod>`
what each replica serves.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from istiod_ca_bridge.conditions import Condition, Happening

STATUS_CONFIG_MAP = "istio-hsm-ca-status"
CONDITIONS_KEY = "conditions.json"
CHAIN_KEY = "cert-chain.pem"


@dataclass(slots=True)
class Series:
    """One Event, and how often it was."""

    happening: Happening
    name: str
    count: int
    last: datetime


class StatusSink(Protocol):
    """Where Events and the ConfigMap go. ClusterUnavailableError when they cannot go now."""

    async def post(self, series: Series) -> None:
        """Make the Event (count 1), or have it say how often it was."""
        ...

    async def write(self, values: Mapping[str, str | None]) -> None:
        """Have the ConfigMap hold these values; None: no more."""
        ...


def status_values(conditions: Iterable[Condition], chain_pem: str) -> dict[str, str | None]:
    """Return the ConfigMap's values."""
    listed = [condition.as_json() for condition in conditions]
    return {CONDITIONS_KEY: json.dumps(listed, indent=2), CHAIN_KEY: chain_pem}


def messages_of(text: str) -> dict[str, str]:
    """Return the messages in conditions.json by their types; none when it cannot be read."""
    try:
        return {str(entry["type"]): str(entry["message"]) for entry in json.loads(text)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
