"""Every variable of the guide as one frozen value, with what follows from them. Pure.

Each field's metadata is what the schema, the validation and `config init` are made from.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
VAULT_PATH = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"
IMAGE = r"^[a-z0-9][a-zA-Z0-9_.:/@-]*$"
PLAIN_TEXT = r"^(?![0-9.]*$)(?!true$|false$|null$)[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}$"
"""Neither istioctl's --set syntax nor what it would read as a number or a truth value."""

PLAIN_ID = r"^(?![0-9.]*$)(?!true$|false$|null$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
HOST_PORT = r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"

GUIDE_JWT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"
PROJECTED_JWT_PATH = "/var/run/secrets/vault/token"
_RENAMED_SERVICE_ACCOUNT = (1, 11)


class Flavour(StrEnum):
    """Whose Istio is installed."""

    ASM = "asm"
    UPSTREAM = "upstream"


class Mode(StrEnum):
    """Who signs workload certificates."""

    ASM = "asm"
    """istiod of Anthos Service Mesh, with a key that the HSM's KEK seals."""

    CA_SERVER = "ca-server"
    """istiod-ca-bridge behind caAddress, with a key in the HSM."""

    CSR_SIGNER = "csr-signer"
    """istiod asks istiod-ca-bridge by Kubernetes' CSR API, with a key in the HSM."""

    SEALED = "sealed"
    """A stock istiod, its plugged-in CA key unsealed by the HSM's KEK into memory."""


