"""`doctor` finds each thing that is wrong, with a hint, and spends no PIN attempt on it."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm


@dataclass(frozen=True, slots=True)
class Site:
    hsm: SoftHsm
    plugin: Plugin

    def doctor(self, **changed: str) -> tuple[int, list[dict[str, Any]]]:
        """Return the exit code and the checks."""
        environment = self.hsm.environment() | {"SOCKET": str(self.plugin.socket)} | changed
        done = plugins.command(["doctor", "-o", "json", "--timeout", "3s"], environment=environment)
        return done.returncode, json.loads(done.stdout)["checks"]

    def faults(self, **changed: str) -> list[dict[str, Any]]:
        code, checks = self.doctor(**changed)
        assert code == 79
        found = [check for check in checks if check["level"] == "fault"]
        assert all(check["hint"] for check in found)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("doctor")
    hsm = softhsm.make_token(folder / "token")
    with plugins.running(
        hsm, folder / "run", environment={"AUDIT_LOG": str(folder / "audit.log")}
    ) as plugin:
        with plugin.signing() as stub, plugin.keys() as keys:
            stub.GenerateSigningKey(
                signing.GenerateSigningKeyRequest(key_id=b"ca", algorithm=signing.ECDSA_P256)
            )
            keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"kek"))
        plugin.await_event("audit.checkpoint")
        yield Site(hsm, plugin)


def test_a_healthy_plugin_has_no_fault_and_its_keys_are_told(site: Site) -> None:
    code, checks = site.doctor()
    assert code == 0, checks
    told = [check["message"] for check in checks]
    assert any('"ca" was made in the token and cannot leave it' in line for line in told)
    assert any('"kek" was made in the token and cannot leave it' in line for line in told)
    assert "CKM_AES_GCM" in told
    groups = {check["group"].split(",")[0] for check in checks}
    assert groups >= {"settings", "module", "token", "mechanisms", "socket", "keys", "clock"}


def test_text_is_grouped_and_ends_with_the_count(site: Site) -> None:
    environment = site.hsm.environment() | {"SOCKET": str(site.plugin.socket)}
    done = plugins.command(["doctor"], environment=environment)
    assert done.returncode == 0
    assert done.stdout.startswith("settings\n  ok ")
    assert done.stdout.endswith("\n0 faults\n")


def test_each_token_of_a_list_is_looked_at_by_label_or_uri(site: Site) -> None:
    code, _ = site.doctor(P11_TOKEN=f"pkcs11:token={site.hsm.label}")
    assert code == 0
    (found,) = site.faults(P11_TOKEN=f"{site.hsm.label},pkcs11:token=stand-by")
    assert "0 tokens bear pkcs11:token=stand-by" in found["message"]
    (found,) = site.faults(P11_TOKEN="pkcs11:slot-id=1")
    assert "P11_TOKEN: the PKCS#11 URI names no token" in found["message"]


def test_another_label_names_the_tokens_that_are_there(site: Site) -> None:
    (found,) = site.faults(P11_TOKEN="other")
    assert found["group"] == "token"
    assert '"mesh"' in found["message"]


@pytest.mark.parametrize("module", ["/nowhere.so", "/proc/self/exe"])
def test_a_module_that_does_not_load_is_a_fault_of_the_module(site: Site, module: str) -> None:
    (found,) = site.faults(P11_LIB=module)
    assert found["group"] == "module"


def test_a_module_that_crashes_takes_only_the_probe_with_it(site: Site, tmp_path: Path) -> None:
    source, module = tmp_path / "crash.c", tmp_path / "crash.so"
    source.write_text(
        "unsigned long C_GetFunctionList(void **l) { *(volatile int *)0 = 0; return 0; }"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", module, source], check=True)
    (found,) = site.faults(P11_LIB=str(module))
    assert "ended its process" in found["message"]


def test_a_pin_file_for_everybody_or_none_is_a_fault(site: Site, tmp_path: Path) -> None:
    everybody = tmp_path / "pin"
    everybody.touch()
    everybody.chmod(0o444)
    for path in (everybody, tmp_path / "none"):
        (found,) = site.faults(P11_PIN_FILE=str(path))
        assert found["group"] == "settings"
        assert str(path) in found["message"]


def test_a_socket_where_nobody_answers_is_a_fault_and_the_keys_are_unknown(
    site: Site, tmp_path: Path
) -> None:
    found = site.faults(SOCKET=str(tmp_path / ".sock"))
    assert [check["group"].split(",")[0] for check in found] == ["socket", "keys"]


def test_a_socket_for_everybody_is_a_fault(site: Site) -> None:
    mode = site.plugin.socket.stat().st_mode
    site.plugin.socket.chmod(0o666)
    try:
        (found,) = site.faults()
    finally:
        site.plugin.socket.chmod(mode)
    assert "everybody may use" in found["message"]


def test_a_key_that_was_made_elsewhere_and_may_leave_is_a_fault(site: Site, tmp_path: Path) -> None:
    pem, der = tmp_path / "key.pem", tmp_path / "key.der"
    subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-out", pem], check=True)
    del der
    subprocess.run(
        [
            *("softhsm2-util", "--import", pem, "--token", site.hsm.label),
            *("--label", "istio-hsm-signing-key", "--id", "6f6c64", "--pin", site.hsm.pin),
        ],
        env=site.hsm.environment(),
        check=True,
    )
    (found,) = site.faults()
    assert '"old"' in found["message"]
    assert "is not CKA_LOCAL" in found["message"]


def test_the_signs_of_a_wrong_pin_are_told_and_no_other_is_tried(tmp_path: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    hsm.pin_file.chmod(0o600)
    hsm.pin_file.write_text("000000")
    with plugins.running(hsm, tmp_path / "run", wanted=plugins.NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        site = Site(hsm, plugin)
        before = (plugin.socket.parent / "pin-guard.json").read_bytes()
        messages = [check["message"] for check in site.faults()]
        assert any("a wrong PIN was tried" in message for message in messages)
        assert (plugin.socket.parent / "pin-guard.json").read_bytes() == before
        assert all("000000" not in message for message in messages)
