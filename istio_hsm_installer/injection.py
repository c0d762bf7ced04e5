"""Sidecar injection of a namespace: the revision's label, and new pods."""

from collections.abc import Callable, Sequence
from datetime import datetime

from istio_hsm_installer.errors import InputError, WaitError
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Document, Ref, name_of, section
from istio_hsm_installer.waiting import wait_until

_POLL_SECONDS = 1.0


def label(cluster: Cluster, namespace: str, revision: str) -> None:
    """Set the revision's label and remove istio-injection, beside which it does not work."""
    ref = Ref("Namespace", namespace)
    if cluster.read(ref) is None:
        raise InputError(f"there is no namespace {namespace}", hint="check its name and --context")
    labels = {"istio.io/rev": revision, "istio-injection": None}
    cluster.patch(ref, {"metadata": {"labels": labels}})


def restart(cluster: Cluster, namespace: str, now: datetime) -> Sequence[str]:
    """Return the Deployments whose pods are being replaced, as `kubectl rollout restart` does."""
    stamp = {"kubectl.kubernetes.io/restartedAt": now.isoformat(timespec="seconds")}
    names = [name_of(entry) for entry in cluster.list(_deployment("", namespace))]
    for name in names:
        cluster.patch(
            _deployment(name, namespace),
            {"spec": {"template": {"metadata": {"annotations": stamp}}}},
        )
    return names


def wait(cluster: Cluster, namespace: str, *, seconds: float, tell: Callable[[str], None]) -> None:
    """Return once every Deployment runs its new pods only."""
    said = ""

    def is_done() -> bool:
        nonlocal said
        found = cluster.list(_deployment("", namespace))
        now = ", ".join(text for entry in found if (text := _progress(entry)))
        if now and now != said:
            tell(f"waiting for {now}")
        said = now
        return not now

    try:
        wait_until("the pods are replaced", is_done, seconds=seconds, poll_seconds=_POLL_SECONDS)
    except WaitError:
        raise WaitError(
            f"after {seconds:g} s the pods are not all replaced: {said}",
            hint=f"kubectl get pods -n {namespace}, and describe one that is not ready",
        ) from None


def _progress(deployment: Document) -> str:
    """Return such as `web 1/3`; empty when it is done."""
    status, wanted = section(deployment, "status"), section(deployment, "spec").get("replicas", 1)
    generation = section(deployment, "metadata").get("generation")
    current = status.get("observedGeneration") == generation
    updated = status.get("updatedReplicas", 0) if current else 0
    available = status.get("availableReplicas", 0) if current else 0
    if current and updated == available == status.get("replicas", 0) == wanted:
        return ""
    return f"{name_of(deployment)} {min(int(str(updated)), int(str(available)))}/{wanted}"


def _deployment(name: str, namespace: str) -> Ref:
    return Ref("Deployment", name, namespace, "apps/v1")
