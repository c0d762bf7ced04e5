"""`istio-hsm verify` and `inject`: after the ceremony."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from istio_hsm_installer import expiry, injection, live_verification, screen, verification
from istio_hsm_installer.exits import EXIT_FINDINGS, EXIT_FINE
from istio_hsm_installer.installation import Installation
from istio_hsm_installer.live_verification import Where
from istio_hsm_installer.programs import Plugin
from istio_hsm_installer.screen import Output
from istio_hsm_installer.verification import Point
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

LiveOption = Annotated[
    bool, typer.Option("--live", help="Connect to the CA and to the HSM plugin, too.")
]


def verify_command(
    live: LiveOption = False,  # noqa: FBT002 - a flag of the command line
    address: Annotated[
        str | None, typer.Option(help="Where the CA serves, host:port; its Service otherwise.")
    ] = None,
    server_name: Annotated[
        str | None, typer.Option(help="The name to expect there; the Service's otherwise.")
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="host:port of a sidecar, as of `openssl s_client`; repeatable."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Judge what runs: pods, plugin's log, chain and expiry, root in namespaces, webhook."""
    options = load_options(config, namespace)
    installation = Installation(options, Target(context, kubeconfig).connect())
    now = datetime.now(UTC)
    points = [*_points(installation, now)]
    if live or address or workload:
        plugin = Plugin(options.hsm.plugin_command, options.hsm.socket)
        where = Where(address, server_name, workload or ())
        points += live_verification.points(installation, plugin, where, now)
    rows = expiry.table(installation, now)
    if output is Output.JSON:
        certificates = [asdict(row) for row in rows]
        screen.as_json(
            {"points": [asdict(point) for point in points], "certificates": certificates}
        )
    else:
        for point in points:
            mark, style = ("=", "green") if point.is_fine else ("!", "bold yellow")
            screen.say(f"{mark} {point.name}: {point.said}", style)
            if point.hint:
                screen.say(f"    hint: {point.hint}", "cyan")
        screen.table(
            ("certificate", "in", "until", "days"),
            [(row.subject, row.source, row.not_after, str(row.days)) for row in rows],
        )
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


def _points(installation: Installation, now: datetime) -> Sequence[Point]:
    pods = installation.pods()
    chain = installation.chain()
    revision = installation.options.istio.revision
    return [
        *verification.pods(pods),
        *(verification.plugin_log(text) for text in installation.plugin_logs(pods)),
        *verification.chain(chain, now),
        verification.distributed(chain, installation.published_roots()),
        verification.webhooks(installation.webhooks(), revision),
    ]
