"""TokenReview (authentication.k8s.io/v1): the API server says whose a token is."""

from typing import Any

from kubernetes import client

from istiod_ca_bridge.errors import UnauthenticatedError
from istiod_ca_bridge.kube_client import FAILURES, Cluster, unavailable
from istiod_ca_bridge.token_review import ReviewedToken

_TIMEOUT_SECONDS = (2, 5)
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"


class KubernetesTokenReviewer:
    """Asks the API server about one token at a time."""

    def __init__(self, cluster: Cluster, audiences: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._reviews = client.AuthenticationV1Api(cluster.api)
        self._audiences = audiences

    async def review(self, token: str) -> ReviewedToken:
        """Return whose the token is."""
        body = client.V1TokenReview(
            spec=client.V1TokenReviewSpec(token=token, audiences=list(self._audiences))
        )
        try:
            answer: Any = await self._cluster.call(
                lambda: self._reviews.create_token_review(body, _request_timeout=_TIMEOUT_SECONDS)
            )
        except FAILURES as error:
            raise unavailable("create", "tokenreviews", error) from None
        status = answer.status
        if status is None or not status.authenticated or status.user is None:
            raise UnauthenticatedError("the token is refused by the API server")
        # An API server that knows no audiences returns none: such an answer proves nothing.
        if not set(status.audiences or ()) & set(self._audiences):
            raise UnauthenticatedError("the token is refused: its audience is not ours")
        extra = status.user.extra or {}
        return ReviewedToken(
            username=status.user.username or "",
            pod=_first(extra.get(_POD_NAME)),
            pod_uid=_first(extra.get(_POD_UID)),
        )


def _first(values: object) -> str:
    return str(values[0]) if isinstance(values, list) and values else ""
