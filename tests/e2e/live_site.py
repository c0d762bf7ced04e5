"""An operator's configuration for a mesh that serves: a real bridge, plugin and Kubernetes API."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.e2e.installer_runs import Ran, run_cli
from tests.integration.istiod_ca_bridge.cluster_harness import Site
from tests.integration.istiod_ca_bridge.harness import KEK_ID
from tests.support import pki

REVISION = "stable"


@dataclass(frozen=True, slots=True)
class LiveSite:
    """The site, and the folder with the configuration."""

    site: Site
    folder: Path

    @classmethod
    def made(cls, site: Site, folder: Path, *, vault_address: str = "https://127.0.0.1:1") -> Any:
        """Return it with its files written."""
        vault_ca = pki.root("Vault CA").pem
        (folder / "vault-ca.pem").write_bytes(vault_ca)
        (folder / "istio-hsm.yaml").write_text(
            f"""
apiVersion: istio-hsm/v1
cluster: {{suffix: c1}}
vault: {{address: "{vault_address}", caFile: vault-ca.pem}}
hsm: {{slotLabel: mesh, kekId: {KEK_ID}, rootCertFile: r, clientCertFile: c, clientKeyFile: k,
  serverCertFile: s, socket: {site.hsm.socket}}}
istio:
  flavour: upstream
  version: 1.28.1
  revision: {REVISION}
  namespace: {site.namespace}
  caAddress: istiod-ca-bridge.{site.namespace}.svc:15012
"""
        )
        live = cls(site, folder)
        live.config_map("vault-tls-cert", {"cert": vault_ca.decode()})
        return live

    @property
    def core(self) -> client.CoreV1Api:
        return self.site.core

    @property
    def namespace(self) -> str:
        return self.site.namespace

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, output: str = "json"
    ) -> Ran:
        files = ("-f", str(self.folder / "istio-hsm.yaml"))
        cluster = ("--kubeconfig", str(self.site.kube.kubeconfig()))
        return run_cli([*command, *files, *cluster, "-o", output], environment or {})

    def config_map(self, name: str, data: Mapping[str, str]) -> None:
        self.core.create_namespaced_config_map(
            self.namespace,
            client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data=dict(data)),
        )

    def webhook(self, bundle: bytes) -> str:
        """Write the revision's injection webhook and return its name."""
        api = client.AdmissionregistrationV1Api(self.site.kube.admin_client())
        name = f"istio-sidecar-injector-{self.namespace}"
        api.create_mutating_webhook_configuration(
            client.V1MutatingWebhookConfiguration(
                metadata=client.V1ObjectMeta(name=name, labels={"istio.io/rev": REVISION}),
                webhooks=[
                    client.V1MutatingWebhook(
                        name="rev.namespace.sidecar-injector.istio.io",
                        admission_review_versions=["v1"],
                        side_effects="None",
                        failure_policy="Ignore",
                        client_config=client.AdmissionregistrationV1WebhookClientConfig(
                            url="https://127.0.0.1:1/inject",
                            ca_bundle=base64.b64encode(bundle).decode(),
                        ),
                    )
                ],
            )
        )
        return name

    def points(self, *more: str) -> dict[str, tuple[bool, str]]:
        """Return what `verify --live` says, by name."""
        ran = self.run("verify", "--live", *more)
        return {p["name"]: (p["is_fine"], p["said"]) for p in ran.document["points"]}
