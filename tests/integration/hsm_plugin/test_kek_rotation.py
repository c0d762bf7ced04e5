"""rotate-kek, retire-kek and destroy-key against a running plugin and its token."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from hsm_plugin.cli import run
from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import rotation_v1_pb2 as rotation
from istio_hsm_proto import signing_v1_pb2 as signing_pb
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.rotation_v1_pb2_grpc import RotationServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(plugin: Plugin, capfd: pytest.CaptureFixture[str]) -> Command:
    def execute(name: str, *arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([name, "--socket", str(plugin.socket), *map(str, arguments)])
        return Outcome(code, *capfd.readouterr())

    return execute


@dataclass(frozen=True, slots=True)
class Sealed:
    """A key that a DEK encrypts, and both KEKs."""

    old: str
    new: str
    dek: bytes
    skey: bytes
    plaintext: bytes

    def secret(self) -> bytes:
        """Return the Secret's JSON as kubectl prints it."""
        values = {
            "kek-id": self.old.encode(),
            "encrypted-dek": self.dek,
            "encrypted-skey": self.skey,
        }
        data = {name: base64.b64encode(value).decode() for name, value in values.items()}
        return json.dumps({"kind": "Secret", "data": data}).encode()


@pytest.fixture
def sealed(keys: KeyManagementServiceStub) -> Sealed:
    old, new = (f"{name}-{os.urandom(4).hex()}" for name in ("old", "new"))
    for kek_id in (old, new):
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=kek_id.encode()))
    dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=old.encode())).encrypted_dek_blob
    skey = keys.GenerateSKey(
        kms.GenerateSKeyRequest(
            kind=kms.AES, size=256, kek_kid=old.encode(), encrypted_dek_blob=dek
        )
    ).encrypted_skey_blob
    return Sealed(old, new, dek, skey, loaded(keys, old, dek, skey))


def loaded(keys: KeyManagementServiceStub, kek_id: str, dek: bytes, skey: bytes) -> bytes:
    request = kms.LoadSKeyRequest(
        kek_kid=kek_id.encode(), encrypted_dek_blob=dek, encrypted_skey_blob=skey
    )
    return keys.LoadSKey(request).plaintext_skey


def data_of(content: bytes) -> dict[str, bytes]:
    data = json.loads(content)["data"]
    return {name: base64.b64decode(value) for name, value in data.items()}


def test_blobs_and_secrets_open_under_the_new_kek_and_the_old_one_can_then_go(
    command: Command, keys: KeyManagementServiceStub, sealed: Sealed, tmp_path: Path
) -> None:
    bare, secret = tmp_path / "dek", tmp_path / "secret.json"
    bare.write_bytes(sealed.dek)
    secret.write_bytes(sealed.secret())
    keks = ["--old-kek-id", sealed.old, "--new-kek-id", sealed.new]

    retire = ["--kek-id", sealed.old, "--confirm-kek-id", sealed.old]
    early = command("retire-kek", *retire, tmp_path)
    assert early.code == 1
    assert f"still needed by {bare}, {secret}" in early.err

    done = command("rotate-kek", *keks, "--output", "json", tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "new_kek_id": sealed.new,
        "sources": {str(bare): "rewrapped", str(secret): "rewrapped"},
    }
    data = data_of(secret.read_bytes())
    assert data["kek-id"] == sealed.new.encode()
    assert data["encrypted-skey"] == sealed.skey
    for dek in (data["encrypted-dek"], bare.read_bytes()):
        assert loaded(keys, sealed.new, dek, sealed.skey) == sealed.plaintext
    assert loaded(keys, sealed.old, sealed.dek, sealed.skey) == sealed.plaintext

    before = (bare.read_bytes(), secret.read_bytes())
    again = command("rotate-kek", *keks, bare, secret)
    assert again.out.count("already under the new KEK") == 2
    assert (bare.read_bytes(), secret.read_bytes()) == before

    assert command("retire-kek", *retire, bare, secret).code == 0
    with pytest.raises(grpc.RpcError) as caught:
        loaded(keys, sealed.old, sealed.dek, sealed.skey)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert loaded(keys, sealed.new, bare.read_bytes(), sealed.skey) == sealed.plaintext


