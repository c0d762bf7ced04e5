"""ConfigMap vault-tls-cert: which CA istiod's pod trusts Vault by."""

from cryptography import x509

from istio_hsm_installer.certificates import MALFORMED
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.objects import MANAGED_BY, Document
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import KubeObject


def vault_ca(options: Options) -> KubeObject:
    """Return the step."""
    return KubeObject(
        name="vault-ca",
        title="CA that istiod's pod trusts Vault by",
        hint="check vault.caFile",
        make=_config_map,
        options=options,
    )


def _config_map(options: Options) -> Document:
    pem = read_pem(options.vault.ca_file)
    try:
        x509.load_pem_x509_certificates(pem)
    except MALFORMED:
        raise InputError(
            f"{options.vault.ca_file} holds no PEM certificate", hint="check vault.caFile"
        ) from None
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "vault-tls-cert",
            "namespace": options.istio.namespace,
            "labels": MANAGED_BY,
        },
        "data": {"cert": pem.decode()},
    }
