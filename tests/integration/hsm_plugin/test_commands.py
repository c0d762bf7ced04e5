"""The commands talk to a running plugin; what fails says a cause and a hint, on two lines."""

import base64
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_plugin.cli import run
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from tests.support import pki
from tests.support import plugin as plugins
from tests.support.pki import Issued
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

CSR_ID = b"mesh.local"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refusal(self) -> tuple[str, str]:
        """Return cause and hint of a command that failed."""
        assert self.out == ""
        cause, hint = self.err.splitlines()
        assert cause.startswith("error: ")
        assert hint.startswith("hint: ")
        assert len(hint) > len("hint: ")
        assert self.code == 1
        return cause, hint


@pytest.fixture
def command(plugin: Plugin, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command on the shared plugin's socket, in this process."""

    def execute(name: str, *arguments: object, socket: Path = plugin.socket) -> Outcome:
        capfd.readouterr()
        code = run([name, "--socket", str(socket), *map(str, arguments)])
        return Outcome(code, *capfd.readouterr())

    return execute


Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trusted(keys: KeyManagementServiceStub) -> Issued:
    """A root that the shared plugin trusts."""
    root = pki.root("Command Root")
    keys.ImportCACert(kms.ImportCACertRequest(ca_cert_blob=root.pem))
    return root


@pytest.fixture(scope="module")
def csr() -> bytes:
    return pki.request()


@pytest.fixture(scope="module")
def secret(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes, csr: bytes
) -> dict[str, bytes]:
    """The data of the Secret istio-ca-cert-csr, as istiod makes it."""
    return {
        "kek-id": kek_id,
        "encrypted-dek": dek_blob,
        "csr-id": CSR_ID,
        "encrypted-csr": encrypted(keys, kek_id, dek_blob, csr),
    }


def encrypted(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes, plaintext: bytes
) -> bytes:
    return keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=kek_id, encrypted_dek_blob=dek_blob, plaintext=plaintext, aad=CSR_ID
        )
    ).ciphertext


def data_of(secret: dict[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in secret.items()}


def written(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    return path


# -- generate-kek and test -----------------------------------------------------------------


def test_generate_kek_prints_the_line_that_operators_look_for(command: Command) -> None:
    outcome = command("generate-kek", "--kek-id", "by-command")
    assert outcome == Outcome(0, "KEK ID: by-command\n", "")
    assert command("generate-kek", "--kek-id", "by-command") == outcome


def test_generate_kek_without_an_id_prints_a_new_one(command: Command) -> None:
    first, second = (command("generate-kek", "--output", "json").out for _ in range(2))
    assert len(json.loads(first)["kek_id"]) == 36
    assert first != second


def test_test_encrypts_and_decrypts_under_a_kek(command: Command, kek_id: bytes) -> None:
    outcome = command("test", "--kek-id", kek_id.decode())
    assert outcome == Outcome(0, f"KEK {kek_id.decode()} encrypts and decrypts\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate-kek", "--kek-id", "with space"), "KEK id is not visible ASCII"),
        (("generate-kek", "--kek-id", "kek-ü"), "KEK id is not visible ASCII"),
        (("generate-kek", "--kek-id", "\udcff"), "KEK id is not visible ASCII"),
        (("generate-kek", "--kek-id", "k" * 129), "KEK id has 129 bytes"),
        (("test", "--kek-id", ""), "KEK id is empty"),
        (("test", "--kek-id", "gone"), 'has the id "gone" [NOT_FOUND]'),
    ],
)
def test_a_bad_kek_id_is_refused(command: Command, arguments: tuple[str, ...], words: str) -> None:
    assert words in command(*arguments).refusal()[0]


# -- import-ca and verify-cert -------------------------------------------------------------


