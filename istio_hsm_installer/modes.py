"""What a mode of upstream Istio changes in istiod, in the bridge and in the mesh. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from istio_hsm_installer.objects import Document
from istio_hsm_installer.options import Mode, Options

BRIDGE_PORT = 15013
PLUG_IN_DIR = "/var/run/hsm-cacerts"
_HEALTH_LISTEN = "127.0.0.1:15112"


@dataclass(frozen=True, slots=True)
class Differences:
    """Where one mode differs from another; all of it goes into values, so none is secret."""

    istiod_env: Mapping[str, str]
    bridge_env: Mapping[str, str]
    mesh_config: Document = field(default_factory=dict)
    global_values: Document = field(default_factory=dict)
    bridge: Document = field(default_factory=dict)
    """Further fields of the bridge's container."""

    bridge_mounts: Sequence[Document] = ()
    istiod_mounts: Sequence[Document] = ()
    volumes: Sequence[Document] = ()


def memory(name: str, most: str) -> Document:
    """Return a volume that never touches a disk, and takes no more of the node's memory."""
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": most}}


def of(options: Options, root_pem: str = "") -> Differences:
    """Return the mode's; of asm none, for its istiod knows the HSM by itself."""
    if options.mode is Mode.CA_SERVER:
        return Differences(
            istiod_env={"ENABLE_CA_SERVER": "false"},
            bridge_env={"BRIDGE_MODE": "ca-server", "CA_LISTEN": f"0.0.0.0:{BRIDGE_PORT}"},
            global_values={"caAddress": options.istio.ca_address},
            bridge={"ports": [{"name": "tls-ca", "containerPort": BRIDGE_PORT}]},
        )
    if options.mode is Mode.CSR_SIGNER:
        return _csr_signer(options.istio.cert_signer or "", root_pem)
    if options.mode is Mode.SEALED:
        mount = {"name": "hsm-cacerts", "mountPath": PLUG_IN_DIR}
        return Differences(
            istiod_env={"ROOT_CA_DIR": PLUG_IN_DIR},
            bridge_env={
                "BRIDGE_MODE": "sealed",
                "CA_PLUG_IN_DIR": PLUG_IN_DIR,
                "HEALTH_LISTEN": _HEALTH_LISTEN,
            },
            bridge_mounts=[mount],
            istiod_mounts=[{**mount, "readOnly": True}],
            volumes=[memory("hsm-cacerts", "1Mi")],
        )
    return Differences(istiod_env={}, bridge_env={})


def _csr_signer(signer: str, root_pem: str) -> Differences:
    domain, _, name = signer.partition("/")
    certificates: dict[str, object] = {"certSigners": [signer]}
    if root_pem:
        certificates["pem"] = root_pem
    return Differences(
        istiod_env={
            "EXTERNAL_CA": "ISTIOD_RA_KUBERNETES_API",
            "CERT_SIGNER_DOMAIN": domain,
        },
        bridge_env={
            "BRIDGE_MODE": "csr-signer",
            "CERT_SIGNER_DOMAIN": domain,
            "CERT_SIGNER_NAMES": name,
            "HEALTH_LISTEN": _HEALTH_LISTEN,
        },
        mesh_config={
            "caCertificates": [certificates],
            "defaultConfig": {"proxyMetadata": {"ISTIO_META_CERT_SIGNER": name}},
        },
        global_values={"pilotCertProvider": f"k8s.io/{signer}", "certSigners": [signer]},
    )
