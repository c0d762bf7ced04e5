import shlex
from typing import Any

from istio_hsm_installer import istioctl
from tests.unit.istio_hsm_installer.sample import UPSTREAM, options

GUIDE = r"""
istioctl install --set profile=asm-multicloud \
 --set revision=asm-1106-2 \
 --set values.hsm.enabled=true \
 --set values.hsm.hsmKEKID=7651a4ea-eeb7-4c1f-927b-8c871c2127aa \
 --set values.hsm.hsmPluginImage=gcr.io/thalescpl-io-k8s-kms-plugin/hsm-plugin:asm-1.7-1 \
 --set values.hsm.hsmSlotLabel=mesh \
 --set values.hsm.vaultClientImage=gcr.io/gke-release/asm/vaultclient:latest \
 --set values.hsm.vaultAddr=https://vault.example.com:8200 \
 --set values.hsm.vaultAuthPath=auth/asm-c1/hsm/login \
 --set values.hsm.vaultAuthRole=istiod \
 --set values.hsm.vaultAuthJwtPath="/var/run/secrets/kubernetes.io/serviceaccount/token" \
 --set values.hsm.vaultSecretPath=asm-c1/hsm \
 --set values.global.jwtPolicy="first-party-jwt"
"""
"""The guide's command, its variables filled in; a shell's reading of it is what counts."""


def test_for_asm_the_command_line_is_the_guide_s() -> None:
    guide = shlex.split(GUIDE.replace("\\\n", " "))
    assert ["istioctl", *istioctl.install(options())] == guide


def test_pasted_into_a_shell_it_is_the_same_command() -> None:
    command = ["istioctl", *istioctl.install(options(hsm={"slotLabel": "my mesh"}))]
    assert shlex.split(istioctl.as_text(command).replace("\\\n", " ")) == command


def test_optional_features_are_added_with_f() -> None:
    arguments = istioctl.install(options(istio={"overlays": ["tracing.yaml"]}))
    assert list(arguments[-2:]) == ["-f", "/site/tracing.yaml"]


def test_a_flag_that_was_removed_is_not_given() -> None:
    arguments = istioctl.install(options(istio={"version": "1.22.0"}))
    assert not [entry for entry in arguments if "jwtPolicy" in entry]


def test_the_uninstall_command_is_the_version_s() -> None:
    assert istioctl.uninstall(options())[:2] == ["x", "uninstall"]
    assert istioctl.uninstall(options(istio=UPSTREAM)) == ["uninstall", "--revision", "stable"]


def test_upstream_s_sidecars_start_in_the_order_of_their_needs() -> None:
    names = [entry["name"] for entry in istioctl.sidecars(options(istio=UPSTREAM))]
    assert names == ["vault-client", "hsm-plugin", "istiod-ca-bridge"]


def test_upstream_s_sidecars_are_native_and_restricted() -> None:
    for entry in istioctl.sidecars(options(istio=UPSTREAM)):
        assert entry["restartPolicy"] == "Always"
        security: Any = entry["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_credentials_are_in_memory_and_read_only_for_the_plugin() -> None:
    made = options(istio=UPSTREAM)
    by_name = {volume["name"]: volume for volume in istioctl.volumes(made)}
    assert by_name["hsm-credential"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Mi"}
    assert by_name["hsm-socket"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}
    plugin: Any = istioctl.sidecars(made)[1]
    [credentials] = [m for m in plugin["volumeMounts"] if m["name"] == "hsm-credential"]
    assert credentials["readOnly"] is True


def test_istiod_s_token_is_for_vault_alone() -> None:
    [token] = [v for v in istioctl.volumes(options(istio=UPSTREAM)) if "projected" in v]
    projected: Any = token["projected"]
    [source] = projected["sources"]
    assert source["serviceAccountToken"]["audience"] == "vault"


def test_the_vault_client_may_connect_to_the_plugin_s_socket_and_no_more() -> None:
    made: Any = istioctl.sidecars(options(istio=UPSTREAM))
    told = [{entry["name"]: entry.get("value") for entry in sidecar["env"]} for sidecar in made]
    assert told[0]["HSM_PLUGIN_SOCKET"] == told[1]["SOCKET"]
    mounts = {mount["name"]: mount for mount in made[0]["volumeMounts"]}
    assert mounts["hsm-socket"]["readOnly"] is True


def test_helm_and_istioctl_get_the_same_sidecars() -> None:
    made = options(istio=UPSTREAM)
    overlay: Any = istioctl.operator_overlay(made)
    values: Any = istioctl.helm_values(made)
    [patched] = overlay["spec"]["components"]["pilot"]["k8s"]["overlays"]
    assert patched["name"] == "istiod-stable"
    assert patched["patches"][0]["value"] == values["pilot"]["initContainers"]
    assert "initContainers" not in overlay["spec"]["values"]["pilot"]
    assert values["pilot"]["env"] == {"ENABLE_CA_SERVER": "false"}
    assert values["global"]["caAddress"] == "istiod-ca-bridge.istio-system.svc:15012"
