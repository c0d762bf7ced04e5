"""The command lines of istioctl, and what upstream Istio needs beside them. Pure.

For ASM they are the guide's, line for line. Upstream istiod gets native sidecars, in the order
in which they need each other: vault-client brings the PIN, hsm-plugin logs in with it, and the
bridge signs through the plugin's socket.
"""

import shlex
from collections.abc import Sequence

from istio_hsm_installer import modes
from istio_hsm_installer.modes import memory
from istio_hsm_installer.objects import Document
from istio_hsm_installer.options import GUIDE_JWT_PATH, PROJECTED_JWT_PATH, Flavour, Options

CREDENTIALS_DIR = "/var/run/hsm-credential"
SOCKET_DIR = "/var/run/hsm-socket"
SOCKET = f"{SOCKET_DIR}/.sock"
_JWT_POLICY_GONE = (1, 22)
_UNINSTALL_IS_STABLE = (1, 17)
_USER = 1337
_FOR_EVER = 1_000_000
"""Failures of a startup probe: the next container waits, for days if the ceremony takes days."""


def install(options: Options) -> Sequence[str]:
    """Return the arguments of `istioctl install`; upstream reads its overlay from stdin."""
    if options.istio.flavour is Flavour.UPSTREAM:
        arguments = ["install", "-f", "-"]
    else:
        arguments = ["install"]
        for entry in _asm_values(options):
            arguments += ["--set", entry]
    for overlay in options.istio.overlays:
        arguments += ["-f", str(overlay)]
    return arguments


def uninstall(options: Options) -> Sequence[str]:
    """Return the arguments that take this revision away again."""
    revision = options.istio.revision or "default"
    stable = ["uninstall"] if options.istio_version >= _UNINSTALL_IS_STABLE else ["x", "uninstall"]
    return [*stable, "--revision", revision]


def as_text(command: Sequence[str]) -> str:
    """Return the command as one may paste it into a shell, an option a line."""
    lines = shlex.join(command).replace(" --set ", " \\\n  --set ")
    return lines.replace(" -f ", " \\\n  -f ")


def operator_overlay(options: Options, root_pem: str = "") -> Document:
    """Return the IstioOperator for upstream; istioctl takes sidecars as a patch only.

    `root_pem`: the mesh's root, which mode csr-signer tells istiod.
    """
    mode = modes.of(options, root_pem)
    pilot = {"path": "spec.template.spec.initContainers", "value": sidecars(options)}
    patches = [{"kind": "Deployment", "name": options.istiod_name, "patches": [pilot]}]
    spec: dict[str, object] = {"profile": options.profile}
    if options.istio.revision:
        spec["revision"] = options.istio.revision
    return {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "spec": {
            **spec,
            "meshConfig": {"trustDomain": options.istio.trust_domain, **mode.mesh_config},
            "components": {"pilot": {"k8s": {"overlays": patches}}},
            "values": {
                "global": {"istioNamespace": options.istio.namespace, **mode.global_values},
                "pilot": {
                    "env": dict(mode.istiod_env),
                    "volumes": volumes(options),
                    **({"volumeMounts": list(mode.istiod_mounts)} if mode.istiod_mounts else {}),
                },
            },
        },
    }


def helm_values(options: Options, root_pem: str = "") -> Document:
    """Return the values of the chart `istiod` for upstream; `root_pem` as above."""
    mode = modes.of(options, root_pem)
    values: dict[str, object] = (
        {"revision": options.istio.revision} if options.istio.revision else {}
    )
    return {
        **values,
        "meshConfig": {"trustDomain": options.istio.trust_domain, **mode.mesh_config},
        "global": {"istioNamespace": options.istio.namespace, **mode.global_values},
        "pilot": {
            "env": dict(mode.istiod_env),
            "initContainers": sidecars(options),
            "volumes": volumes(options),
            **({"volumeMounts": list(mode.istiod_mounts)} if mode.istiod_mounts else {}),
        },
    }


def sidecars(options: Options) -> Sequence[Document]:
    """Return the native sidecars in the order in which they start."""
    mode = modes.of(options)
    credentials = {"name": "hsm-credential", "mountPath": CREDENTIALS_DIR}
    socket = {"name": "hsm-socket", "mountPath": SOCKET_DIR}
    token = {"name": "vault-token", "mountPath": PROJECTED_JWT_PATH.rpartition("/")[0]}
    vault_client = {
        **_sidecar("vault-client", options.images.vault_client, _vault_client_env(options)),
        "startupProbe": {
            "exec": {"command": ["vault-client", "healthcheck"]},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": _FOR_EVER,
        },
        "volumeMounts": [
            credentials,
            {**token, "readOnly": True},
            {**socket, "readOnly": True},
        ],
    }
    hsm_plugin = {
        **_sidecar("hsm-plugin", options.images.hsm_plugin, _hsm_plugin_env(options)),
        "startupProbe": {
            "exec": {"command": ["hsm-plugin", "health"]},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": _FOR_EVER,
        },
        "volumeMounts": [
            {**credentials, "readOnly": True},
            socket,
            {"name": "hsm-client-config", "mountPath": "/onprem/config", "readOnly": True},
        ],
    }
    bridge = {
        **_sidecar("istiod-ca-bridge", options.images.bridge, _bridge_env(options), _POD),
        **mode.bridge,
        "startupProbe": {
            "exec": {"command": ["istiod-ca-bridge", "health"]},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": _FOR_EVER,
        },
        "volumeMounts": [{**socket, "readOnly": True}, *mode.bridge_mounts],
    }
    return [vault_client, hsm_plugin, bridge]