@pytest.mark.parametrize("form", ["pem", "der"])
def test_import_ca_takes_pem_and_der_and_says_what_was_imported(
    command: Command, tmp_path: Path, form: str
) -> None:
    root = pki.root(f"Imported as {form}")
    path = written(tmp_path / "root", root.pem if form == "pem" else root.der)
    outcome = command("import-ca", "-f", path)
    assert outcome.code == 0
    assert f"Imported root: CN=Imported as {form}, SHA-256 " in outcome.out
    path = written(tmp_path / "chain.pem", root.pem)
    assert command("verify-cert", "-f", path).code == 0


def test_verify_cert_takes_a_chain_with_its_target_first(
    command: Command, tmp_path: Path, trusted: Issued
) -> None:
    mesh_ca = pki.intermediate(trusted)
    workload = pki.leaf(mesh_ca)
    path = written(tmp_path / "chain.pem", workload.pem + mesh_ca.pem + trusted.pem)
    outcome = command("verify-cert", "-f", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Verified: CN=workload, until ")
    shown = json.loads(command("verify-cert", "-f", path, "--output", "json").out)
    assert shown["verified"] is True
    assert shown["subject"] == "CN=workload"


_Make = Callable[[Issued], bytes]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: b"", "certificate is empty"),
        (lambda _: b"garbage", "not a certificate in PEM or DER"),
        (lambda _: b"x" * ((4 << 20) + 1), "is larger than 4194304 bytes"),
        (lambda _: b"x" * (3 << 20), "RESOURCE_EXHAUSTED"),
        (lambda _: b"x" * (1 << 20), "more than 65536"),
        (lambda root: pki.intermediate(root).pem, "not self-signed"),
        (lambda root: root.pem + root.pem, "more than one certificate"),
        (lambda root: pki.with_broken_signature(root).pem, "not self-signed"),
        (
            lambda _: pki.root(valid_until=pki.MOMENT - timedelta(minutes=1)).pem,
            "expired at",
        ),
    ],
)
def test_import_ca_refuses_what_is_no_root(
    command: Command, tmp_path: Path, trusted: Issued, make: _Make, words: str
) -> None:
    path = written(tmp_path / "root", make(trusted))
    assert words in command("import-ca", "-f", path).refusal()[0]


def test_import_ca_refuses_a_taken_id(command: Command, tmp_path: Path) -> None:
    first = written(tmp_path / "first", pki.root("First").pem)
    second = written(tmp_path / "second", pki.root("Second").pem)
    assert command("import-ca", "-f", first, "--ca-id", "taken").code == 0
    cause, hint = command("import-ca", "-f", second, "--ca-id", "taken").refusal()
    assert "another root certificate is stored under this CA id" in cause
    assert "choose another" in hint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: b"", "holds no PEM certificate"),
        (lambda _: b"garbage", "holds no PEM certificate"),
        (lambda root: pki.leaf(root).der, "holds no PEM certificate"),
        (lambda _: pki.request(), "holds no PEM certificate"),
        (lambda root: pki.leaf(root).pem.replace(b"MII", b"%%%"), "holds no PEM certificate"),
        (lambda _: pki.leaf(pki.root("Stranger")).pem, "neither imported nor in the chain"),
        (lambda _: pki.leaf(pki.root("Command Root")).pem, "not made by any issuer"),
        (lambda root: pki.with_broken_signature(pki.leaf(root)).pem, "not made by any issuer"),
        (lambda root: root.pem + pki.leaf(pki.root("Stranger")).pem + b"-----BEGIN", None),
        (
            lambda root: pki.issue("old", root, valid_until=pki.MOMENT - timedelta(minutes=1)).pem,
            "expired at",
        ),
        (lambda root: pki.leaf(root).pem * 17, "more than 16"),
    ],
)
def test_verify_cert_refuses_what_does_not_verify(
    command: Command, tmp_path: Path, trusted: Issued, make: _Make, words: str | None
) -> None:
    outcome = command("verify-cert", "-f", written(tmp_path / "chain", make(trusted)))
    if words is None:  # the target is the root itself, what follows it is not needed
        assert outcome.code in (0, 1)
    else:
        assert words in outcome.refusal()[0]


