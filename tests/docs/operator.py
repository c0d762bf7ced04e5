"""What an operator has beside the pages: files, an HSM, a Vault, a cluster that starts the CA."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client

from tests.docs.sandbox import Sandbox
from tests.support import pki
from tests.support.hsm_credentials import make_credentials
from tests.support.kube import KubeCluster
from tests.support.kube_process import dying_with_parent
from tests.support.openbao import OpenBao
from tests.support.ports import free_port
from tests.support.softhsm import SoftHsm

KEK_ID = "7651a4ea-eeb7-4c1f-927b-8c871c2127aa"
CA_NAMESPACE, CA_NAME = "istio-system", "istiod-ca-bridge"
_PASSPHRASE = b"the passphrase of the root"
_BIN = Path(sys.executable).parent
_POLL_SECONDS = 0.1


def offline_root(name: str = "Mesh Root") -> pki.Issued:
    """Return a root that outlives the CA certificates of the pages."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return pki.issue(
        name,
        is_ca=True,
        usage=pki.CA_USAGE,
        key=key,
        valid_until=pki.MOMENT + timedelta(days=3650),
        extensions=((identifier, False),),
    )


def write_root(folder: Path, root: pki.Issued, name: str = "root") -> None:
    """Write root.pem, root.key and its passphrase."""
    (folder / f"{name}.pem").write_bytes(root.pem)
    (folder / "passphrase").write_bytes(_PASSPHRASE)
    (folder / f"{name}.key").write_bytes(
        root.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(_PASSPHRASE),
        )
    )


def write_credentials(folder: Path, pin: str) -> dict[str, str]:
    """Write the HSM's client files as the operator guide names them, and return them."""
    values = make_credentials() | {"PIN": pin}
    folder.mkdir()
    for key, name in (
        ("clientcert", "clientcert.pem"),
        ("clientkey", "clientkey.pem"),
        ("servercert", "servercert.pem"),
        ("PIN", "pin"),
    ):
        (folder / name).write_text(values[key])
    return values


def write_vault_files(sandbox: Sandbox, bao: OpenBao) -> None:
    """Write Vault's CA, and its token where `vault` and `istio-hsm` look for it."""
    (sandbox.folder / "vault-ca.pem").write_bytes(bao.ca.pem)
    for name in (".vault-token", "vault-token"):
        (sandbox.folder / name).write_text(bao.root_token)
    sandbox.replaced["https://vault.example.com:8200"] = bao.address