def volumes(options: Options) -> Sequence[Document]:
    """Return the pod's volumes: nothing secret touches a disk."""
    token = {
        "path": PROJECTED_JWT_PATH.rpartition("/")[2],
        "audience": options.audience,
        "expirationSeconds": 3600,
    }
    return [
        memory("hsm-credential", "4Mi"),
        memory("hsm-socket", "1Mi"),
        {"name": "vault-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "hsm-client-config", "configMap": {"name": "hsm-client-config"}},
        *modes.of(options).volumes,
    ]


def expected_env(options: Options) -> dict[str, Document]:
    """Return, by container, the variables that tell this installation from another."""
    if options.istio.flavour is Flavour.UPSTREAM:
        by_name = {
            "vault-client": _vault_client_env(options),
            "hsm-plugin": _hsm_plugin_env(options),
            "istiod-ca-bridge": _bridge_env(options),
        }
        return {**by_name, "discovery": modes.of(options).istiod_env}
    return {
        "hsm-plugin": {"P11_TOKEN": options.hsm.slot_label},
        "vaultclient": {
            "VAULT_ADDR": options.vault.address,
            "VAULT_AUTH_PATH": f"auth/{options.hsm_secret_path}/login",
            "VAULT_ROLE": options.vault.role,
            "VAULT_KV_PATH": options.hsm_secret_path,
        },
        "discovery": {"KEY_MANAGEMENT_KEY_ID": options.hsm.kek_id},
    }


def expected_images(options: Options) -> dict[str, str]:
    """Return the image of each container that is ours."""
    images = options.images
    if options.istio.flavour is Flavour.UPSTREAM:
        return {
            "vault-client": images.vault_client,
            "hsm-plugin": images.hsm_plugin,
            "istiod-ca-bridge": images.bridge,
        }
    return {"hsm-plugin": images.hsm_plugin, "vaultclient": images.vault_client}


def _asm_values(options: Options) -> Sequence[str]:
    path = options.hsm_secret_path
    values = {
        "profile": options.profile,
        "revision": options.istio.revision,
        "values.hsm.enabled": "true",
        "values.hsm.hsmKEKID": options.hsm.kek_id,
        "values.hsm.hsmPluginImage": options.images.hsm_plugin,
        "values.hsm.hsmSlotLabel": options.hsm.slot_label,
        "values.hsm.vaultClientImage": options.images.vault_client,
        "values.hsm.vaultAddr": options.vault.address,
        "values.hsm.vaultAuthPath": f"auth/{path}/login",
        "values.hsm.vaultAuthRole": options.vault.role,
        "values.hsm.vaultAuthJwtPath": GUIDE_JWT_PATH,
        "values.hsm.vaultSecretPath": path,
    }
    if options.istio_version < _JWT_POLICY_GONE:
        values["values.global.jwtPolicy"] = "first-party-jwt"
    if options.istio.trust_domain != "cluster.local":
        values["meshConfig.trustDomain"] = options.istio.trust_domain
    return [f"{name}={value}" for name, value in values.items()]


def _vault_client_env(options: Options) -> Document:
    return {
        "OUTPUT_DIR": CREDENTIALS_DIR,
        "VAULT_ADDR": options.vault.address,
        **({"VAULT_NAMESPACE": options.vault.namespace} if options.vault.namespace else {}),
        "VAULT_AUTH_CERT_CM": f"vault-tls-cert.{options.istio.namespace}",
        "VAULT_AUTH_PATH": f"auth/{options.hsm_secret_path}/login",
        "VAULT_ROLE": options.vault.role,
        "VAULT_AUTH_JWT_PATH": PROJECTED_JWT_PATH,
        "VAULT_KV_PATH": options.hsm_secret_path,
        "HSM_PLUGIN_SOCKET": SOCKET,
    }


def _hsm_plugin_env(options: Options) -> Document:
    return {
        "P11_TOKEN": options.hsm.slot_label,
        "ChrystokiConfigurationPath": "/onprem/config",
        "P11_LIB": "/onprem/lib/libCryptoki2.so",
        "P11_PIN_FILE": f"{CREDENTIALS_DIR}/pin",
        "SOCKET": SOCKET,
    }


def _bridge_env(options: Options) -> Document:
    return {
        "KEY_MANAGEMENT_ENDPOINT": SOCKET,
        "KEY_MANAGEMENT_KEY_ID": options.hsm.kek_id,
        "TRUST_DOMAIN": options.istio.trust_domain,
        "POD_NAMESPACE": options.istio.namespace,
        "ISTIO_REVISIONS": options.istio.revision or "default",
        **modes.of(options).bridge_env,
    }


_POD = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid"}


def _sidecar(
    name: str, image: str, environment: Document, fields: Document | None = None
) -> dict[str, object]:
    """Return an init container that keeps running, restricted as PodSecurity wants it.

    `fields`: variables whose values are fields of the pod, by path.
    """
    return {
        "name": name,
        "image": image,
        "restartPolicy": "Always",
        "env": [
            *({"name": key, "value": value} for key, value in environment.items()),
            *(
                {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for key, path in (fields or {}).items()
            ),
        ],
        "securityContext": {
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
