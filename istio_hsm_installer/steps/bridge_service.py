"""Service istiod-ca-bridge: where upstream's proxies find the CA that signs in the HSM."""

from istio_hsm_installer.modes import BRIDGE_PORT
from istio_hsm_installer.objects import MANAGED_BY, Document
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.kube_object import KubeObject
from istio_hsm_installer.steps.step import Area


def bridge_service(options: Options) -> KubeObject:
    """Return the step."""
    return KubeObject(
        name="bridge-service",
        title="Service of the CA bridge",
        hint="see the Service istiod-ca-bridge in the control plane's namespace",
        make=_service,
        options=options,
        area=Area.ISTIO,
    )


def _service(options: Options) -> Document:
    host, _, port = options.istio.ca_address.rpartition(":")
    selector = {"app": "istiod", "istio.io/rev": options.istio.revision or "default"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": host.partition(".")[0],
            "namespace": options.istio.namespace,
            "labels": MANAGED_BY,
        },
        "spec": {
            "ports": [
                {
                    "name": "tls-ca",
                    "port": int(port),
                    "targetPort": BRIDGE_PORT,
                    "protocol": "TCP",
                }
            ],
            "selector": selector,
        },
    }
