"""The ceremony's two Secrets in Kubernetes, and the wait until the chain is in use."""

import base64
import json
from collections.abc import Callable

from istio_hsm_installer.errors import InputError, RefusedError, WaitError
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import (
    MANAGED_BY,
    Document,
    Ref,
    container_statuses,
    entries,
    name_of,
    section,
)
from istio_hsm_installer.secret_dir import CHAIN_KEY, CHAIN_SECRET, CSR_SECRET
from istio_hsm_installer.waiting import wait_until

_CSR_KEYS = ("kek-id", "encrypted-dek", "csr-id", "encrypted-csr")
_POLL_SECONDS = 1.0


def encrypted_csr(cluster: Cluster, namespace: str) -> bytes:
    """Return the data of istio-ca-cert-csr as JSON, as `kubectl -o jsonpath={.data}` writes it."""
    data = section(cluster.read(Ref("Secret", CSR_SECRET, namespace)), "data")
    if not data:
        raise InputError(
            f"there is no Secret {namespace}/{CSR_SECRET} yet",
            hint="istiod or the bridge writes it once the plugin serves: see their logs",
        )
    missing = [key for key in _CSR_KEYS if key not in data]
    if missing:
        raise InputError(
            f"Secret {namespace}/{CSR_SECRET} lacks {', '.join(missing)}",
            hint="it was not written by istiod or the bridge",
        )
    return json.dumps({key: data[key] for key in _CSR_KEYS}).encode() + b"\n"


def deliver(cluster: Cluster, namespace: str, pem: bytes, *, replace: bool) -> str:
    """Return which Secret holds the chain now; RefusedError when it holds another one."""
    ref = Ref("Secret", CHAIN_SECRET, namespace)
    wanted = {CHAIN_KEY: base64.b64encode(pem).decode()}
    created = cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": ref.name, "namespace": namespace, "labels": MANAGED_BY},
            "type": "Opaque",
            "data": wanted,
        }
    )
    if created or section(cluster.read(ref), "data").get(CHAIN_KEY) == wanted[CHAIN_KEY]:
        return str(ref)
    if not replace:
        raise RefusedError(
            f"{ref} holds another chain, which the mesh may be using",
            hint="compare the two; then give --replace",
        )
    cluster.patch(ref, {"data": wanted})
    return str(ref)


def wait_until_ready(
    cluster: Cluster, namespace: str, selector: str, *, seconds: float, tell: Callable[[str], None]
) -> None:
    """Return once every pod of the selector is ready; `tell` hears what is waited for."""
    said = ""

    def is_ready() -> bool:
        nonlocal said
        pods = cluster.list(Ref("Pod", "", namespace), selector)
        waiting = [_waiting(pod) for pod in pods if not _is_ready(pod)]
        now = f"no pod with {selector}" if not pods else "; ".join(waiting)
        if now and now != said:
            tell(f"waiting until istiod is ready: {now}")
        said = now
        return not now

    try:
        wait_until("istiod is ready", is_ready, seconds=seconds, poll_seconds=_POLL_SECONDS)
    except WaitError:
        raise WaitError(
            f"the chain is delivered, but after {seconds:g} s istiod is not ready: {said}",
            hint=f"kubectl logs -n {namespace} -l {selector} --all-containers --tail 20",
        ) from None


def _is_ready(pod: Document) -> bool:
    return any(
        entry.get("type") == "Ready" and entry.get("status") == "True"
        for entry in entries(pod, "status", "conditions")
    )


def _waiting(pod: Document) -> str:
    """Return the pod's name and which of its containers are not ready."""
    containers = container_statuses(pod)
    unready = [str(entry.get("name")) for entry in containers if entry.get("ready") is not True]
    return (
        f"pod {name_of(pod)}: {', '.join(unready) or section(pod, 'status').get('phase')} not ready"
    )
