"""Where an installation stands, and the next thing that an operator should do. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509

from istio_hsm_installer.custody import CaKey, KeyPlace
from istio_hsm_installer.objects import Document, container_statuses, section
from istio_hsm_installer.verification import Point

SOON = timedelta(days=30)
_MAX_TEXT = 200
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of the CA's lifecycle, as the bridge publishes it."""

    name: str
    status: str
    said: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen."""

    is_installed: bool
    pods: Sequence[Point]
    key: CaKey
    has_csr: bool
    chain: Sequence[x509.Certificate]
    vault: str
    is_vault_ready: bool
    conditions: Sequence[Condition] = ()
    injected: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do next, and why."""

    why: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Happening:
    """One Event."""

    at: str
    reason: str
    about: str
    said: str = field(default="")


def next_step(facts: Facts, now: datetime) -> Advice:
    """Return the first thing that is left to do, in the order in which things depend."""
    waiting = [pod for pod in facts.pods if not pod.is_fine]
    for is_so, advice in (
        (
            not facts.is_installed,
            Advice("there is no istiod of this revision", "istio-hsm plan; istio-hsm apply"),
        ),
        (not facts.is_vault_ready, Advice(f"Vault: {facts.vault}", "istio-hsm check")),
        (
            facts.key.place is KeyPlace.NONE,
            Advice(
                "there is no CA key yet: the plugin or Vault's login is awaited",
                waiting[0].hint if waiting else "istio-hsm verify",
            ),
        ),
        (
            not facts.chain and not facts.has_csr,
            Advice("the CSR is awaited", waiting[0].hint if waiting else "istio-hsm verify"),
        ),
        (
            not facts.chain,
            Advice("the CSR waits for the offline root", "istio-hsm ceremony csr fetch"),
        ),
        (
            _expires_soon(facts.chain, now),
            Advice(
                f"the chain ends on {_first_end(facts.chain):%Y-%m-%d}",
                "istio-hsm ceremony csr fetch; then sign and submit --replace",
            ),
        ),
        (
            bool(waiting),
            Advice(
                f"{waiting[0].name}: {waiting[0].said}" if waiting else "",
                waiting[0].hint if waiting else "",
            ),
        ),
        (not facts.injected, Advice("no namespace is injected", "istio-hsm inject NAMESPACE")),
    ):
        if is_so:
            return advice
    return Advice("nothing is left to do", "istio-hsm verify --live judges what is served")


def conditions(values: Mapping[str, str]) -> Sequence[Condition]:
    """Return the conditions in a ConfigMap's data, whichever of these forms they have.

    A list of {type, status, reason, message} as JSON below one key, or a text a key; what is
    PEM is none.
    """
    found: list[Condition] = []
    for key, text in sorted(values.items()):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            document = document.get("conditions", document)
        if isinstance(document, list):
            found += [_condition(entry) for entry in document if isinstance(entry, dict)]
        elif not text.startswith("-----BEGIN"):
            found.append(Condition(key, text[:_MAX_TEXT], ""))
    return found


def happening(event: Document, at: str) -> Happening:
    """Return an Event as a line of the screen."""
    about = section(event, "involvedObject")
    return Happening(
        at,
        str(event.get("reason", "")),
        f"{about.get('kind', '')} {about.get('name', '')}".strip(),
        " ".join(str(event.get("message", "")).split())[:_MAX_TEXT],
    )


def restarts(pod: Document) -> int:
    """Return how often the pod's containers were started again."""
    counts = (entry.get("restartCount") for entry in container_statuses(pod))
    return sum(count for count in counts if isinstance(count, int))


def _condition(entry: Document) -> Condition:
    said = ": ".join(str(entry[key]) for key in ("reason", "message") if entry.get(key))
    return Condition(
        str(entry.get("type", entry.get("name", "?"))),
        str(entry.get("status", "?")),
        said[:_MAX_TEXT],
    )


def _expires_soon(chain: Sequence[x509.Certificate], now: datetime) -> bool:
    return bool(chain) and _first_end(chain) - now <= SOON


def _first_end(chain: Sequence[x509.Certificate]) -> datetime:
    return min((entry.not_valid_after_utc for entry in chain), default=_NEVER)
