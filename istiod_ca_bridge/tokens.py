"""Who judges bearer tokens here: the API server, the issuer's keys in a file, or nobody."""

from collections.abc import Callable
from datetime import datetime

from istiod_ca_bridge.authn import Caller, SignedTokenAuthenticator, TokenAuthenticator
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.errors import ClusterUnavailableError, UnauthenticatedError
from istiod_ca_bridge.jwks_file import JwksFile
from istiod_ca_bridge.kube_client import Cluster
from istiod_ca_bridge.kube_remote import KubernetesRemoteSecrets, connect_remote
from istiod_ca_bridge.kube_tokens import KubernetesTokenReviewer
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.remote_clusters import RemoteClusters
from istiod_ca_bridge.remote_kubeconfig import RemoteApi
from istiod_ca_bridge.token_review import (
    ReviewedToken,
    ReviewedTokenAuthenticator,
    TokenReviewer,
)


def token_authenticator(
    config: Config,
    jwks: JwksFile | None,
    cluster: Cluster | None,
    clock: Callable[[], datetime],
    metrics: Metrics,
) -> TokenAuthenticator | None:
    """Return what the settings ask for; None when tokens are not accepted."""
    if jwks is not None:
        return SignedTokenAuthenticator(
            jwks.keys, config.token_issuer, config.token_audiences, config.trust_domain, clock
        )
    if config.review_tokens and cluster is not None:
        return _reviewed(cluster, config, clock, metrics)
    return None


def remote_clusters(
    config: Config,
    cluster: Cluster | None,
    clock: Callable[[], datetime],
    metrics: Metrics,
    log: EventLog,
) -> RemoteClusters | None:
    """Return who judges the tokens of other clusters; None when they are not accepted."""
    if not config.remote_clusters or cluster is None:
        return None
    return RemoteClusters(
        KubernetesRemoteSecrets(cluster, config.namespace),
        config.cluster_id,
        lambda remote: ReviewedRemotely(remote, config, clock, metrics),
        log,
    )


class ReviewedRemotely:
    """Tokens of another cluster, judged by its API server."""

    def __init__(
        self, remote: RemoteApi, config: Config, clock: Callable[[], datetime], metrics: Metrics
    ) -> None:
        self._cluster = connect_remote(remote)
        self._tokens = _reviewed(self._cluster, config, clock, metrics)

    async def authenticate(self, token: str) -> Caller:
        """Return the caller, as for the own cluster."""
        try:
            return await self._tokens.authenticate(token)
        except RuntimeError:  # the cluster was let go of meanwhile
            raise UnauthenticatedError("the token's cluster is not served here") from None

    def close(self) -> None:
        """End the threads that ask."""
        self._cluster.close()


def _reviewed(
    cluster: Cluster, config: Config, clock: Callable[[], datetime], metrics: Metrics
) -> ReviewedTokenAuthenticator:
    return ReviewedTokenAuthenticator(
        MeasuredReviewer(KubernetesTokenReviewer(cluster, config.token_audiences), metrics),
        config.trust_domain,
        config.token_review_cache,
        clock,
        observe=lambda how: metrics.token_cache.labels(how).inc(),
    )


class MeasuredReviewer:
    """Counts what another reviewer answers."""

    def __init__(self, reviewer: TokenReviewer, metrics: Metrics) -> None:
        self._reviewer = reviewer
        self._reviews = metrics.reviews

    async def review(self, token: str) -> ReviewedToken:
        """Return the other reviewer's answer."""
        outcome = "accepted"
        try:
            return await self._reviewer.review(token)
        except UnauthenticatedError:
            outcome = "refused"
            raise
        except ClusterUnavailableError:
            outcome = "unavailable"
            raise
        finally:
            self._reviews.labels(outcome).inc()
