"""A workload as Istio runs it: an Envoy, and an agent that gets certificates from the bridge."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.integration.istiod_ca_bridge.harness import Workload
from tests.support.envoy import SecretFiles

SERVER = "bank"
TRUST_DOMAIN = "cluster.local"


def identity(account: str, namespace: str = "shop") -> str:
    """Return the SPIFFE identity of an account."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"


@dataclass(slots=True)
class Agent:
    """Holds a certificate for an Envoy and renews it, as Istio's agent does."""

    files: SecretFiles
    ask: Callable[[Workload | None], Workload]
    """The CA: told the certificate that is there, it answers with the next one."""

    held: Workload
    crl: Path | None = None
    """Where the ConfigMap of the revocation lists is mounted."""

    @property
    def roots(self) -> str:
        return self.held.chain[-1]

    def renew(self) -> None:
        """Get a certificate of a new key, and hand over what is new: the roots first."""
        self.hand_over(self.ask(self.held))

    def hand_over(self, workload: Workload) -> None:
        old_roots, self.held = self.roots, workload
        if self.roots != old_roots:
            self.trust()
        self.files.certify(workload)

    def trust(self) -> None:
        """Hand over the roots, with the lists where there are any."""
        there = self.crl if self.crl is not None and self.crl.exists() else None
        self.files.trust(self.roots, crl=there)


def agent(
    folder: Path, ask: Callable[[Workload | None], Workload], crl: Path | None = None
) -> Agent:
    """Return an agent that has just got its first certificate."""
    made = Agent(SecretFiles(folder), ask, ask(None), crl)
    made.trust()
    made.files.certify(made.held)
    return made
