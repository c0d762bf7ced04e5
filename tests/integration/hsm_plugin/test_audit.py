"""The audit log of a real plugin: what is in it, who may sign it, and what crashes leave of it."""

import hashlib
import json
import os
import resource
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing
from istio_hsm_proto.rotation_v1_pb2_grpc import RotationServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.softhsm import SoftHsm

_DIGEST = hashlib.sha256(b"canary-digest").digest()
_KEY = b"ca"


@dataclass(frozen=True, slots=True)
class Site:
    """A token with a signing key, and where the log is."""

    hsm: SoftHsm
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "audit.log"

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.entries()]

    def environment(self, **changed: str) -> dict[str, str]:
        return {"AUDIT_LOG": str(self.log), **changed}


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """A token whose signing key is there already."""
    hsm = softhsm.make_token(tmp_path_factory.mktemp("token"))
    with plugins.running(hsm, tmp_path_factory.mktemp("first")) as plugin, plugin.signing() as stub:
        stub.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=_KEY, algorithm=signing.ECDSA_P256)
        )
    return hsm


@pytest.fixture
def site(hsm: SoftHsm, tmp_path: Path) -> Site:
    return Site(hsm, tmp_path)


def sign(stub: SigningServiceStub, key_id: bytes = _KEY) -> bytes:
    request = signing.SignRequest(key_id=key_id, algorithm=signing.ECDSA_SHA256, digest=_DIGEST)
    return stub.Sign(request, timeout=10).signature


def refused(stub: SigningServiceStub, key_id: bytes = _KEY) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as met:
        sign(stub, key_id)
    code: grpc.StatusCode = met.value.code()
    return code


def verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return plugins.command(["audit", "verify", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The log of a plugin that ended in order, and the checkpoints' public key beside it."""
    site = Site(hsm, tmp_path_factory.mktemp("finished"))
    environment = site.environment(ALLOW_UIDS="any")
    with plugins.running(hsm, site.folder / "run", environment=environment) as plugin:
        with plugin.signing() as stub, plugin.keys() as keys:
            sign(stub)
            refused(stub, b"none\n")
            stub.SignBatch(
                signing.SignBatchRequest(
                    key_id=_KEY, algorithm=signing.ECDSA_SHA256, digests=[_DIGEST] * 3
                )
            )
            kek = keys.GenerateKEK(kms.GenerateKEKRequest()).kek_kid
            dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek)).encrypted_dek_blob
            keys.AuthenticatedEncrypt(
                kms.AuthenticatedEncryptRequest(
                    kek_kid=kek, encrypted_dek_blob=dek, plaintext=b"canary-plain", aad=b"a"
                )
            )
        plugin.await_event("audit.checkpoint")
        output = plugins.command(["audit", "public-key", "--socket", str(plugin.socket)])
        (site.folder / "key.pem").write_text(output.stdout)
        assert plugin.stop() == 0
    return site


def test_each_use_of_a_key_is_an_entry(finished: Site) -> None:
    uses = [entry for entry in finished.entries() if entry["kind"] == "use"]
    told = [(it["method"], it.get("key_kind"), it.get("mechanism"), it["outcome"]) for it in uses]
    assert told[:6] == [
        ("Sign", "signing-key", "ECDSA_SHA256", "OK"),
        ("Sign", "signing-key", "ECDSA_SHA256", "INVALID_ARGUMENT"),
        ("SignBatch", "signing-key", "ECDSA_SHA256", "OK"),
        ("GenerateKEK", "kek", "AES-256", "OK"),
        ("GenerateDEK", "kek", "AES-256-GCM", "OK"),
        ("AuthenticatedEncrypt", "kek", "AES-256-GCM", "OK"),
    ]
    assert uses[0]["key"] == "ca"
    assert uses[1]["key"] == "none\n"
    assert uses[2]["digests"] == 3
    assert uses[3]["key"] == uses[4]["key"] == uses[5]["key"]
    assert uses[0]["caller"] == {
        "kind": "local",
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
    }