def test_a_rotation_that_fails_in_part_says_where_and_is_finished_by_the_same_command(
    command: Command, keys: KeyManagementServiceStub, sealed: Sealed, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(sealed.dek)
    tail = b"A" if sealed.dek[-20:-19] != b"A" else b"B"
    bad.write_bytes(sealed.dek[:-20] + tail + sealed.dek[-19:])
    keks = ["--old-kek-id", sealed.old, "--new-kek-id", sealed.new]
    first = command("rotate-kek", *keks, bad, good)
    assert first.code == 1
    assert first.out == ""
    assert f"{bad}: failed: " in first.err
    assert "does not authenticate" in first.err
    assert f"{good}: rewrapped" in first.err
    assert "1 of 2 are not under the new KEK" in first.err
    bad.write_bytes(sealed.dek)
    second = command("rotate-kek", *keks, bad, good)
    assert second.out == f"{bad}: rewrapped\n{good}: already under the new KEK\n"
    assert loaded(keys, sealed.new, bad.read_bytes(), sealed.skey) == sealed.plaintext


def test_a_rotation_that_is_killed_leaves_whole_files_and_is_finished_by_the_same_command(
    plugin: Plugin, command: Command, keys: KeyManagementServiceStub, sealed: Sealed, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number:02}" for number in range(60)]
    for path in files:
        path.write_bytes(sealed.secret())
    keks = ["--old-kek-id", sealed.old, "--new-kek-id", sealed.new, str(tmp_path)]
    with subprocess.Popen(
        [plugins.program(), "rotate-kek", "--socket", str(plugin.socket), *keks]
    ) as process:
        while files[0].read_bytes() == sealed.secret() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    contents = [data_of(path.read_bytes()) for path in files]
    assert {data["kek-id"].decode() for data in contents} == {sealed.old, sealed.new}
    for data in contents[:1] + contents[-1:]:
        kek_id = data["kek-id"].decode()
        assert loaded(keys, kek_id, data["encrypted-dek"], sealed.skey) == sealed.plaintext
    assert command("rotate-kek", *keks).out.count("rewrapped") < len(files)
    for path in files:
        assert data_of(path.read_bytes())["kek-id"] == sealed.new.encode()


def test_a_document_goes_through_a_pipe(plugin: Plugin, sealed: Sealed) -> None:
    arguments = ["--old-kek-id", sealed.old, "--new-kek-id", sealed.new]
    content = sealed.secret()
    for _ in range(2):
        done = subprocess.run(
            [plugins.program(), "rotate-kek", "--socket", str(plugin.socket), *arguments, "-"],
            input=content,
            capture_output=True,
            check=True,
        )
        content = done.stdout
        assert data_of(content)["kek-id"] == sealed.new.encode()


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("{old}", "not-made", 'has the id "not-made"'),
        ("{new}", "{old}-2", "wrapped by neither"),
        ("{old}", "{old}", "the old and the new KEK are the same"),
        ("{old}", "two words", "new KEK id is not visible ASCII"),
        ("pkcs11:id={old};type=private", "{new}", "object of type private"),
    ],
)
def test_what_cannot_be_rotated_is_left_as_it_was(
    command: Command, sealed: Sealed, tmp_path: Path, old: str, new: str, cause: str
) -> None:
    path = tmp_path / "dek"
    path.write_bytes(sealed.dek)
    keks = [text.format(old=sealed.old, new=sealed.new) for text in (old, new)]
    done = command("rotate-kek", "--old-kek-id", keks[0], "--new-kek-id", keks[1], path)
    assert done.code == 1
    assert cause in done.err
    assert path.read_bytes() == sealed.dek


