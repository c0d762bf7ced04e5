"""`istio-hsm expose`: how the world reaches the mesh's ingress gateway."""

from dataclasses import asdict
from typing import Annotated

import typer

from istio_hsm_installer import gateway, screen
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Document, Ref, section
from istio_hsm_installer.screen import Output
from istio_hsm_installer.waiting import wait_until
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    Target,
    load_options,
)


def expose_command(
    ip: Annotated[
        str | None, typer.Option(help="The address for a LoadBalancer that takes it as given.")
    ] = None,
    service: Annotated[str, typer.Option(help="The gateway's Service.")] = "istio-ingressgateway",
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for the address.")] = 60,
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Set the gateway's loadBalancerIP; without --ip, tell what a manual balancer forwards."""
    options = load_options(config, namespace)
    cluster = Target(context, kubeconfig).connect()
    ref = Ref("Service", service, options.istio.namespace)
    found = _read(cluster, ref)
    if ip is None:
        rules = gateway.forwards(found, cluster.list(Ref("Node")))
        if output is Output.JSON:
            screen.as_json({"service": str(ref), "forwards": [asdict(rule) for rule in rules]})
            return
        screen.table(
            ("name", "port", "node port", "forward to any of"),
            [(r.name, str(r.port), str(r.node_port), ", ".join(r.targets)) for r in rules],
        )
        return
    wanted = gateway.address(ip)
    kind = section(found, "spec").get("type")
    if kind != "LoadBalancer":
        raise InputError(
            f"{ref} is of type {kind}, whose address cannot be chosen",
            hint="leave --ip out for the table of a manual balancer",
        )
    cluster.patch(ref, {"spec": {"loadBalancerIP": wanted}})
    if wait:
        wait_until(
            f"{ref} has the address {wanted}",
            lambda: wanted in gateway.given(_read(cluster, ref)),
            seconds=wait,
            hint="it is asked for; the cluster's load balancer decides: see its log, or --wait 0",
        )
    state = "given" if wanted in gateway.given(_read(cluster, ref)) else "asked for"
    screen.show(output, {"service": str(ref), "address": wanted, "state": state})


def _read(cluster: Cluster, ref: Ref) -> Document:
    found = cluster.read(ref)
    if found is None:
        raise InputError(
            f"there is no {ref}", hint="install the gateway, or name its Service with --service"
        )
    return found
