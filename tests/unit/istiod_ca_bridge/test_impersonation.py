import dataclasses

import pytest

from istiod_ca_bridge.authn import Caller, Method, TrustDomain
from istiod_ca_bridge.errors import ForbiddenError
from istiod_ca_bridge.identity import workload_identity
from istiod_ca_bridge.impersonation import NodeAgents

AGENT = Caller(
    workload_identity("cluster.local", "istio-system", "ztunnel"),
    Method.TOKEN,
    pod="ztunnel-x",
    pod_uid="uid-1",
)
SHOP = "spiffe://cluster.local/ns/shop/sa/cart"


class Cluster:
    """An agent's pod on node one, and a workload on each of two nodes."""

    async def node_of(self, namespace: str, pod: str, uid: str, service_account: str) -> str:
        there = ("istio-system", "ztunnel-x", "uid-1", "ztunnel")
        return "one" if (namespace, pod, uid, service_account) == there else ""

    async def runs(self, node: str, namespace: str, service_account: str) -> bool:
        return (node, namespace, service_account) in {
            ("one", "shop", "cart"),
            ("two", "bank", "vault"),
        }


def agents() -> NodeAgents:
    return NodeAgents(
        frozenset({("istio-system", "ztunnel")}),
        Cluster(),
        TrustDomain("cluster.local", frozenset({"old.test"})),
    )


async def test_an_agent_acts_as_a_workload_on_its_node_and_both_are_known() -> None:
    caller = await agents().acting_as(AGENT, SHOP)

    assert str(caller.identity) == SHOP
    assert caller.agent == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
    assert (caller.pod, caller.pod_uid) == ("ztunnel-x", "uid-1")
    of_alias = await agents().acting_as(AGENT, SHOP.replace("cluster.local", "old.test"))
    assert str(of_alias.identity) == SHOP


@pytest.mark.parametrize(
    ("changes", "requested", "reason"),
    [
        (
            {"identity": workload_identity("cluster.local", "shop", "ztunnel")},
            SHOP,
            "no node agent",
        ),
        ({"identity": workload_identity("cluster.local", "shop", "cart")}, SHOP, "no node agent"),
        ({"method": Method.CERTIFICATE}, SHOP, "bound to its pod"),
        ({"pod": ""}, SHOP, "bound to its pod"),
        ({"pod_uid": ""}, SHOP, "bound to its pod"),
        ({"pod_uid": "uid-0"}, SHOP, "is gone"),
        ({"pod": "ztunnel-y"}, SHOP, "is gone"),
        ({}, "spiffe://cluster.local/ns/bank/sa/vault", "no pod of"),
        ({}, "spiffe://else.test/ns/shop/sa/cart", "another trust domain"),
        ({}, "shop/cart", "is none"),
    ],
)
async def test_an_agent_gets_nothing_else(
    changes: dict[str, object], requested: str, reason: str
) -> None:
    agent = dataclasses.replace(AGENT, **changes)  # type: ignore[arg-type]

    with pytest.raises(ForbiddenError, match=reason):
        await agents().acting_as(agent, requested)
