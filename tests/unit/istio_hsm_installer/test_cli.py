import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from istio_hsm_installer import errors
from istio_hsm_installer.cli import run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """csr.pem, root.pem and root.key in a folder."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "root")])
    key = ec.generate_private_key(ec.SECP256R1())
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "root.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "root.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    write_csr(tmp_path / "csr.pem")
    (tmp_path / "store").mkdir()
    return tmp_path


def write_csr(path: Path) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    path.write_bytes(csr.public_bytes(serialization.Encoding.PEM))


def sign(files: Path) -> int:
    command = f"""ceremony sign {files}/csr.pem --root-cert {files}/root.pem
        --root-key {files}/root.key --chain {files}/cert-chain.pem -o json"""
    return run(command.split())


def submit(files: Path) -> int:
    command = f"""ceremony submit {files}/cert-chain.pem --csr {files}/csr.pem
        --store-dir {files}/store -o json"""
    return run(command.split())


def test_a_csr_is_shown_as_text_and_as_json(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ceremony", "show", str(files / "csr.pem")]) == 0
    assert "O=cluster.local" in capsys.readouterr().out
    assert run(["ceremony", "show", str(files / "csr.pem"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "ECDSA secp256r1"


def test_a_signed_chain_is_delivered_where_the_bridge_looks(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(files) == 0
    assert submit(files) == 0
    delivered = files / "store" / "istio-ca-cert" / "cert-chain.pem"
    assert delivered.read_bytes() == (files / "cert-chain.pem").read_bytes()
    assert delivered.stat().st_mode & 0o777 == 0o400
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["issuer"] == "O=root"


def test_a_chain_for_another_csr_is_not_delivered(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(files) == 0
    write_csr(files / "csr.pem")
    assert submit(files) == 1
    assert "another key" in capsys.readouterr().err
    assert not (files / "store" / "istio-ca-cert").exists()


def test_an_error_is_two_lines_with_a_cause_and_a_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ceremony", "show", "/nonexistent"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: /nonexistent cannot be read")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("flag", [["-o", "json"], ["--output=json"], ["-ojson"]])
def test_an_error_has_a_code_for_programs(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ceremony", "show", "/nonexistent", *flag]) == 1
    shown = capsys.readouterr()
    [error] = json.loads(shown.out)["errors"]
    assert error["code"] == "input"
    assert shown.err == f"error: {error['message']}\nhint: {error['hint']}\n"


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    kinds = [cls.kind for cls in vars(errors).values() if is_error(cls)]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) >= {
        "failed",
        "input",
        "refused",
        "vault-forbidden",
        "tool-missing",
        "timeout",
    }


def is_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, errors.InstallerError)


@pytest.mark.parametrize("arguments", [["ceremony", "show"], ["nonsense"], ["ceremony", "--x"]])
def test_a_wrong_command_line_exits_with_64(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 64
    assert "Traceback" not in capsys.readouterr().err


def test_help_and_version_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert run([]) == 0
    assert "ceremony" in capsys.readouterr().out


def test_a_hostile_name_in_a_request_neither_moves_a_cursor_nor_hides_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mesh\x1b[8m\u202ehidden")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = csr.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    (tmp_path / "csr.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    assert run(["ceremony", "show", str(tmp_path / "csr.pem")]) == 0
    shown = capsys.readouterr().out
    assert "O=mesh?[8m?hidden" in shown
    assert "public key sha256" in shown
