"""What one bridge does: who signs with the CA key, and who asks for certificates."""

from enum import Enum


class BridgeMode(Enum):
    """The four ways to put the CA key to work; docs/ca-bridge.md says when to use which."""

    CA_SERVER = "ca-server"
    """Agents ask this process, at caAddress."""

    CSR_SIGNER = "csr-signer"
    """istiod asks it, by Kubernetes' CertificateSigningRequests."""

    SEALED = "sealed"
    """istiod signs, with the key that this process unwraps into memory for it."""

    ASM = "asm"
    """As ca-server, with the key and the Secrets of an installation of the guide."""

    @property
    def answers_agents(self) -> bool:
        """Whether Istio's CA API is served."""
        return self in {BridgeMode.CA_SERVER, BridgeMode.ASM}

    @property
    def unwraps_key(self) -> bool:
        """Whether the CA key has to be a sealed one."""
        return self in {BridgeMode.SEALED, BridgeMode.ASM}
