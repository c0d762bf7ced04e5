"""The parts of two modes, put together from the settings."""

from collections.abc import Callable, Container
from datetime import datetime

from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.csr_signer import CsrSigner
from istiod_ca_bridge.kube_client import Cluster
from istiod_ca_bridge.kube_csr import KubernetesSigningRequests
from istiod_ca_bridge.ledger import Ledger
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.plug_in_dir import PlugInDirectory
from istiod_ca_bridge.signing_request import SigningPolicy


def plug_in_directory(config: Config) -> PlugInDirectory | None:
    """Return istiod's folder; None in another mode."""
    settings = config.plug_in
    if settings is None:
        return None
    return PlugInDirectory(
        settings.directory, allow_disk=settings.allow_disk, wipe=settings.wipe_on_exit
    )


def csr_signer(
    config: Config,
    cluster: Cluster | None,
    authority: Callable[[], Authority | None],
    clock: Callable[[], datetime],
    log: EventLog,
    metrics: Metrics,
    *,
    ledger: Ledger | None,
    blocked_keys: Container[bytes],
) -> CsrSigner | None:
    """Return the signer of istiod's requests; None in another mode."""
    settings = config.csr
    if settings is None or cluster is None:
        return None
    policy = SigningPolicy(
        requestors=settings.requestors,
        trust_domains=frozenset({config.trust_domain, *config.trust_domain_aliases}),
        dns_names=settings.dns_names,
        ttl=config.ttl,
    )
    requests = KubernetesSigningRequests(cluster)
    return CsrSigner(
        requests,
        settings.signers,
        policy,
        authority,
        clock,
        log,
        metrics,
        ledger=ledger,
        blocked_keys=blocked_keys,
    )
