"""What an installation left in the cluster, read for verify, status, sysdump and the rest."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509

from istio_hsm_installer import certificates, custody
from istio_hsm_installer.custody import CaKey
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.kube import Cluster
from istio_hsm_installer.objects import Document, Ref, entries, name_of, section
from istio_hsm_installer.options import Mode, Options
from istio_hsm_installer.secret_dir import CHAIN_KEY, CHAIN_SECRET

BRIDGE = "istiod-ca-bridge"
KEY_SECRET = "istio-ca-encrypted-key"  # noqa: S105 - a Secret's name
TLS_SECRET = "istiod-tls"  # noqa: S105 - a Secret's name
STATUS_MAP = "istio-hsm-ca-status"
_LOG_BYTES = 1 << 16
"""The marks of a good start are at the beginning."""

_XDS_PORT = 15012


@dataclass(frozen=True, slots=True)
class Installation:
    """One control plane."""

    options: Options
    cluster: Cluster

    @property
    def namespace(self) -> str:
        """Of the control plane."""
        return self.options.istio.namespace

    @property
    def revision(self) -> str:
        """As the labels have it."""
        return self.options.istio.revision or "default"

    def pods(self) -> Sequence[Document]:
        """Return istiod's pods of the revision, and the bridge's where it has its own."""
        found: dict[str, Document] = {}
        for selector in (
            f"app=istiod,istio.io/rev={self.revision}",
            f"app.kubernetes.io/name={BRIDGE}",
        ):
            for pod in self.cluster.list(Ref("Pod", "", self.namespace), selector):
                found[name_of(pod)] = pod
        return list(found.values())

    def plugin_logs(self, pods: Sequence[Document]) -> Sequence[str]:
        """Return the beginning of the log of each plugin; of the first pod where none has one."""
        with_plugin = [pod for pod in pods if "hsm-plugin" in containers_of(pod)] or pods[:1]
        return [
            self.cluster.log(Ref("Pod", name_of(pod), self.namespace), "hsm-plugin", _LOG_BYTES)
            for pod in with_plugin
        ]

    def chain(self) -> Sequence[x509.Certificate]:
        """Return the delivered chain; none when there is none that can be read."""
        return certificates.read(self.secret(CHAIN_SECRET).get(CHAIN_KEY, b""))

    def key(self) -> CaKey:
        """Return where the CA key is."""
        return custody.ca_key(self.secret(KEY_SECRET))

    def secret(self, name: str) -> Mapping[str, bytes]:
        """Return the values of a Secret of the control plane; none when it is not there."""
        return self.values_of(self.cluster.read(Ref("Secret", name, self.namespace)))

    def values_of(self, secret: Document | None) -> Mapping[str, bytes]:
        """Return the values of a Secret that was read."""
        return {str(key): _decoded(value) for key, value in section(secret, "data").items()}

    def config_map(self, name: str) -> Mapping[str, str] | None:
        """Return the texts of a ConfigMap of the control plane; None when it is not there."""
        found = self.cluster.read(Ref("ConfigMap", name, self.namespace))
        if found is None:
            return None
        return {str(key): str(value) for key, value in section(found, "data").items()}

    def published_roots(self) -> Sequence[tuple[str, str]]:
        """Return the namespace and PEM of each istio-ca-root-cert."""
        return [
            (
                str(section(entry, "metadata").get("namespace")),
                str(section(entry, "data").get("root-cert.pem")),
            )
            for entry in self.cluster.list(
                Ref("ConfigMap"), fields="metadata.name=istio-ca-root-cert"
            )
        ]

    def webhooks(self) -> Sequence[Document]:
        """Return every mutating webhook configuration."""
        ref = Ref("MutatingWebhookConfiguration", api="admissionregistration.k8s.io/v1")
        return self.cluster.list(ref)

    def webhook_bundles(self) -> Sequence[bytes]:
        """Return the CA bundles of the revision's webhooks."""
        return [
            _decoded(section(hook, "clientConfig").get("caBundle") or "")
            for entry in self.webhooks()
            if section(entry, "metadata", "labels").get("istio.io/rev") == self.revision
            for hook in entries(entry, "webhooks")
        ]

    def events(self, last: int) -> Sequence[Document]:
        """Return the last Events of the control plane's namespace, oldest first."""
        found = self.cluster.list(Ref("Event", "", self.namespace))
        return sorted(found, key=when)[-last:]

    def injected(self) -> Sequence[str]:
        """Return the namespaces that carry the revision's label."""
        found = self.cluster.list(Ref("Namespace"), f"istio.io/rev={self.revision}")
        return sorted(name for entry in found if (name := name_of(entry)) != self.namespace)

    @property
    def server_name(self) -> str:
        """The name under which the CA or istiod serves inside the cluster."""
        if self.options.mode is Mode.CA_SERVER:
            return self.options.istio.ca_address.rpartition(":")[0]
        return f"istiod.{self.namespace}.svc"

    def service_address(self) -> str:
        """Return where the CA or istiod serves, as the cluster's nodes and pods reach it."""
        port = _XDS_PORT
        if self.options.mode is Mode.CA_SERVER:
            port = int(self.options.istio.ca_address.rpartition(":")[2])
        name, *rest = self.server_name.split(".")
        ref = Ref("Service", name, rest[0] if rest else self.namespace)
        address = str(section(self.cluster.read(ref), "spec").get("clusterIP") or "None")
        if address == "None":
            raise InputError(
                f"{ref} has no address in the cluster", hint="give --address host:port"
            )
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def containers_of(pod: Document) -> Sequence[str]:
    """Return the names of a pod's containers, native sidecars and init containers too."""
    spec = section(pod, "spec")
    found = [*entries(spec, "initContainers"), *entries(spec, "containers")]
    return [str(entry.get("name")) for entry in found]


def when(event: Document) -> str:
    """Return an Event's time, RFC 3339 in UTC: whichever of its fields is set."""
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((str(time) for time in times if time), "")


def _decoded(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        return b""