def setting(about: str, *, pattern: str = "", example: str = "", unit: str = "") -> dict[str, Any]:
    """Return a field's metadata: its help line, and what its text must look like."""
    return {"about": about, "pattern": pattern, "example": example, "unit": unit}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The Kubernetes cluster."""

    suffix: str = field(
        metadata=setting("names everything of this cluster", pattern=DNS_LABEL, example="c1")
    )
    api_server: str | None = field(
        default=None,
        metadata=setting(
            "how Vault reaches the API server; the kubeconfig's server when left out",
            pattern=r"^https://[^\s/]+$",
            example="https://10.0.0.10:443",
        ),
    )
    min_nodes: int = field(default=4, metadata=setting("checked by `check`"))
    min_cpus: int = field(default=4, metadata=setting("checked by `check`", unit="vCPU in all"))
    min_memory_gb: int = field(default=15, metadata=setting("checked by `check`", unit="GB in all"))
    min_version: str = field(
        default="1.19", metadata=setting("oldest Kubernetes", pattern=r"^1\.[0-9]+$")
    )
    max_version: str | None = field(
        default=None,
        metadata=setting("newest Kubernetes that this Istio supports", pattern=r"^1\.[0-9]+$"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultOptions:
    """The Vault or OpenBao server, and how it trusts the cluster."""

    address: str = field(
        metadata=setting(
            "VAULT_ADDR", pattern=r"^https://[^\s/]+$", example="https://vault.example.com:8200"
        )
    )
    ca_file: Path = field(
        metadata=setting("the CA that issued Vault's certificate, PEM", example="vault-ca.pem")
    )
    namespace: str | None = field(
        default=None, metadata=setting("Vault's own namespace, if it has any", pattern=VAULT_PATH)
    )
    kv_version: int = field(default=1, metadata=setting("of the kv mount: 1 (the guide) or 2"))
    kv_mount: str | None = field(
        default=None, metadata=setting("asm-<suffix> when left out", pattern=VAULT_PATH)
    )
    hsm_secret_path: str | None = field(
        default=None,
        metadata=setting(
            "HSM_SECRET_PATH: the secret, and the auth mount; <kvMount>/hsm when left out",
            pattern=VAULT_PATH,
        ),
    )
    policy: str | None = field(
        default=None, metadata=setting("asm-<suffix>-hsm-policy when left out", pattern=DNS_NAME)
    )
    role: str = field(default="istiod", metadata=setting("of the auth mount", pattern=DNS_NAME))
    audience: str | None = field(
        default=None,
        metadata=setting(
            "required of istiod's token; `vault` when left out, for asm none",
            pattern=r"^[!-~]{1,128}$",
        ),
    )
    role_ttl: timedelta = field(
        default=timedelta(hours=1), metadata=setting("of a login's token; the guide's is 768h")
    )
    max_lease_ttl: timedelta = field(
        default=timedelta(hours=87600), metadata=setting("of the kv mount")
    )
    reviewer_namespace: str = field(
        default="vault",
        metadata=setting("holds the account that Vault reviews tokens with", pattern=DNS_LABEL),
    )
    reviewer_service_account: str = field(
        default="default", metadata=setting("that account", pattern=DNS_NAME)
    )
    reviewer_token_secret: str = field(
        default="default-token", metadata=setting("VAULT_SA_SECRET", pattern=DNS_NAME)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HsmOptions:
    """The token, the credentials that Vault keeps for it, and the plugin beside the operator."""

    slot_label: str = field(metadata=setting("HSM_SLOT_LABEL", pattern=PLAIN_TEXT, example="mesh"))
    kek_id: str = field(
        metadata=setting(
            "KEK_ID: any id of your choice, such as a UUID",
            pattern=PLAIN_ID,
            example="7651a4ea-eeb7-4c1f-927b-8c871c2127aa",
        )
    )
    root_cert_file: Path = field(
        metadata=setting("the offline root that signs the mesh's CA, PEM", example="root.pem")
    )
    client_cert_file: Path = field(
        metadata=setting("for mutual TLS with the HSM", example="hsm/clientcert.pem")
    )
    client_key_file: Path = field(metadata=setting("its key", example="hsm/clientkey.pem"))
    server_cert_file: Path = field(
        metadata=setting("the HSM's own certificate", example="hsm/servercert.pem")
    )
    pin_file: Path | None = field(
        default=None, metadata=setting("the slot's PIN; asked for when left out")
    )
    address: str | None = field(
        default=None,
        metadata=setting(
            "where `check` tries the HSM over TLS; not tried when left out",
            pattern=HOST_PORT,
            example="hsm.example.com:1792",
        ),
    )
    socket: Path = field(
        default=Path("/tmp/.hsm-sock"),  # noqa: S108 - the guide's path
        metadata=setting("SOCKET of the plugin that runs beside this command"),
    )
    plugin_command: str = field(
        default="hsm-plugin", metadata=setting("its client", pattern=r"^[!-~]+$")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What runs in istiod's pod."""

    hsm_plugin: str = field(
        default="gcr.io/thalescpl-io-k8s-kms-plugin/hsm-plugin:asm-1.7-1",
        metadata=setting("HSM_PLUGIN_IMAGE", pattern=IMAGE),
    )
    vault_client: str = field(
        default="gcr.io/gke-release/asm/vaultclient:latest",
        metadata=setting("VAULT_CLIENT_IMAGE", pattern=IMAGE),
    )
    bridge: str = field(
        default="istiod-ca-bridge:0.1.0",
        metadata=setting("of istiod-ca-bridge; not in mode asm", pattern=IMAGE),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioOptions:
    """Which Istio, and how."""

    flavour: Flavour = field(default=Flavour.ASM, metadata=setting("whose Istio"))
    mode: Mode | None = field(
        default=None, metadata=setting("asm for asm, ca-server for upstream, when left out")
    )
    version: str = field(
        default="1.10.6", metadata=setting("of Istio", pattern=r"^1\.[0-9]+(\.[0-9]+)?$")
    )
    revision: str = field(
        default="asm-1106-2",
        metadata=setting("empty for the default revision", pattern=r"^([a-z0-9][-a-z0-9]{0,61})?$"),
    )
    profile: str | None = field(
        default=None,
        metadata=setting(
            "of istioctl; asm-multicloud for asm, default for upstream", pattern=DNS_NAME
        ),
    )
    namespace: str = field(
        default="istio-system", metadata=setting("of the control plane", pattern=DNS_LABEL)
    )
    trust_domain: str = field(
        default="cluster.local", metadata=setting("of the SPIFFE ids", pattern=DNS_NAME)
    )
    service_account: str | None = field(
        default=None,
        metadata=setting("istiod's; follows from version and revision", pattern=DNS_NAME),
    )
    ca_address: str = field(
        default="istiod-ca-bridge.istio-system.svc:15012",
        metadata=setting("of the bridge; mode ca-server", pattern=HOST_PORT),
    )
    cert_signer: str | None = field(
        default=None,
        metadata=setting(
            "domain/name of the signer; mode csr-signer",
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+"
            r"/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            example="mesh.example.com/hsm",
        ),
    )
    overlays: tuple[Path, ...] = field(
        default=(), metadata=setting("files given to istioctl with -f")
    )
    istioctl: str = field(default="istioctl", metadata=setting("the program", pattern=r"^[!-~]+$"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOptions:
    """The downloaded release, when its signature is to be verified."""

    archive: Path | None = field(default=None, metadata=setting("the tarball or zip"))
    signature: Path | None = field(default=None, metadata=setting("its .1.sig"))
    public_key_file: Path | None = field(
        default=None, metadata=setting("PEM; the guide's key when left out")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One installation."""

    cluster: ClusterOptions
    vault: VaultOptions
    hsm: HsmOptions
    images: ImageOptions
    istio: IstioOptions
    release: ReleaseOptions

    @property
    def kv_mount(self) -> str:
        """The path of the kv mount, without slashes at its ends."""
        return self.vault.kv_mount or f"asm-{self.cluster.suffix}"

    @property
    def hsm_secret_path(self) -> str:
        """The guide's HSM_SECRET_PATH."""
        return self.vault.hsm_secret_path or f"{self.kv_mount}/hsm"

    @property
    def policy(self) -> str:
        """The name of the policy."""
        return self.vault.policy or f"asm-{self.cluster.suffix}-hsm-policy"

    @property
    def mode(self) -> Mode:
        """The mode, from the flavour when it is left out."""
        by_flavour = {Flavour.ASM: Mode.ASM, Flavour.UPSTREAM: Mode.CA_SERVER}
        return self.istio.mode or by_flavour[self.istio.flavour]

    @property
    def profile(self) -> str:
        """The profile of istioctl, from the flavour when it is left out."""
        by_flavour = {Flavour.ASM: "asm-multicloud", Flavour.UPSTREAM: "default"}
        return self.istio.profile or by_flavour[self.istio.flavour]

    @property
    def istio_version(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.istio.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def service_account(self) -> str:
        """ServiceAccount of istiod: renamed in Istio 1.11, and per revision since."""
        if self.istio.service_account:
            return self.istio.service_account
        if self.istio_version < _RENAMED_SERVICE_ACCOUNT:
            return "istiod-service-account"
        return self.istiod_name

    @property
    def istiod_name(self) -> str:
        """The name of istiod's Deployment."""
        return f"istiod-{self.istio.revision}" if self.istio.revision else "istiod"

    @property
    def audience(self) -> str | None:
        """What istiod's token must be for; ASM sends the pod's own token, which has no other."""
        if self.vault.audience or self.istio.flavour is Flavour.ASM:
            return self.vault.audience
        return "vault"
