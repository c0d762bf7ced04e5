"""The faults that chaos knows: what each is, where it strikes, and for how long."""

from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """What a fault is done to; two at once are of different parts."""

    BRIDGE = "bridge"
    PLUGIN = "plugin"
    MODULE = "PKCS#11 module"
    VAULT = "Vault"
    DELIVERY = "vault-client"
    API = "Kubernetes API"
    DISK = "disk of the logs"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault's words and bounds."""

    title: str
    part: Part
    shortest: float = 0.0
    longest: float = 0.0
    """Seconds until chaos itself ends it; 0: nobody ends it, the system mends it."""


class Fault(Enum):
    """Every fault, by the name that the results have."""

    BRIDGE_KILLED = Kind("SIGKILL of a replica of the bridge", Part.BRIDGE)
    LEADER_KILLED = Kind("SIGKILL of the leading replica", Part.BRIDGE)
    BRIDGES_KILLED = Kind("SIGKILL of every replica at once", Part.BRIDGE)
    BRIDGE_FROZEN = Kind("SIGSTOP of a replica", Part.BRIDGE, 2.0, 6.0)
    BRIDGE_STOPPED = Kind("SIGTERM of a replica, as in a rolling update", Part.BRIDGE)
    PLUGIN_KILLED = Kind("SIGKILL of the plugin", Part.PLUGIN)
    PLUGIN_FROZEN = Kind("SIGSTOP of the plugin", Part.PLUGIN, 2.0, 6.0)
    WORKER_KILLED = Kind("SIGKILL of the plugin's worker process", Part.PLUGIN)
    MODULE_HANGS = Kind("every C_Sign hangs", Part.MODULE, 2.0, 6.0)
    MODULE_CRASHES = Kind("SIGSEGV in C_Sign", Part.MODULE)
    DEVICE_ERROR = Kind("CKR_DEVICE_ERROR from every call", Part.MODULE, 2.0, 6.0)
    TOKEN_AWAY = Kind("CKR_TOKEN_NOT_PRESENT from every call", Part.MODULE, 2.0, 6.0)
    SESSIONS_LOST = Kind("every session and the login lost", Part.MODULE)
    MODULE_FINALISED = Kind("the module finalised behind the plugin's back", Part.MODULE)
    MODULE_SLOW = Kind("5 ms more for each PKCS#11 call", Part.MODULE, 3.0, 6.0)
    VAULT_KILLED = Kind("SIGKILL of OpenBao, started and unsealed later", Part.VAULT, 1.0, 5.0)
    VAULT_SEALED = Kind("OpenBao sealed", Part.VAULT, 2.0, 6.0)
    DELIVERY_KILLED = Kind("SIGKILL of the vault client", Part.DELIVERY)
    API_FROZEN = Kind("SIGSTOP of the API server", Part.API, 3.0, 10.0)
    API_KILLED = Kind("SIGKILL of the API server, started later", Part.API, 1.0, 4.0)
    CHAIN_DELETED = Kind("Secret istio-ca-cert deleted, put back later", Part.API, 3.0, 6.0)
    CHAIN_SPOILT = Kind("Secret istio-ca-cert spoilt, mended later", Part.API, 3.0, 6.0)
    CHAIN_FOREIGN = Kind("another CA's chain in istio-ca-cert", Part.API, 3.0, 6.0)
    ROOT_DELETED = Kind("ConfigMap istio-ca-root-cert deleted", Part.API)
    ROOT_CHANGED = Kind("ConfigMap istio-ca-root-cert changed", Part.API)
    ISTIOD_TLS_DELETED = Kind("Secret istiod-tls deleted", Part.API)
    KEY_RECORD_DELETED = Kind("Secret istio-ca-encrypted-key deleted", Part.API)
    DISK_FULL = Kind("disk of the issuance and audit logs full", Part.DISK, 2.0, 5.0)
    CLOCK_AHEAD = Kind("a replica's clock 100 s ahead", Part.CLOCK, 3.0, 6.0)
    CLOCK_BEHIND = Kind("a replica's clock 100 s behind", Part.CLOCK, 3.0, 6.0)
    DELIVERY_CLOCK = Kind("the vault client's clock a day ahead", Part.CLOCK, 3.0, 6.0)
    PLUGIN_CLOCK = Kind("the plugin's clock an hour ahead", Part.CLOCK, 3.0, 6.0)

    @property
    def title(self) -> str:
        """What it is, in words."""
        return self.value.title

    @property
    def part(self) -> Part:
        """What it is done to."""
        return self.value.part

    @property
    def lasts(self) -> bool:
        """Whether chaos ends it; else the system mends it."""
        return self.value.longest > 0
