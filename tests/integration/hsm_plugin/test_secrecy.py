"""A planted canary appears in no log, error, argument list or environment of the plugin."""

import base64
import json
from pathlib import Path

import grpc
import pytest

from hsm_plugin.envelope import Dek, parse
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.support import plugin as plugins
from tests.support import softhsm, token_view
from tests.support.plugin import NOT_SERVING, SERVING, Plugin

PIN = "canary-pin-90251"
WRONG_PIN = "canary-wrong-77310"
PLAINTEXT = b"canary-plaintext-41873"
AAD = b"mesh.local"


def traces_of(secret: bytes) -> set[bytes]:
    """Return the forms in which a secret might be written down."""
    encoded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
    return {
        secret,
        secret.hex().encode(),
        repr(secret)[2:-1].encode(),
        json.dumps(secret.decode("latin-1"))[1:-1].encode(),
        *(form.rstrip(b"=")[:-1] for form in encoded),
    }


def public_faces(plugin: Plugin) -> dict[str, bytes]:
    """Return what others can see of the process."""
    process = Path("/proc") / str(plugin.pid)
    faces = {
        "log": plugin.log.read_bytes(),
        "command line": (process / "cmdline").read_bytes(),
        "environment": (process / "environ").read_bytes(),
        "name": (process / "comm").read_bytes(),
    }
    for entry in plugin.socket.parent.iterdir():
        if entry.is_file() and entry != plugin.log:
            faces[entry.name] = entry.read_bytes()
    return faces


def assert_unseen(plugin: Plugin, *secrets: bytes) -> None:
    for name, face in public_faces(plugin).items():
        for secret in secrets:
            assert len(secret) >= 8
            for trace in traces_of(secret):
                assert trace not in face, f"a secret is in the {name}"


def bad_calls(stub: KeyManagementServiceStub, kek: bytes, dek: bytes) -> list[str]:
    """Return the details of calls that fail with secrets in hand."""
    sealed = stub.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=kek, encrypted_dek_blob=dek, plaintext=PLAINTEXT, aad=AAD
        )
    ).ciphertext
    answers = []
    for request in (
        kms.AuthenticatedDecryptRequest(
            kek_kid=kek, encrypted_dek_blob=dek, ciphertext=sealed, aad=b"other"
        ),
        kms.AuthenticatedDecryptRequest(
            kek_kid=kek, encrypted_dek_blob=dek, ciphertext=sealed[:-4] + b"AAAA", aad=AAD
        ),
        kms.AuthenticatedDecryptRequest(
            kek_kid=kek, encrypted_dek_blob=dek, ciphertext=PLAINTEXT, aad=AAD
        ),
        kms.AuthenticatedDecryptRequest(
            kek_kid=PLAINTEXT + b"\n", encrypted_dek_blob=PLAINTEXT, ciphertext=PLAINTEXT
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.AuthenticatedDecrypt(request)
        answers.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ImportCACert(kms.ImportCACertRequest(ca_id=PLAINTEXT, ca_cert_blob=PLAINTEXT))
    answers.append(str(caught.value.details()))
    with pytest.raises(grpc.RpcError) as caught:
        stub.LoadSKey(
            kms.LoadSKeyRequest(kek_kid=kek, encrypted_dek_blob=dek, encrypted_skey_blob=PLAINTEXT)
        )
    answers.append(str(caught.value.details()))
    return answers


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_of_any_call_is_seen_from_outside(
    tmp_path: Path, folder: Path, log_format: str
) -> None:
    hsm = softhsm.make_token(tmp_path / "token", pin=PIN)
    chatty = {"LOG_FORMAT": log_format}
    with plugins.running(hsm, folder, environment=chatty) as plugin, plugin.keys() as stub:
        kek = stub.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"k")).kek_kid
        dek = stub.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek)).encrypted_dek_blob
        skey = stub.GenerateSKey(
            kms.GenerateSKeyRequest(size=2048, kind=kms.RSA, kek_kid=kek, encrypted_dek_blob=dek)
        ).encrypted_skey_blob
        pem = stub.LoadSKey(
            kms.LoadSKeyRequest(kek_kid=kek, encrypted_dek_blob=dek, encrypted_skey_blob=skey)
        ).plaintext_skey
        answers = bad_calls(stub, kek, dek)

        jwe = parse(dek, "it")
        with token_view.viewed(hsm) as view:
            key = bytes(Dek.from_jwk(view.decrypt(kek, jwe.sealed, jwe.protected)).key)
        lines = pem.splitlines()[1:-1]
        assert_unseen(plugin, PIN.encode(), PLAINTEXT, key, *lines)
        for answer in answers:
            for trace in traces_of(PLAINTEXT):
                assert trace.decode("latin-1") not in answer
        assert "Traceback" not in plugin.text()

        assert plugin.stop() == 0
        text = plugin.log.read_bytes()
        for secret in (PIN.encode(), PLAINTEXT, key, *lines):
            assert not any(trace in text for trace in traces_of(secret))


def test_the_search_finds_a_secret_that_is_there(tmp_path: Path, folder: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token", pin=PIN)
    leaky = {"LEAK": base64.b64encode(PLAINTEXT).decode()}
    with (
        plugins.running(hsm, folder, environment=leaky) as plugin,
        pytest.raises(AssertionError, match="a secret is in the environment"),
    ):
        assert_unseen(plugin, PLAINTEXT)


def test_no_pin_is_seen_from_outside_after_a_refusal_either(tmp_path: Path, folder: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token", pin=PIN)
    right = hsm.pin_file.read_bytes()
    hsm.pin_file.unlink()
    hsm.pin_file.write_text(WRONG_PIN)
    with plugins.running(hsm, folder, wanted=NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        assert (folder / "pin-guard.json").exists()
        assert_unseen(plugin, PIN.encode(), WRONG_PIN.encode())
        hsm.pin_file.write_bytes(right)
        plugin.await_health(SERVING)
        assert_unseen(plugin, PIN.encode(), WRONG_PIN.encode())


def test_a_pin_on_the_command_line_is_refused_and_not_repeated(
    tmp_path: Path, folder: Path
) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    environment = hsm.environment() | {"SOCKET": str(folder / ".sock")}
    done = plugins.command(["serve", "--p11-pin", PIN], environment=environment)
    assert done.returncode == 2
    assert PIN not in done.stdout + done.stderr


def test_the_process_leaves_no_core_dump(plugin: Plugin) -> None:
    limits = (Path("/proc") / str(plugin.pid) / "limits").read_text().splitlines()
    [core] = [line for line in limits if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]