def test_who_moves_a_dek_to_another_kek_and_who_destroys_keys_is_recorded(site: Site) -> None:
    arguments = ["--algorithm", "aes-cbc"]
    with (
        plugins.running(
            site.hsm, site.folder / "run", arguments=arguments, environment=site.environment()
        ) as plugin,
        plugin.keys() as keys,
        plugin.signing() as stub,
        plugin.channel() as channel,
    ):
        old, new = (keys.GenerateKEK(kms.GenerateKEKRequest()).kek_kid for _ in range(2))
        dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=old)).encrypted_dek_blob
        rotations = RotationServiceStub(channel)
        rotations.RewrapDEK(
            rotation.RewrapDEKRequest(old_kek_id=old, new_kek_id=new, encrypted_dek_blob=dek)
        )
        rotations.DestroyKEK(rotation.DestroyKEKRequest(kek_id=old, confirm_kek_id=old))
        made = stub.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=b"old", algorithm=signing.ECDSA_P256)
        )
        stub.DestroyKey(
            signing.DestroyKeyRequest(
                key_id=b"old",
                confirm_key_id=b"old",
                confirm_public_key_sha256=hashlib.sha256(made.key.public_key).digest(),
            )
        )
    by_method = {entry["method"]: entry for entry in site.entries() if entry["kind"] == "use"}
    cipher = "AES-256-CBC-HMAC-SHA256"
    assert by_method["GenerateDEK"]["mechanism"] == by_method["RewrapDEK"]["mechanism"] == cipher
    rewrapped, destroyed = by_method["RewrapDEK"], by_method["DestroyKEK"]
    assert (rewrapped["old_key"], rewrapped["key"]) == (old.decode(), new.decode())
    assert (destroyed["key_kind"], destroyed["key"]) == ("kek", old.decode())
    gone = by_method["DestroyKey"]
    assert (gone["key_kind"], gone["key"], gone["outcome"]) == ("signing-key", "old", "OK")


def test_no_data_is_in_the_log(finished: Site) -> None:
    content = finished.log.read_bytes()
    for canary in (b"canary-plain", _DIGEST.hex().encode(), finished.hsm.pin.encode()):
        assert canary not in content


