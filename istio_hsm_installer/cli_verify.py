"""`istio-hsm verify` and `inject`: after the ceremony."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from cryptography import x509

from istio_hsm_installer import injection, screen, verification
from istio_hsm_installer.exits import EXIT_FINDINGS, EXIT_FINE
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Ref, section
from istio_hsm_installer.options import Options
from istio_hsm_installer.screen import Output
from istio_hsm_installer.secret_dir import CHAIN_KEY, CHAIN_SECRET
from istio_hsm_installer.verification import Point
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    OutputOption,
    Target,
    load_options,
)

_LOG_BYTES = 1 << 16
"""The marks of a good start are at the beginning."""


def verify_command(
    config: ConfigOption = DEFAULT_CONFIG,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Judge what runs: pods, plugin's log, chain and expiry, root in namespaces, webhook."""
    options = load_options(config)
    points = _points(options, Target(context, kubeconfig).connect())
    if output is Output.JSON:
        screen.as_json({"points": [asdict(point) for point in points]})
    else:
        for point in points:
            mark, style = ("=", "green") if point.is_fine else ("!", "bold yellow")
            screen.say(f"{mark} {point.name}: {point.said}", style)
            if point.hint:
                screen.say(f"    hint: {point.hint}", "cyan")
    return EXIT_FINE if all(point.is_fine for point in points) else EXIT_FINDINGS


def inject_command(
    namespace: Annotated[str, typer.Argument(help="The namespace of the workloads.")],
    restart: Annotated[bool, typer.Option(help="Restart its Deployments.")] = True,  # noqa: FBT002 - a flag of the command line
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for them.")] = 300,
    config: ConfigOption = DEFAULT_CONFIG,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Label a namespace with the revision, and restart its Deployments."""
    revision = load_options(config).istio.revision or "default"
    cluster = Target(context, kubeconfig).connect()
    injection.label(cluster, namespace, revision)
    restarted: Sequence[str] = ()
    if restart:
        restarted = injection.restart(cluster, namespace, datetime.now(UTC))
        if wait:
            injection.wait(cluster, namespace, seconds=wait, tell=screen.tell)
    screen.show(
        output,
        {"namespace": namespace, "revision": revision, "restarted": ", ".join(restarted)},
    )


def _points(options: Options, cluster: Cluster) -> Sequence[Point]:
    namespace, revision = options.istio.namespace, options.istio.revision
    selector = f"app=istiod,istio.io/rev={revision or 'default'}"
    pods = cluster.list(Ref("Pod", "", namespace), selector)
    logs = [
        cluster.log(
            Ref("Pod", str(section(pod, "metadata").get("name")), namespace),
            "hsm-plugin",
            _LOG_BYTES,
        )
        for pod in pods
    ]
    chain = _chain(cluster, namespace)
    published = [
        (
            str(section(entry, "metadata").get("namespace")),
            str(section(entry, "data").get("root-cert.pem")),
        )
        for entry in cluster.list(Ref("ConfigMap"))
        if section(entry, "metadata").get("name") == "istio-ca-root-cert"
    ]
    hooks = cluster.list(Ref("MutatingWebhookConfiguration", api="admissionregistration.k8s.io/v1"))
    return [
        *verification.pods(pods),
        *(verification.plugin_log(text) for text in logs),
        *verification.chain(chain, datetime.now(UTC)),
        verification.distributed(chain, published),
        verification.webhooks(hooks, revision),
    ]


def _chain(cluster: Cluster, namespace: str) -> Sequence[x509.Certificate]:
    data = section(cluster.read(Ref("Secret", CHAIN_SECRET, namespace)), "data")
    try:
        pem = base64.b64decode(str(data.get(CHAIN_KEY, "")), validate=True)
        return x509.load_pem_x509_certificates(pem)
    except (binascii.Error, ValueError):
        return []
