"""A configuration as `config init` gives it, with changes."""

from pathlib import Path
from typing import Any

from istio_hsm_installer import schema
from istio_hsm_installer.options import Options


def document(**sections: dict[str, Any]) -> dict[str, Any]:
    """Return the smallest sound document; a keyword's mapping is merged into its section."""
    base: dict[str, Any] = {
        "apiVersion": "istio-hsm/v1",
        "cluster": {"suffix": "c1"},
        "vault": {"address": "https://vault.example.com:8200", "caFile": "vault-ca.pem"},
        "hsm": {
            "slotLabel": "mesh",
            "kekId": "7651a4ea-eeb7-4c1f-927b-8c871c2127aa",
            "rootCertFile": "root.pem",
            "clientCertFile": "clientcert.pem",
            "clientKeyFile": "clientkey.pem",
            "serverCertFile": "servercert.pem",
        },
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return base


def options(**sections: dict[str, Any]) -> Options:
    """Return the options of such a document, its files in /site."""
    return schema.parse(document(**sections), Path("/site"))


UPSTREAM = {"flavour": "upstream", "version": "1.28.1", "revision": "stable"}
SEALED = {**UPSTREAM, "mode": "sealed"}
CSR_SIGNER = {**UPSTREAM, "mode": "csr-signer", "certSigner": "mesh.example.com/hsm"}