def test_a_log_that_ended_in_order_is_whole_and_signed_to_its_end(finished: Site) -> None:
    assert finished.kinds()[0] == "start"
    assert finished.kinds()[-2:] == ["stop", "checkpoint"]
    result = verify(finished.log, "--public-key", finished.folder / "key.pem", "--output", "json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["signed_up_to"] == report["last"] - 1
    assert report["notes"] == []


def test_a_changed_entry_is_named(finished: Site, tmp_path: Path) -> None:
    copy = tmp_path / "audit.log"
    copy.write_bytes(finished.log.read_bytes().replace(b'"key":"ca"', b'"key":"cb"', 1))
    result = verify(copy, "--public-key", finished.folder / "key.pem")
    assert result.returncode == 79
    assert result.stdout.startswith("BROKEN at entry 2 (changed)")


def test_another_key_vouches_for_nothing(finished: Site, tmp_path: Path) -> None:
    with plugins.running(finished.hsm, tmp_path / "run") as plugin, plugin.signing() as stub:
        request = signing.GenerateSigningKeyRequest(key_id=b"other", algorithm=signing.ECDSA_P256)
        der = stub.GenerateSigningKey(request).key.public_key
    (tmp_path / "other.der").write_bytes(der)
    result = verify(finished.log, "--public-key", tmp_path / "other.der")
    assert result.returncode == 79
    assert "(unknown-key)" in result.stdout


def test_no_caller_signs_with_the_checkpoints_key_or_destroys_it(site: Site) -> None:
    with (
        plugins.running(site.hsm, site.folder / "run", environment=site.environment()) as plugin,
        plugin.signing() as stub,
    ):
        plugin.await_event("audit.checkpoint")
        assert refused(stub, b"audit-checkpoint") is grpc.StatusCode.INVALID_ARGUMENT
        public = stub.GetPublicKey(signing.GetPublicKeyRequest(key_id=b"audit-checkpoint")).key
        with pytest.raises(grpc.RpcError) as met:
            stub.DestroyKey(
                signing.DestroyKeyRequest(
                    key_id=b"audit-checkpoint",
                    confirm_key_id=b"audit-checkpoint",
                    confirm_public_key_sha256=hashlib.sha256(public.public_key).digest(),
                )
            )
        assert met.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        result = verify(site.log, "--socket", plugin.socket)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_kill_in_the_middle_of_an_entry_is_recovered_and_the_chain_goes_on(site: Site) -> None:
    for _ in range(2):
        with plugins.running(
            site.hsm, site.folder / "run", environment=site.environment()
        ) as plugin:
            with plugin.signing() as stub:
                sign(stub)
            plugin.await_event("audit.checkpoint")
            os.kill(plugin.pid, signal.SIGKILL)
            plugin.process.wait()
        with site.log.open("ab") as file:
            file.write(b'{"seq":99,"prev":"')
    with plugins.running(site.hsm, site.folder / "run", environment=site.environment()) as plugin:
        pass
    assert site.log.read_bytes().count(b'"kind":"recovered"') == 2
    key = site.folder / "key.pem"
    with plugins.running(site.hsm, site.folder / "run") as plugin:
        key.write_text(
            plugins.command(["audit", "public-key", "--socket", str(plugin.socket)]).stdout
        )
    result = verify(site.log, "--public-key", key)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("18 bytes of an entry that a crash cut off") == 2


def test_a_log_that_was_cut_while_the_plugin_was_away_is_told_at_its_start(site: Site) -> None:
    with plugins.running(site.hsm, site.folder / "run", environment=site.environment()) as plugin:
        with plugin.signing() as stub:
            sign(stub)
        plugin.await_event("audit.checkpoint")
    lines = site.log.read_bytes().splitlines(keepends=True)
    site.log.write_bytes(b"".join(lines[:-2]))
    with plugins.running(site.hsm, site.folder / "run", environment=site.environment()) as plugin:
        plugin.await_event("audit.cut")
    result = verify(site.log, "--chain-only")
    assert result.returncode == 79
    assert f"BROKEN at entry {len(lines) - 1} (truncated)" in result.stdout


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_a_full_disk_stops_the_use_of_keys_or_loses_entries_as_it_was_chosen(
    site: Site, policy: str
) -> None:
    environment = site.environment(AUDIT_ON_FAILURE=policy)
    with (
        plugins.running(site.hsm, site.folder / "run", environment=environment) as plugin,
        plugin.signing() as stub,
    ):
        sign(stub)
        plugin.await_event("audit.checkpoint")
        full = site.log.stat().st_size + 50
        resource.prlimit(plugin.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        if policy == "refuse":
            assert refused(stub) is grpc.StatusCode.UNAVAILABLE
            assert refused(stub) is grpc.StatusCode.UNAVAILABLE
            plugin.await_health(plugins.NOT_SERVING)
        else:
            sign(stub)
            assert plugin.health() == plugins.SERVING
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        plugin.wait_until(lambda: site.log.stat().st_size >= full, "the torn entry")
        resource.prlimit(plugin.pid, resource.RLIMIT_FSIZE, unlimited)
        plugin.wait_until(lambda: b'"kind":"lost"' in site.log.read_bytes(), "the loss")
        plugin.wait_until(lambda: _signs(stub), "a signature")
        plugin.await_health(plugins.SERVING)
        result = verify(site.log, "--socket", plugin.socket)
    assert result.returncode == 0, result.stdout
    assert "a crash cut off" in result.stdout
    assert "could not be written before it" in result.stdout


def _signs(stub: SigningServiceStub) -> bool:
    try:
        return bool(sign(stub))
    except grpc.RpcError:
        return False


def test_a_log_that_cannot_be_written_ends_the_start(site: Site) -> None:
    environment = site.environment(AUDIT_LOG=str(site.folder / "none" / "audit.log"))
    plugin = plugins.start(site.hsm, site.folder / "run", environment=environment)
    assert plugin.wait() == 2
    assert "AUDIT_LOG" in plugin.text()
