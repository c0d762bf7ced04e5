"""The preflight: looks at everything, stops at nothing, changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from istio_hsm_installer import config, findings, hsm_network
from istio_hsm_installer.errors import InstallerError, KubeUnreachableError
from istio_hsm_installer.findings import ISTIO_DOCS, KUBERNETES_DOCS, VAULT_DOCS, Finding
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Ref
from istio_hsm_installer.options import Options
from istio_hsm_installer.vault import Vault

GROUPS = ("tools", "cluster", "services", "rights", "conflicts", "vault", "hsm", "clock")
_KUBECTL = f"{KUBERNETES_DOCS}/reference/kubectl/"
_RBAC = "rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found, and which groups could not be looked at."""

    findings: Sequence[Finding]
    skipped: Sequence[str]


def run(options: Options, connect: Callable[[], Cluster]) -> Preflight:
    """Return what was found, in the order of the groups."""
    found = [*_tools(options), *_vault(options), *_hsm(options)]
    skipped = [] if options.hsm.address else ["hsm"]
    looks = {
        "cluster": _size,
        "services": _services,
        "rights": _rights,
        "conflicts": _conflicts,
        "clock": _clock,
    }
    try:
        cluster = connect()
        while looks:
            group, look = next(iter(looks.items()))
            found += _looked(group, look, options, cluster)
            del looks[group]
    except KubeUnreachableError as error:
        found.append(_from(error, "cluster", _KUBECTL))
        skipped += [group for group in looks if group != "cluster"]
    ordered = sorted(found, key=lambda finding: GROUPS.index(finding.group))
    return Preflight(ordered, [group for group in GROUPS if group in skipped])


def _looked(
    group: str,
    look: Callable[[Options, Cluster], Sequence[Finding]],
    options: Options,
    cluster: Cluster,
) -> Sequence[Finding]:
    try:
        return look(options, cluster)
    except KubeUnreachableError:
        raise
    except InstallerError as error:
        return [_from(error, group, _KUBECTL)]


def _tools(options: Options) -> Sequence[Finding]:
    found = []
    for program, link in (
        (options.istio.istioctl, f"{ISTIO_DOCS}/ops/diagnostic-tools/istioctl/"),
        (options.hsm.plugin_command, "https://github.com/ThalesGroup/k8s-kms-plugin"),
    ):
        try:
            config.find_program(program)
        except InstallerError as error:
            found.append(_from(error, "tools", link))
    return found


def _size(options: Options, cluster: Cluster) -> Sequence[Finding]:
    return [
        *findings.version(cluster.version(), options.cluster),
        *findings.nodes(cluster.list(Ref("Node")), options.cluster),
    ]


def _services(options: Options, cluster: Cluster) -> Sequence[Finding]:
    del options
    return findings.ports(cluster.list(Ref("Service")))


def _rights(options: Options, cluster: Cluster) -> Sequence[Finding]:
    istio, vault = options.istio.namespace, options.vault.reviewer_namespace
    needed = (
        ("create", Ref("Namespace")),
        ("patch", Ref("ClusterRoleBinding", api=_RBAC)),
        ("create", Ref("Secret", namespace=vault)),
        ("get", Ref("Secret", namespace=vault)),
        ("patch", Ref("ConfigMap", namespace=istio)),
        ("patch", Ref("Service", namespace=istio)),
        ("create", Ref("Secret", namespace=istio)),
        ("create", Ref("Deployment", namespace=istio, api="apps/v1")),
    )
    return [
        Finding(
            "rights",
            f"you may not {verb} {ref.plural}"
            + (f" in the namespace {ref.namespace}" if ref.namespace else ""),
            "ask for the ClusterRole cluster-admin, as the guide does, or for this right",
            f"{KUBERNETES_DOCS}/reference/access-authn-authz/rbac/",
        )
        for verb, ref in needed
        if not cluster.may(verb, ref)
    ]


def _conflicts(options: Options, cluster: Cluster) -> Sequence[Finding]:
    namespace = options.istio.namespace
    secrets = cluster.list(Ref("Secret", "", namespace))
    deployments = cluster.list(Ref("Deployment", "", namespace, "apps/v1"), "app=istiod")
    return findings.conflicts(secrets, deployments, options)


def _clock(options: Options, cluster: Cluster) -> Sequence[Finding]:
    del options
    return findings.clock("the API server", cluster.date(), datetime.now(UTC))


def _vault(options: Options) -> Sequence[Finding]:
    link = f"{VAULT_DOCS}/concepts/seal"
    vault = Vault(
        options.vault.address,
        ca_file=options.vault.ca_file,
        namespace=options.vault.namespace,
        token=None,
    )
    try:
        health = vault.health()
    except InstallerError as error:
        return [_from(error, "vault", f"{VAULT_DOCS}/configuration/listener/tcp")]
    finally:
        vault.close()
    found = list(findings.clock("Vault", health.date, datetime.now(UTC)))
    if not health.is_initialized:
        found.append(Finding("vault", "Vault is not initialised", "run: bao operator init", link))
    elif health.is_sealed:
        found.append(Finding("vault", "Vault is sealed", "run: bao operator unseal", link))
    return found


def _hsm(options: Options) -> Sequence[Finding]:
    if options.hsm.address is None:
        return []
    try:
        hsm_network.shake_hands(options.hsm, options.hsm.address)
    except InstallerError as error:
        return [_from(error, "hsm", "https://thalesdocs.com/gphsm/luna/7/docs/network/")]
    return []


def _from(error: InstallerError, group: str, link: str) -> Finding:
    return Finding(group, str(error), error.hint, link)
