"""What an installation shows of itself, judged point by point. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from istio_hsm_installer.certificates import fingerprints
from istio_hsm_installer.objects import Document, container_statuses, entries, name_of, section

_SOON = timedelta(days=30)
_PLUGIN_MARKS = ("Loaded P11 PIN from file:", "Serving on socket:", "KEK ID:")


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the verification."""

    name: str
    is_fine: bool
    said: str
    hint: str = ""


def pods(found: Sequence[Document]) -> Sequence[Point]:
    """Return whether each pod of istiod has all its containers ready, such as 3/3."""
    if not found:
        hint = "see what plan shows for the step istio"
        return [Point("pods", is_fine=False, said="there is no pod of istiod", hint=hint)]
    return [_pod(pod) for pod in found]


def plugin_log(text: str) -> Point:
    """Return whether the HSM plugin's log has the marks of a good start."""
    missing = [mark for mark in _PLUGIN_MARKS if mark not in text]
    return Point(
        "hsm-plugin log",
        is_fine=not missing,
        said=f"lacks: {' / '.join(missing)}" if missing else "PIN loaded, socket served, KEK found",
        hint="read the log of the container hsm-plugin from its start" if missing else "",
    )


def chain(delivered: Sequence[x509.Certificate], now: datetime) -> Sequence[Point]:
    """Return the expiry of each certificate of the delivered chain."""
    if not delivered:
        hint = "hold the ceremony: istio-hsm ceremony"
        return [Point("chain", is_fine=False, said="istio-ca-cert is not there", hint=hint)]
    return [_expiry(certificate, now) for certificate in delivered]


def distributed(
    delivered: Sequence[x509.Certificate], published: Sequence[tuple[str, str]]
) -> Point:
    """Return whether every namespace's istio-ca-root-cert holds the root of the chain.

    `published`: namespace and PEM of each.
    """
    name = "root in namespaces"
    if not delivered or not published:
        hint = "istiod or the bridge publishes it once it serves"
        return Point(name, is_fine=False, said="no istio-ca-root-cert is published", hint=hint)
    root = delivered[-1].fingerprint(hashes.SHA256())
    without = [namespace for namespace, pem in published if root not in fingerprints(pem.encode())]
    if without:
        return Point(
            name,
            is_fine=False,
            said=f"another root in: {', '.join(without)}",
            hint="proxies there trust another CA: see who writes istio-ca-root-cert",
        )
    return Point(name, is_fine=True, said=f"the same in {len(published)} namespaces")


def webhooks(found: Sequence[Document], revision: str) -> Point:
    """Return whether the revision's injection webhook has a CA to be called with."""
    wanted = revision or "default"
    ours = [
        entry
        for entry in found
        if section(entry, "metadata", "labels").get("istio.io/rev") == wanted
    ]
    bundled = bool(ours) and all(
        section(hook, "clientConfig").get("caBundle")
        for entry in ours
        for hook in entries(entry, "webhooks")
    )
    return Point(
        "injection webhook",
        is_fine=bundled,
        said="has its CA" if bundled else ("has no CA" if ours else f"none of revision {wanted}"),
        hint="" if bundled else "istiod fills it in once it serves: see its log",
    )


def _pod(pod: Document) -> Point:
    statuses = container_statuses(pod)
    spec = section(pod, "spec")
    kept = [e for e in entries(spec, "initContainers") if e.get("restartPolicy") == "Always"]
    wanted = [entry.get("name") for entry in [*entries(spec, "containers"), *kept]]
    ready = {entry.get("name") for entry in statuses if entry.get("ready") is True}
    missing = [str(name) for name in wanted if name not in ready]
    name = name_of(pod)
    said = f"{len(wanted) - len(missing)}/{len(wanted)}"
    return Point(
        f"pod {name}",
        is_fine=not missing,
        said=f"{said}, not ready: {', '.join(missing)}" if missing else said,
        hint=f"kubectl logs {name} -c {missing[0]}" if missing else "",
    )


def _expiry(certificate: x509.Certificate, now: datetime) -> Point:
    left = certificate.not_valid_after_utc - now
    is_fine = left > _SOON and certificate.not_valid_before_utc <= now
    return Point(
        f"certificate {certificate.subject.rfc4514_string()}",
        is_fine=is_fine,
        said=f"until {certificate.not_valid_after_utc:%Y-%m-%d}, {left.days} days",
        hint="" if is_fine else "have it signed again well before it expires",
    )
