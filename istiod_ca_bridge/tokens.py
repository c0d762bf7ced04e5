"""Who judges bearer tokens here: the API server, the issuer's keys in a file, or nobody."""

from collections.abc import Callable
from datetime import datetime

from istiod_ca_bridge.authn import SignedTokenAuthenticator, TokenAuthenticator
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.jwks_file import JwksFile
from istiod_ca_bridge.kube_client import Cluster
from istiod_ca_bridge.kube_tokens import KubernetesTokenReviewer
from istiod_ca_bridge.token_review import ReviewedTokenAuthenticator


def token_authenticator(
    config: Config, jwks: JwksFile | None, cluster: Cluster | None, clock: Callable[[], datetime]
) -> TokenAuthenticator | None:
    """Return what the settings ask for; None when tokens are not accepted."""
    if jwks is not None:
        return SignedTokenAuthenticator(
            jwks.keys, config.token_issuer, config.token_audiences, config.trust_domain, clock
        )
    if config.review_tokens and cluster is not None:
        return ReviewedTokenAuthenticator(
            KubernetesTokenReviewer(cluster, config.token_audiences),
            config.trust_domain,
            config.token_review_cache,
            clock,
        )
    return None
