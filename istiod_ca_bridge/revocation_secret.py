"""Where the record of revoked certificates lies: a Secret, or a folder of the directory store."""

from istiod_ca_bridge.config import Config
from istiod_ca_bridge.directory_secret import DirectorySecret
from istiod_ca_bridge.istiod_tls import ReplaceableSecret
from istiod_ca_bridge.kube_client import Cluster, connect
from istiod_ca_bridge.kube_secret import KubernetesSecret
from istiod_ca_bridge.revocations import REVOCATIONS_SECRET
from istiod_ca_bridge.store import SECRET_TYPE


def revocation_secret(config: Config, cluster: Cluster | None = None) -> ReplaceableSecret:
    """Return the record's place; without a cluster to ask, one is connected to where need be."""
    if config.store_directory is not None:
        return DirectorySecret(config.store_directory, REVOCATIONS_SECRET)
    return KubernetesSecret(
        cluster or connect(config.kubeconfig), config.namespace, REVOCATIONS_SECRET, SECRET_TYPE
    )
