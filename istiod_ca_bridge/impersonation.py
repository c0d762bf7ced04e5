"""Node agents (ambient's ztunnel) that ask for the identities of the pods on their own node.

An agent is a listed ServiceAccount, by a token that is bound to its pod. What it asks for must run
on the node of that pod now, as the API server says: no more than the node could take anyway.
"""

import dataclasses
from typing import Protocol

from istiod_ca_bridge.authn import Caller, Method, TrustDomain
from istiod_ca_bridge.errors import ForbiddenError, InvalidIdentityError, UnauthenticatedError
from istiod_ca_bridge.identity import WorkloadIdentity, parse_spiffe_id


class Pods(Protocol):
    """What runs where."""

    async def node_of(self, namespace: str, pod: str, uid: str, service_account: str) -> str:
        """Return the node of just this pod; empty when there is no such pod on a node.

        ClusterUnavailableError when that cannot be told now.
        """
        ...

    async def runs(self, node: str, namespace: str, service_account: str) -> bool:
        """Return whether a pod of this account that has not ended is on the node.

        ClusterUnavailableError when that cannot be told now.
        """
        ...


class NodeAgents:
    """Decides who may have a certificate for whom."""

    def __init__(
        self, accounts: frozenset[tuple[str, str]], pods: Pods, trust_domain: TrustDomain
    ) -> None:
        self._accounts = accounts
        """Namespace and ServiceAccount of each agent."""

        self._pods = pods
        self._trust_domain = trust_domain

    async def acting_as(self, agent: Caller, requested: str) -> Caller:
        """Return the agent as the workload that it asks for; ForbiddenError when it may not."""
        account = agent.identity
        if (account.namespace, account.service_account) not in self._accounts:
            raise ForbiddenError(
                "the caller is no node agent, which may ask for another's identity"
            )
        if agent.method is not Method.TOKEN or not agent.pod or not agent.pod_uid:
            raise ForbiddenError("a node agent proves itself by a token that is bound to its pod")
        identity = self._parsed(requested)
        node = await self._pods.node_of(
            account.namespace, agent.pod, agent.pod_uid, account.service_account
        )
        if not node:
            raise ForbiddenError("the node agent's pod is gone, or on no node")
        if not await self._pods.runs(node, identity.namespace, identity.service_account):
            raise ForbiddenError(f"no pod of {identity} is on the node agent's node")
        return dataclasses.replace(agent, identity=identity, agent=str(account))

    def _parsed(self, requested: str) -> WorkloadIdentity:
        try:
            return self._trust_domain.own(parse_spiffe_id(requested))
        except InvalidIdentityError as error:
            raise ForbiddenError(f"the identity asked for is none: {error}") from None
        except UnauthenticatedError:
            raise ForbiddenError("the identity asked for is of another trust domain") from None