def test_a_kek_is_not_destroyed_without_its_id_twice_or_nothing_to_look_through(
    command: Command, keys: KeyManagementServiceStub, sealed: Sealed, tmp_path: Path
) -> None:
    path = tmp_path / "dek"
    path.write_bytes(sealed.dek)
    wrong = command("retire-kek", "--kek-id", sealed.new, "--confirm-kek-id", sealed.old, path)
    assert "is not the KEK id" in wrong.err
    nothing = command("retire-kek", "--kek-id", sealed.new, "--confirm-kek-id", sealed.new)
    assert "nothing was named" in nothing.err
    stream = command("retire-kek", "--kek-id", sealed.new, "--confirm-kek-id", sealed.new, "-")
    assert "- stands alone" in stream.err
    assert {wrong.code, nothing.code, stream.code} == {1}
    keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=sealed.new.encode()))


def test_the_kek_of_kubernetes_is_not_destroyed_and_a_wrapping_for_it_is_not_rotated(
    hsm: SoftHsm, folder: Path
) -> None:
    with (
        plugins.running(hsm, folder, arguments=["--kms-kek-id", "etcd"]) as plugin,
        plugin.channel() as channel,
        plugin.keys() as keys,
    ):
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"etcd"))
        request = rotation.DestroyKEKRequest(kek_id=b"etcd", confirm_kek_id=b"etcd")
        with pytest.raises(grpc.RpcError, match="encrypts for Kubernetes") as caught:
            RotationServiceStub(channel).DestroyKEK(request)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"etcd"))


def test_a_rotation_may_change_the_cipher(hsm: SoftHsm, folder: Path) -> None:
    with plugins.running(hsm, folder) as plugin, plugin.keys() as keys:
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"gcm"))
        dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=b"gcm")).encrypted_dek_blob
    with (
        plugins.running(hsm, folder, arguments=["--algorithm", "aes-cbc"]) as plugin,
        plugin.keys() as keys,
        plugin.channel() as channel,
    ):
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"cbc"))
        stub = RotationServiceStub(channel)
        request = rotation.RewrapDEKRequest(
            old_kek_id=b"gcm", new_kek_id=b"cbc", encrypted_dek_blob=dek
        )
        answer = stub.RewrapDEK(request)
        assert answer.rewrapped
        request.encrypted_dek_blob = answer.encrypted_dek_blob
        assert stub.RewrapDEK(request) == rotation.RewrapDEKResponse(
            encrypted_dek_blob=answer.encrypted_dek_blob
        )
        stub.DestroyKEK(rotation.DestroyKEKRequest(kek_id=b"gcm", confirm_kek_id=b"gcm"))
        with pytest.raises(grpc.RpcError) as caught:
            stub.DestroyKEK(rotation.DestroyKEKRequest(kek_id=b"gcm", confirm_kek_id=b"gcm"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# -- destroy-key ---------------------------------------------------------------------------


def test_a_signing_key_is_destroyed_with_its_id_twice_and_its_fingerprint(
    command: Command, signing: SigningServiceStub
) -> None:
    key_id = f"gone-{os.urandom(4).hex()}"
    request = signing_pb.GenerateSigningKeyRequest(
        key_id=key_id.encode(), algorithm=signing_pb.ECDSA_P256
    )
    signing.GenerateSigningKey(request)
    listed = json.loads(command("list-keys", "--output", "json").out)["keys"]
    [sha256] = [key["public_key_sha256"] for key in listed if key["key_id"] == key_id]
    for confirm, fingerprint, cause in (
        ("other", sha256, "confirm_key_id is not the key id"),
        (key_id, "00" * 32, "does not fit the public key"),
        (key_id, "xx", "is not hexadecimal"),
        (key_id, "00", "has not the length"),
    ):
        refused = command(
            *("destroy-key", "--key-id", key_id, "--confirm-key-id", confirm),
            *("--public-key-sha256", fingerprint),
        )
        assert refused.code == 1
        assert cause in refused.err
    uri = f"pkcs11:object=istio-hsm-signing-key;id={key_id};type=private"
    done = command(
        *("destroy-key", "--key-id", uri, "--confirm-key-id", key_id),
        *("--public-key-sha256", sha256),
    )
    assert done.out == f"Destroyed the signing key {key_id}\n"
    assert key_id not in command("list-keys").out