def test_a_hostile_name_cannot_add_a_line(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "root", pki.issue("x\nhint: run this\x1b[31m").pem)
    cause, hint = command("import-ca", "-f", path).refusal()
    assert "run this" in cause
    assert "\x1b" not in cause + hint


# -- decrypt-csr ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["whole Secret", "jsonpath .data"])
def test_decrypt_csr_reads_the_secret_in_both_forms(
    command: Command, tmp_path: Path, secret: dict[str, bytes], csr: bytes, form: str
) -> None:
    data = data_of(secret)
    document = (
        {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}
        if form == "whole Secret"
        else data
    )
    path = written(tmp_path / "secret.json", document)
    outcome = command("decrypt-csr", "-f", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.encode() == csr


def test_decrypt_csr_writes_the_request_for_all_to_read(
    command: Command, tmp_path: Path, secret: dict[str, bytes], csr: bytes
) -> None:
    path, output = written(tmp_path / "secret.json", data_of(secret)), tmp_path / "out.csr"
    outcome = command("decrypt-csr", "-f", path, "-o", output)
    assert outcome.code == 0
    assert outcome.out.startswith(f"Wrote {output}: subject CN=Mesh CA, public key SHA-256 ")
    assert output.read_bytes() == csr
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    assert x509.load_pem_x509_csr(output.read_bytes()).is_signature_valid


def test_decrypt_csr_leaves_an_older_file_alone_when_it_fails(
    command: Command, tmp_path: Path, secret: dict[str, bytes]
) -> None:
    output = written(tmp_path / "out.csr", b"older")
    path = written(tmp_path / "secret.json", data_of(secret | {"csr-id": b"other.local"}))
    command("decrypt-csr", "-f", path, "-o", output).refusal()
    assert output.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"csr-id": b"other.local"}, "additional data does not match"),
        ({"csr-id": b""}, "additional data does not match"),
        ({"kek-id": b"gone"}, "wrapped by another KEK"),
        ({"kek-id": b""}, "KEK id is empty"),
        ({"encrypted-dek": b""}, "not a compact JWE"),
        ({"encrypted-csr": b"garbage"}, "not a compact JWE"),
        ({"encrypted-csr": b"x" * (1 << 20) + b"x"}, "more than 1048576"),
    ],
)
def test_decrypt_csr_refuses_a_changed_secret(
    command: Command,
    tmp_path: Path,
    secret: dict[str, bytes],
    change: dict[str, bytes],
    words: str,
) -> None:
    path = written(tmp_path / "secret.json", data_of(secret | change))
    assert words in command("decrypt-csr", "-f", path).refusal()[0]


def test_decrypt_csr_shows_the_request_alone_and_nothing_that_moves_a_cursor(
    command: Command,
    tmp_path: Path,
    keys: KeyManagementServiceStub,
    secret: dict[str, bytes],
) -> None:
    hostile = pki.request("Mesh\x1b[8m CA")
    sealed = keys.AuthenticatedEncrypt(
        kms.AuthenticatedEncryptRequest(
            kek_kid=secret["kek-id"],
            encrypted_dek_blob=secret["encrypted-dek"],
            plaintext=b"\xff\x1b[2J\n" + hostile,
            aad=secret["csr-id"],
        )
    )
    path = written(tmp_path / "secret.json", data_of(secret | {"encrypted-csr": sealed.ciphertext}))
    assert command("decrypt-csr", "-f", path).out.encode() == hostile
    shown = command("decrypt-csr", "-f", path, "-o", tmp_path / "out.csr").out
    assert "subject CN=Mesh?[8m CA" in shown
    assert (tmp_path / "out.csr").read_bytes() == hostile


