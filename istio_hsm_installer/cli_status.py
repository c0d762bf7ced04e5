"""`istio-hsm status`: where the installation stands, on one screen."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from cryptography import x509

from istio_hsm_installer import config as environment
from istio_hsm_installer import screen, status, verification
from istio_hsm_installer.config import Secret
from istio_hsm_installer.custody import KeyPlace
from istio_hsm_installer.errors import InstallerError
from istio_hsm_installer.installation import STATUS_MAP, Installation, when
from istio_hsm_installer.objects import Ref, name_of
from istio_hsm_installer.options import Options
from istio_hsm_installer.screen import Output
from istio_hsm_installer.secret_dir import CSR_SECRET
from istio_hsm_installer.status import Facts
from istio_hsm_installer.vault import Vault
from istio_hsm_installer.verification import Point
from istio_hsm_installer.wiring import (
    DEFAULT_CONFIG,
    ConfigOption,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    OutputOption,
    Target,
    VaultTokenOption,
    load_options,
)

_EVENTS = 5


def status_command(
    config: ConfigOption = DEFAULT_CONFIG,
    vault_token_file: VaultTokenOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show what is installed, what it waits for, and what to do next; works without a token."""
    options = load_options(config, namespace)
    installation = Installation(options, Target(context, kubeconfig).connect())
    pods = installation.pods()
    token = environment.named_vault_token(vault_token_file)
    now = datetime.now(UTC)
    facts = _facts(installation, verification.pods(pods) if pods else [], token)
    advice = status.next_step(facts, now)
    events = [status.happening(event, when(event)) for event in installation.events(_EVENTS)]
    restarts = {name_of(pod): status.restarts(pod) for pod in pods}
    certificates = {
        role: _life(certificate, now)
        for role, certificate in zip(
            ("ca_certificate", "root"), [*facts.chain[:1], *facts.chain[-1:]], strict=False
        )
    }
    if output is Output.JSON:
        screen.as_json(
            {
                "istio": _istio(options),
                "mode": options.mode.value,
                "is_installed": facts.is_installed,
                "pods": [
                    {**asdict(pod), "restarts": restarts.get(pod.name.removeprefix("pod "), 0)}
                    for pod in facts.pods
                ],
                "key": asdict(facts.key),
                **certificates,
                "vault": {"said": facts.vault, "is_ready": facts.is_vault_ready},
                "conditions": [asdict(entry) for entry in facts.conditions],
                "injected": list(facts.injected),
                "events": [asdict(entry) for entry in events],
                "next": asdict(advice),
            }
        )
        return
    ready = ", ".join(f"{pod.name.removeprefix('pod ')} {pod.said}" for pod in facts.pods)
    screen.show(
        output,
        {
            "istio": f"{_istio(options)}, {'installed' if facts.is_installed else 'not there'}",
            "mode": options.mode.value,
            "pods": ready or "none",
            "restarts": str(sum(restarts.values())),
            "CA key": _key(facts),
            **certificates,
            "Vault": facts.vault,
            "injected": ", ".join(facts.injected) or "no namespace",
        },
    )
    for condition in facts.conditions:
        screen.say(f"  {condition.name}={condition.status} {condition.said}".rstrip())
    for event in events:
        screen.say(f"  {event.at} {event.reason} {event.about}: {event.said}", "dim")
    screen.say(f"next: {advice.why}", "bold")
    if advice.command:
        screen.say(f"    {advice.command}", "cyan")


def _facts(installation: Installation, pods: Sequence[Point], token: Secret | None) -> Facts:
    options = installation.options
    deployment = Ref("Deployment", options.istiod_name, installation.namespace, "apps/v1")
    vault, is_vault_ready = _vault(options, token)
    return Facts(
        is_installed=installation.cluster.read(deployment) is not None or bool(pods),
        pods=pods,
        key=installation.key(),
        has_csr=bool(installation.secret(CSR_SECRET)),
        chain=installation.chain(),
        vault=vault,
        is_vault_ready=is_vault_ready,
        conditions=status.conditions(installation.config_map(STATUS_MAP) or {}),
        injected=installation.injected(),
    )


def _vault(options: Options, token: Secret | None) -> tuple[str, bool]:
    vault = Vault(
        options.vault.address,
        ca_file=options.vault.ca_file,
        namespace=options.vault.namespace,
        token=token,
    )
    role = f"auth/{options.hsm_secret_path}/role/{options.vault.role}"
    try:
        health = vault.health()
        if not health.is_initialized or health.is_sealed:
            return "sealed" if health.is_initialized else "not initialised", False
        if token is None:
            return "unsealed; its role was not looked at, for want of a token", True
        has_role = vault.read(role) is not None
    except InstallerError as error:
        return str(error), False
    finally:
        vault.close()
    return f"unsealed; {role} {'is there' if has_role else 'is missing'}", has_role


def _istio(options: Options) -> str:
    istio = options.istio
    return f"{istio.flavour} {istio.version}, revision {istio.revision or 'default'}"


def _key(facts: Facts) -> str:
    if facts.key.place is KeyPlace.RESIDENT:
        return f"resident in the HSM, {facts.key.key_id}"
    if facts.key.place is KeyPlace.SEALED:
        return f"sealed by the KEK {facts.key.kek_id}, in memory while it signs"
    return "none yet"


def _life(certificate: x509.Certificate, now: datetime) -> str:
    until = certificate.not_valid_after_utc
    subject = certificate.subject.rfc4514_string()
    return f"{subject}, until {until:%Y-%m-%d}, {(until - now).days} days"
