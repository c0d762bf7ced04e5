"""The offline root in a token of its own: made there, signs there, by a plugin for the occasion."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e.installer_runs import Ran, run_cli
from tests.support import pki
from tests.support.softhsm import SoftHsm, make_token


@dataclass(frozen=True, slots=True)
class Officer:
    """A security officer's folder and token."""

    folder: Path
    token: SoftHsm

    def uri(self, *, key: str = "root-1", pin: str = "pin") -> str:
        return (
            f"pkcs11:token={self.token.label};id={key}?module-path={self.token.module}"
            f"&pin-source=file:{self.token.folder / pin}"
        )

    def run(self, *command: str) -> Ran:
        environment = {
            "SOFTHSM2_CONF": str(self.token.config),
            "HOME": str(self.folder),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        return run_cli(["ceremony", *command, "-o", "json"], environment)

    def make_root(self, name: str = "root.pem", **uri: str) -> Ran:
        made = ("--root-cert", str(self.folder / name), "--subject", "CN=Offline Root,O=Example")
        return self.run("root", *made, "--root-pkcs11", self.uri(**uri))

    def sign(self, name: str = "root.pem", **uri: str) -> Ran:
        files = ("--root-cert", str(self.folder / name), "--chain", str(self.folder / "chain.pem"))
        csr = self.folder / "csr.pem"
        csr.write_bytes(pki.request("mesh"))
        return self.run("sign", str(csr), *files, "--root-pkcs11", self.uri(**uri))

    def chain(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self.folder / "chain.pem").read_bytes())


@pytest.fixture(scope="module")
def officer(tmp_path_factory: pytest.TempPathFactory) -> Officer:
    folder = tmp_path_factory.mktemp("officer")
    return Officer(folder, make_token(folder / "token", label="offline-root", pin="31337-pin"))


def test_a_root_is_made_in_the_token_and_signs_there_and_the_pin_is_nowhere(
    officer: Officer,
) -> None:
    with watched("31337-pin") as seen:
        made = officer.make_root()
        assert made.code == 0, made.err
        signed = officer.sign()
    assert signed.code == 0, signed.err
    ca, root = officer.chain()
    root.verify_directly_issued_by(root)
    ca.verify_directly_issued_by(root)
    judged = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-CAfile", str(officer.folder / "root.pem")),
            str(officer.folder / "chain.pem"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stderr
    assert "31337-pin" not in made.out + made.err + signed.out + signed.err
    assert seen.programs > 0
    assert seen.leaks == []
    assert plugins_of(officer.folder) == []
    (officer.folder / "chain.pem").unlink()


def test_a_root_in_the_token_signs_a_revocation_list(officer: Officer) -> None:
    root, out = officer.folder / "listed.pem", officer.folder / "issuer-crls.pem"
    assert officer.make_root(root.name, key="root-of-lists").code == 0
    where = ("--root-cert", str(root), "--out", str(out))

    made = officer.run(
        "crl", *where, "--revoke", "5F:A3", "--root-pkcs11", officer.uri(key="root-of-lists")
    )
    assert made.code == 0, made.err
    judged = subprocess.run(
        ["openssl", "crl", "-in", str(out), "-CAfile", str(root), "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verify OK" in judged.stderr
    assert "5FA3" in judged.stdout

    out.unlink()
    refused = officer.run("crl", *where, "--root-pkcs11", officer.uri(key="nowhere"))
    assert refused.code == 1
    assert not out.exists()


def test_a_root_is_not_made_over_another(officer: Officer) -> None:
    (officer.folder / "theirs.pem").write_text("theirs")
    refused = officer.make_root("theirs.pem")
    assert refused.code == 1
    assert "exists already" in refused.err


def test_a_certificate_of_another_key_is_told_before_anything_is_signed(officer: Officer) -> None:
    (officer.folder / "other.pem").write_bytes(pki.root("Offline Root").pem)
    refused = officer.sign("other.pem")
    assert refused.code == 1
    assert "the key root-1 in the token is not the root certificate's" in refused.err
    missing = officer.sign("other.pem", key="nowhere")
    assert missing.code == 1
    assert "its signing keys: root-1" in missing.err
    assert not (officer.folder / "chain.pem").exists()


def test_a_wrong_pin_is_spent_once_and_never_again(officer: Officer) -> None:
    (officer.token.folder / "wrong").write_text("not-the-pin")
    first = officer.make_root("never.pem", pin="wrong")
    second = officer.make_root("never.pem", pin="wrong")
    assert (first.code, second.code) == (1, 1)
    assert "the root's token cannot be used" in first.err
    assert json.loads((officer.folder / "state" / "istio-hsm" / "pin-guard.json").read_text())
    assert first.err != second.err  # the second says that it was not tried again
    assert "not-the-pin" not in first.err + second.err
    assert not (officer.folder / "never.pem").exists()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:/root.key", "no PKCS#11 URI"),
        ("pkcs11:token=a;id=b?module-path=/m", "has no pin-source"),
        ("pkcs11:token=a;id=b?module-path=/m&pin-value=1234", "would show the PIN"),
        ("pkcs11:token=a;id=b?module-path=/nowhere&pin-source=/p", "is no file"),
        ("pkcs11:token=a;token=b", "stands wrongly"),
        ("pkcs11:slot-id=1", "not understood"),
        ("pkcs11:token=%ff;id=b", "not UTF-8"),
    ],
)
def test_a_uri_that_cannot_be_followed_is_told(officer: Officer, uri: str, said: str) -> None:
    root = ("--root-cert", str(officer.folder / "r.pem"), "--subject", "CN=x")
    refused = officer.run("root", *root, "--root-pkcs11", uri)
    assert refused.code == 1
    assert said in refused.err
    assert "1234" not in refused.err


def test_one_root_key_is_one_too_few_and_two_are_one_too_many(officer: Officer) -> None:
    (officer.folder / "csr.pem").write_bytes(pki.request("mesh"))
    files = ("--root-cert", "r.pem", "--chain", "c.pem")
    command = ("sign", str(officer.folder / "csr.pem"), *files)
    for more in ((), ("--root-key", "k", "--root-pkcs11", officer.uri())):
        refused = officer.run(*command, *more)
        assert refused.code == 1
        assert "told once" in refused.err


@dataclass
class Seen:
    """What was seen of the plugin's processes."""

    programs: int = 0
    leaks: list[str] = field(default_factory=list)


@contextmanager
def watched(secret: str) -> Iterator[Seen]:
    """Look at the arguments and the environment of all processes of the plugin, again and again."""
    seen, is_over = Seen(), threading.Event()

    def look() -> None:
        while not is_over.wait(0.005):
            for process in processes("hsm"):
                seen.programs += 1
                if secret in process:
                    seen.leaks.append(process)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def plugins_of(folder: Path) -> list[str]:
    return [text for text in processes("hsm") if str(folder) in text]


def processes(name: str) -> list[str]:
    """Return arguments and environment of the processes whose arguments have the name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_text()
            if name in arguments and entry.name != str(os.getpid()):
                found.append(arguments + (entry / "environ").read_text())
    return found