def test_decrypt_csr_refuses_a_tampered_request(
    command: Command, tmp_path: Path, secret: dict[str, bytes]
) -> None:
    parts = secret["encrypted-csr"].split(b".")
    parts[3] = parts[3][::-1]
    path = written(tmp_path / "secret.json", data_of(secret | {"encrypted-csr": b".".join(parts)}))
    assert "does not authenticate" in command("decrypt-csr", "-f", path).refusal()[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b"{}",
        b'{"data":null}',
        b'{"data":[]}',
        b'{"data":{"kek-id":"a2V5"}}',
        b'{"kek-id":7,"encrypted-dek":7,"csr-id":7,"encrypted-csr":7}',
        b'{"kek-id":"%","encrypted-dek":"","csr-id":"","encrypted-csr":""}',
        '{"kek-id":"ü","encrypted-dek":"","csr-id":"","encrypted-csr":""}'.encode(),
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"x" * ((4 << 20) + 1),
    ],
    ids=range(16),
)
def test_decrypt_csr_refuses_what_is_no_secret(
    command: Command, tmp_path: Path, content: bytes
) -> None:
    cause, _ = command("decrypt-csr", "-f", written(tmp_path / "secret.json", content)).refusal()
    assert "is not the data of the Secret istio-ca-cert-csr" in cause or "is larger than" in cause


@pytest.mark.parametrize("plaintext", [b"", b"not a request", pki.root().pem])
def test_decrypt_csr_refuses_what_decrypts_to_no_request(
    command: Command,
    keys: KeyManagementServiceStub,
    tmp_path: Path,
    secret: dict[str, bytes],
    plaintext: bytes,
) -> None:
    blob = encrypted(keys, secret["kek-id"], secret["encrypted-dek"], plaintext)
    path = written(tmp_path / "secret.json", data_of(secret | {"encrypted-csr": blob}))
    cause, _ = command("decrypt-csr", "-f", path).refusal()
    assert "decrypts, but not to a certificate request" in cause


def test_decrypt_csr_refuses_a_request_that_its_own_key_did_not_sign(
    command: Command, keys: KeyManagementServiceStub, tmp_path: Path, secret: dict[str, bytes]
) -> None:
    ours = x509.load_pem_x509_csr(pki.request())
    der = bytearray(ours.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    blob = encrypted(keys, secret["kek-id"], secret["encrypted-dek"], forged)
    path = written(tmp_path / "secret.json", data_of(secret | {"encrypted-csr": blob}))
    cause, _ = command("decrypt-csr", "-f", path).refusal()
    assert "that its own key signed" in cause


# -- files and sockets ---------------------------------------------------------------------

_FILE_COMMANDS = ["import-ca", "decrypt-csr", "verify-cert"]


@pytest.mark.parametrize("name", _FILE_COMMANDS)
def test_a_missing_file_is_named(command: Command, tmp_path: Path, name: str) -> None:
    cause, _ = command(name, "-f", tmp_path / "gone").refusal()
    assert f"{tmp_path / 'gone'} cannot be read: No such file or directory" in cause


@pytest.mark.parametrize("name", _FILE_COMMANDS)
def test_a_folder_is_no_file(command: Command, tmp_path: Path, name: str) -> None:
    assert "Is a directory" in command(name, "-f", tmp_path).refusal()[0]


def test_an_output_that_cannot_be_written_is_named(
    command: Command, tmp_path: Path, secret: dict[str, bytes]
) -> None:
    path = written(tmp_path / "secret.json", data_of(secret))
    output = tmp_path / "no" / "out.csr"
    cause, _ = command("decrypt-csr", "-f", path, "-o", output).refusal()
    assert f"{output} cannot be written: No such file or directory" in cause


def test_an_output_that_is_a_folder_leaves_nothing_behind(
    command: Command, tmp_path: Path, secret: dict[str, bytes]
) -> None:
    path = written(tmp_path / "secret.json", data_of(secret))
    (tmp_path / "out").mkdir()
    cause, _ = command("decrypt-csr", "-f", path, "-o", tmp_path / "out").refusal()
    assert "Is a directory" in cause
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "secret.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate-kek",),
        ("test", "--kek-id", "k"),
        *((name, "-f", "FILE") for name in _FILE_COMMANDS),
    ],
)
def test_a_command_without_a_plugin_says_how_to_start_one(
    command: Command,
    tmp_path: Path,
    trusted: Issued,
    secret: dict[str, bytes],
    arguments: tuple[str, ...],
) -> None:
    content: object = data_of(secret) if arguments[0] == "decrypt-csr" else trusted.pem
    path = written(tmp_path / "file", content)
    filled = [str(path) if argument == "FILE" else argument for argument in arguments]
    cause, hint = command(*filled, "--timeout", "2s", socket=tmp_path / ".sock").refusal()
    assert f"no plugin answers on {tmp_path / '.sock'}" in cause
    assert "hsm-plugin serve" in hint