@contextmanager
def cluster_that_starts_the_ca(kube: KubeCluster, socket: Path, folder: Path) -> Iterator[None]:
    """What a kubelet would do: run the bridge of the manifests, with their rights, once applied."""
    ended = threading.Event()
    keeper = threading.Thread(target=_run_bridge, args=(kube, socket, folder, ended))
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _run_bridge(kube: KubeCluster, socket: Path, folder: Path, ended: threading.Event) -> None:
    apps = client.AppsV1Api(kube.admin_client())
    name = f"metadata.name={CA_NAME}"
    while not apps.list_deployment_for_all_namespaces(field_selector=name).items:
        if ended.wait(_POLL_SECONDS):
            return
    core = client.CoreV1Api(kube.admin_client())
    settings: dict[str, str] = next(
        entry.data or {}
        for entry in core.list_namespaced_config_map(CA_NAMESPACE).items
        if entry.metadata and str(entry.metadata.name).startswith("istio-hsm-settings")
    )
    environment = {
        "PATH": str(_BIN),
        "KUBECONFIG": str(kube.service_account_kubeconfig(CA_NAMESPACE, CA_NAME)),
        "POD_NAMESPACE": CA_NAMESPACE,
        "KEY_MANAGEMENT_ENDPOINT": str(socket),
        "KEY_MANAGEMENT_KEY_ID": settings["KEY_MANAGEMENT_KEY_ID"],
        "CA_LISTEN": f"127.0.0.1:{free_port()}",
    }
    (folder / "bridge.env").write_text("\n".join(f"{k}={v}" for k, v in environment.items()))
    with (folder / "bridge.log").open("wb") as log:
        process = subprocess.Popen(
            [str(_BIN / "istiod-ca-bridge"), "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            ended.wait()
        finally:
            process.terminate()
            process.wait(30)


def delivered_to_the_ca(kube: KubeCluster, bao: OpenBao, folder: Path) -> dict[str, str]:
    """Return what vault-client delivers to the CA's pod with the rights that the page gave."""
    folder.mkdir()
    output = folder / "out"
    output.mkdir()
    jwt = folder / "jwt"
    jwt.write_text(kube.service_account_token(CA_NAMESPACE, CA_NAME, audiences=["vault"]))
    subprocess.run(
        dying_with_parent([str(_BIN / "vault-client"), "--once"]),
        env={
            "VAULT_ADDR": bao.address,
            "VAULT_CACERT": str(bao.ca_file),
            "VAULT_AUTH_PATH": "auth/asm-c1/hsm/login",
            "VAULT_ROLE": "istiod",
            "VAULT_KV_PATH": "asm-c1/hsm",
            "VAULT_AUTH_JWT_PATH": str(jwt),
            "OUTPUT_DIR": str(output),
            "VAULT_CLIENT_ALLOW_DISK": "true",
        },
        check=True,
        capture_output=True,
        timeout=60,
    )
    names = {"clientcert": "clientcert.pem", "clientkey": "clientkey.pem"}
    names |= {"servercert": "servercert.pem", "PIN": "pin"}
    return {key: (output / name).read_text() for key, name in names.items()}


def create_shop(kube: KubeCluster) -> None:
    """Make the namespace of a workload, with one Deployment."""
    kube.create_namespace("shop")
    create_deployment(kube, "shop", "web")


def create_deployment(kube: KubeCluster, namespace: str, name: str) -> None:
    """Make a Deployment of one container."""
    labels = {"app": name}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[client.V1Container(name="app", image="app:1")]),
    )
    client.AppsV1Api(kube.admin_client()).create_namespaced_deployment(
        namespace,
        client.V1Deployment(
            metadata=client.V1ObjectMeta(name=name),
            spec=client.V1DeploymentSpec(
                selector=client.V1LabelSelector(match_labels=labels), template=template
            ),
        ),
    )


def gateway_address(kube: KubeCluster) -> str | None:
    """Return the address that the gateway's Service asks for."""
    core = client.CoreV1Api(kube.admin_client())
    found = core.read_namespaced_service("istio-ingressgateway", CA_NAMESPACE)
    return found.spec.load_balancer_ip if found.spec else None


def restarted(kube: KubeCluster) -> bool:
    """Return whether the workload's Deployment was restarted."""
    found = client.AppsV1Api(kube.admin_client()).read_namespaced_deployment("web", "shop")
    assert found.spec is not None
    assert found.spec.template.metadata is not None
    return "kubectl.kubernetes.io/restartedAt" in (found.spec.template.metadata.annotations or {})


def kubectl_with_exec(program: Path, environment_file: Path) -> str:
    """Return a script: kubectl, and where it is to run a program in the CA's pod, that program."""
    return f"""#!/bin/bash
if [ "$1" != exec ]; then exec {program} "$@"; fi
while [ "$1" != -- ]; do shift; done
shift
exec env -i $(cat {environment_file}) "$@"
"""


def pin_of(hsm: SoftHsm) -> str:
    """Return the PIN that the token of the test takes."""
    return hsm.pin_file.read_text()


def published_roots(kube: KubeCluster, namespace: str) -> str:
    """Return what workloads of the namespace are told to trust."""
    core = client.CoreV1Api(kube.admin_client())
    found = core.read_namespaced_config_map("istio-ca-root-cert", namespace)
    return (found.data or {})["root-cert.pem"]


def key_sha256(csr: x509.CertificateSigningRequest) -> str:
    """Return what two people compare before they sign."""
    der = csr.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()
