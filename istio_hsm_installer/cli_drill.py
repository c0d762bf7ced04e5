"""`istio-hsm drill`: make a part fail on purpose, and see how long no certificate is issued."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from istio_hsm_installer import ceremony, drill, issuance_probe, outage, screen
from istio_hsm_installer import config as environment
from istio_hsm_installer.config import Secret
from istio_hsm_installer.drill import Sample
from istio_hsm_installer.errors import InputError, RefusedError
from istio_hsm_installer.exits import EXIT_FAILED, EXIT_FINE
from istio_hsm_installer.installation import Installation
from istio_hsm_installer.issuance_probe import Asking
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Ref
from istio_hsm_installer.outage import Outage
from istio_hsm_installer.screen import Output
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

_AUDIENCE = "istio-ca"
_WARM_UP_SECONDS = 20.0
_POLL_SECONDS = 0.05
_HOPELESS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED"})


class Part(StrEnum):
    """What is to fail."""

    VAULT = "vault"
    HSM = "hsm"
    PLUGIN = "plugin"


def drill_command(
    part: Annotated[Part, typer.Argument(help="What fails; names the drill in the report.")],
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="How long it fails.")] = 30,
    limit: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait for the recovery.")
    ] = 120,
    selector: Annotated[
        str | None,
        typer.Option(help="Delete the pods of this label selector; plugin: istiod's by default."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="Scale namespace/statefulset/name to 0 and back, such as Vault's."),
    ] = None,
    pid: Annotated[
        int | None, typer.Option(min=2, help="Freeze a process of this machine and thaw it.")
    ] = None,
    begin: Annotated[
        str | None, typer.Option(help="A command that makes the fault; goes with --end.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="The command that mends it.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Where the CA serves, host:port; its Service otherwise.")
    ] = None,
    server_name: Annotated[str | None, typer.Option(help="The name to expect there.")] = None,
    service_account: Annotated[
        str, typer.Option(help="Ask for certificates as this one, namespace/name.")
    ] = "default/default",
    token_file: Annotated[
        Path | None, typer.Option(help="Its token, audience istio-ca; else asked of the cluster.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.01, max=60, help="Seconds between requests.")] = 0.5,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds for a request.")] = 2,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002 - a flag of the command line
    config: ConfigOption = DEFAULT_CONFIG,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Make a part fail and report the seconds without issuance and to recovery."""
    installation = Installation(
        load_options(config, namespace), Target(context, kubeconfig).connect()
    )
    made = _outage(installation, part, selector, scale, pid, begin, end)
    if not yes and not typer.confirm(f"{made.what.capitalize()}?", err=True):
        raise InputError("nothing was done", hint="answer y, or give --yes")
    chain = installation.chain()
    if not chain:
        raise RefusedError("no chain is delivered yet: nothing is issued", hint="istio-hsm status")
    wanted = Asking(
        address=address or installation.service_address(),
        server_name=server_name or installation.server_name,
        root_pem=ceremony.to_pem(chain[-1:]),
        token=_token(installation.cluster, service_account, token_file),
        every_seconds=every,
        timeout_seconds=timeout,
    )
    with issuance_probe.asking(wanted) as samples:
        _warm_up(samples)
        began = time.monotonic()
        with outage.lasting(made):
            screen.tell(f"{made.what}: done; it lasts {seconds:g} s")
            time.sleep(seconds)
        ended = time.monotonic()
        screen.tell(f"it is over; waiting up to {limit:g} s for the recovery")
        _wait(lambda: drill.is_serving(samples, ended), limit)
        found = drill.judge(list(samples), began, ended)
    is_back = found.seconds_to_recovery is not None
    if output is Output.JSON:
        screen.as_json({"part": part.value, "fault": made.what, **asdict(found)})
    else:
        refused = ", ".join(f"{count} {status}" for status, count in found.refused.items())
        screen.show(
            output,
            {
                "part": part.value,
                "fault": made.what,
                "certificates": f"{found.issued} issued, refused: {refused or 'none'}",
                "without issuance": f"{found.seconds_without_issuance:g} s",
                "to recovery": f"{found.seconds_to_recovery:g} s"
                if is_back
                else f"not within {limit:g} s",
            },
        )
    return EXIT_FINE if is_back else EXIT_FAILED


def _outage(
    installation: Installation,
    part: Part,
    selector: str | None,
    scale: str | None,
    pid: int | None,
    begin: str | None,
    end: str | None,
) -> Outage:
    if (begin is None) != (end is None):
        raise InputError("--begin and --end go together", hint="give both, or none of the two")
    ways: Sequence[Callable[[], Outage] | None] = (
        (lambda: outage.DeletedPods(installation.cluster, installation.namespace, selector))
        if selector
        else None,
        (lambda: outage.ScaledToNone(installation.cluster, scale)) if scale else None,
        (lambda: outage.FrozenProcess(pid)) if pid else None,
        (lambda: outage.Commands(_words(begin), _words(end))) if begin and end else None,
    )
    given = [way for way in ways if way is not None]
    if len(given) == 1:
        return given[0]()
    if not given and part is Part.PLUGIN:
        revision = f"app=istiod,istio.io/rev={installation.revision}"
        return outage.DeletedPods(installation.cluster, installation.namespace, revision)
    raise InputError(
        f"how {part} is to fail is {'told twice' if given else 'not told'}",
        hint="give one of --selector, --scale, --pid, or --begin with --end",
    )


def _words(command: str) -> Sequence[str]:
    try:
        return shlex.split(command)
    except ValueError:
        raise InputError(f"{command!r} has an open quote", hint="close it") from None


def _token(cluster: Cluster, service_account: str, path: Path | None) -> Secret:
    if path is not None:
        return environment.secret_file(path)
    namespace, _, name = service_account.partition("/")
    if not namespace or not name:
        raise InputError(f"{service_account!r} is no account", hint="write namespace/name")
    return Secret(cluster.token(Ref("ServiceAccount", name, namespace), _AUDIENCE).encode())


def _warm_up(samples: Sequence[Sample]) -> None:
    _wait(
        lambda: drill.is_serving(samples, 0.0) or any(s.status in _HOPELESS for s in samples),
        _WARM_UP_SECONDS,
    )
    if drill.is_serving(samples, 0.0):
        return
    last = samples[-1].status if samples else "no answer"
    raise RefusedError(
        f"the CA does not issue even before the drill: {last}",
        hint="nothing was made to fail; see istio-hsm verify --live",
    )


def _wait(is_so: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() >= ends:
            return False
        time.sleep(_POLL_SECONDS)
    return True