# -- as processes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hsm-plugin", "k8s-kms-plugin"])
def test_the_commands_read_the_socket_from_the_environment_under_both_names(
    plugin: Plugin, name: str
) -> None:
    done = plugins.command(
        ["generate-kek", "--kek-id", "by-process"],
        environment={"SOCKET": str(plugin.socket)},
        name=name,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "KEK ID: by-process\n", "")


def test_a_process_that_fails_prints_two_lines_and_exits_1(tmp_path: Path) -> None:
    done = plugins.command(
        ["generate-kek", "--timeout", "1s"], environment={"SOCKET": str(tmp_path / ".sock")}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_an_argument_that_is_no_utf8_is_refused_without_a_traceback(plugin: Plugin) -> None:
    done = plugins.command(
        ["generate-kek", "--kek-id", os.fsdecode(b"\xff")],
        environment={"SOCKET": str(plugin.socket)},
    )
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_health_is_0_while_it_serves_and_1_when_it_waits_or_is_gone(
    command: Command, hsm: SoftHsm, tmp_path: Path
) -> None:
    assert command("health") == Outcome(0, "The plugin serves\n", "")
    hsm.pin_file.unlink()
    with plugins.running(hsm, tmp_path / "waiting", wanted=plugins.NOT_SERVING) as waiting:
        done = plugins.command(["health"], environment={"SOCKET": str(waiting.socket)})
        assert done.returncode == 1
        assert done.stderr.startswith("error: the plugin is there but does not serve")
    done = plugins.command(["health"], environment={"SOCKET": str(waiting.socket)})
    assert (done.returncode, done.stdout) == (1, "")
    assert "no plugin answers" in done.stderr


# -- signing keys --------------------------------------------------------------------------


def test_sign_digest_prints_a_signature_that_the_public_key_verifies(command: Command) -> None:
    made = command("generate-signing-key", "--key-id", "by-command", "--output", "json")
    assert made.code == 0, made.err
    public_key = serialization.load_pem_public_key(json.loads(made.out)["public_key"].encode())
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"message")
    how = ("--signature-algorithm", "ECDSA_SHA256", "--digest", digest.finalize().hex())
    signed = command("sign-digest", "--key-id", "by-command", *how)
    public_key.verify(base64.b64decode(signed.out), b"message", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        public_key.verify(base64.b64decode(signed.out), b"another", ec.ECDSA(hashes.SHA256()))


def test_an_error_has_a_code_for_programs(command: Command, tmp_path: Path) -> None:
    how = ("--signature-algorithm", "ECDSA_SHA256", "--digest", "00" * 32, "--output", "json")
    refused = command("sign-digest", "--key-id", "nowhere", *how)
    error = json.loads(refused.out)["error"]
    assert (refused.code, error["code"]) == (1, "NOT_FOUND")
    assert refused.err == f"error: {error['message']}\nhint: {error['hint']}\n"
    away = command("sign-digest", "--key-id", "x", *how, socket=tmp_path / "no")
    assert json.loads(away.out)["error"]["code"] == "UNREACHABLE"
