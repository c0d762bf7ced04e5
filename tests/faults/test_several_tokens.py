"""The preferred token is used when it can be, a stand-by meanwhile, and no PIN is spent twice."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto import signing_v1_pb2 as signing
from tests.faults.clients import KEY_ID, make_key, sign, status_of
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.faults import Ckr, FaultyHsm, make_faulty
from tests.support.plugin import NOT_SERVING, SERVING, Plugin

FIRST, SECOND = "mesh-a", "mesh-b"
BOTH = f"{FIRST},{SECOND}"
ARGUMENTS = ("--sessions", "2", "--return-after", "500ms")
KEK = kms.GenerateKEKRequest(kek_kid=b"kek")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> FaultyHsm:
    """Two tokens with a key of the same id each, which tells them apart."""
    folder = tmp_path_factory.mktemp("pair")
    hsm = softhsm.make_token(folder / "token", label=FIRST)
    softhsm.add_token(hsm, label=SECOND, pin=hsm.pin)
    faulty = make_faulty(hsm)
    for label in (FIRST, SECOND):
        with running(faulty, folder / label, label) as plugin, plugin.signing() as stub:
            make_key(stub)
            with plugin.keys() as keys:
                keys.GenerateKEK(KEK)
    return faulty


@pytest.fixture
def hsm(pair: FaultyHsm) -> Iterator[FaultyHsm]:
    yield pair
    pair.heal()


def running(
    hsm: FaultyHsm,
    folder: Path,
    tokens: str,
    wanted: int | None = SERVING,
    arguments: Sequence[str] = (),
) -> AbstractContextManager[Plugin]:
    return plugins.running(
        hsm.hsm,
        folder,
        arguments=[*ARGUMENTS, *arguments],
        environment=hsm.environment() | {"P11_TOKEN": tokens},
        wanted=wanted,
    )


def public_key(plugin: Plugin) -> bytes:
    """Return the key's public half: of the token that is in use."""
    with plugin.signing() as stub:
        return stub.GetPublicKey(signing.GetPublicKeyRequest(key_id=KEY_ID)).key.public_key


def ranks(plugin: Plugin) -> list[int]:
    return [event["rank"] for event in plugin.events("token.connected")]


def test_the_first_of_the_list_is_used(hsm: FaultyHsm, tmp_path: Path) -> None:
    with running(hsm, tmp_path / "a", BOTH) as plugin:
        first = public_key(plugin)
        [connected] = plugin.events("token.connected")
    with running(hsm, tmp_path / "b", f"{SECOND},{FIRST}") as plugin:
        assert public_key(plugin) != first
    with running(hsm, tmp_path / "c", f"pkcs11:serial={connected['serial']}") as plugin:
        assert public_key(plugin) == first


def test_a_stand_by_serves_when_the_first_is_absent_and_nothing_is_made_on_it(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    with running(hsm, tmp_path, f"pkcs11:token=gone,{SECOND}") as plugin:
        assert ranks(plugin) == [1]
        [passed_over] = plugin.events("token.passed_over")
        assert "no token bears pkcs11:token=gone" in passed_over["message"]
        with plugin.keys() as keys:
            keys.GenerateKEK(KEK)  # it is there already
            with pytest.raises(grpc.RpcError, match="a stand-by, is in use") as caught:
                keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=b"another"))
            assert status_of(caught.value).code() is grpc.StatusCode.FAILED_PRECONDITION
        with plugin.signing() as stub, pytest.raises(grpc.RpcError, match="stand-by"):
            stub.GenerateSigningKey(
                signing.GenerateSigningKeyRequest(key_id=b"new", algorithm=signing.ECDSA_P256)
            )


def test_no_token_of_the_list_is_told_with_each_reason(hsm: FaultyHsm, tmp_path: Path) -> None:
    with running(hsm, tmp_path, "gone,pkcs11:token=lost;serial=1", NOT_SERVING) as plugin:
        plugin.await_event("token.unavailable")
        message = plugin.events("token.unavailable")[0]["message"]
    assert message.startswith("none of 2 tokens can be used: ")
    assert 'no token bears the label "gone"' in message
    assert "no token bears pkcs11:token=lost;serial=1" in message


def test_a_first_token_that_fails_is_replaced_by_the_stand_by_and_returned_to(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    with running(hsm, tmp_path, BOTH) as plugin, plugin.signing() as stub:
        first = public_key(plugin)
        hsm.sicken(FIRST)
        hsm.refuse(Ckr.DEVICE_ERROR, "C_Sign", times=1)
        with pytest.raises(grpc.RpcError):
            sign(stub)
        plugin.wait_until(lambda: ranks(plugin) == [0, 1], "a change to the stand-by")
        plugin.await_health(SERVING)
        assert public_key(plugin) != first
        assert sign(stub)
        plugin.await_event("token.standby")
        hsm.heal()
        plugin.wait_until(lambda: ranks(plugin) == [0, 1, 0], "the return")
        assert public_key(plugin) == first
        assert plugin.health() == SERVING


def test_checkpoints_of_both_tokens_are_told_apart_by_their_keys(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    log, keys = tmp_path / "audit.log", [tmp_path / "first.pem", tmp_path / "second.pem"]
    arguments = ["--audit-log", str(log), "--audit-checkpoint-every", "1s"]
    with running(hsm, tmp_path, BOTH, arguments=arguments) as plugin, plugin.signing() as stub:
        keep_audit_key(plugin, keys[0])
        hsm.sicken(FIRST)
        hsm.refuse(Ckr.DEVICE_ERROR, "C_Sign", times=1)
        with pytest.raises(grpc.RpcError):
            sign(stub)
        plugin.await_event("token.standby")
        plugin.await_health(SERVING)
        sign(stub)
        keep_audit_key(plugin, keys[1])
    given = [part for key in keys for part in ("--public-key", str(key))]
    whole = plugins.command(["audit", "verify", str(log), *given, "--output", "json"])
    assert whole.returncode == 0, whole.stdout
    assert len(json.loads(whole.stdout)["signers"]) == 2
    partly = plugins.command(["audit", "verify", str(log), *given[:2]])
    assert partly.returncode == 79
    assert "(unknown-key)" in partly.stdout


def keep_audit_key(plugin: Plugin, path: Path) -> None:
    """Write down the key of the token in use when it has signed a checkpoint."""
    plugin.await_event("audit.checkpoint", len(plugin.events("audit.checkpoint")) + 1)
    done = plugins.command(["audit", "public-key", "--socket", str(plugin.socket)])
    path.write_text(done.stdout)


def test_a_first_token_that_hangs_does_not_keep_the_stand_by_from_serving(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    hsm.sicken(FIRST, hangs=True)
    with running(hsm, tmp_path, BOTH, arguments=["--hang-limit", "1s"]) as plugin:
        assert ranks(plugin)[-1] == 1


def test_a_pin_that_one_token_refused_is_not_tried_on_it_again_though_another_takes_it(
    tmp_path: Path,
) -> None:
    hsm = softhsm.make_token(tmp_path / "token", label=FIRST, pin="8642")
    softhsm.add_token(hsm, label=SECOND, pin="2468")
    faulty = make_faulty(hsm)
    hsm.pin_file.unlink()
    hsm.pin_file.write_text("2468")
    for count in (1, 2):
        with running(faulty, tmp_path / "run", BOTH) as plugin:
            plugin.await_event("token.standby", 2 * count)
            assert set(ranks(plugin)) == {1}
    assert faulty.calls("C_Login") == 3  # one that was refused, and one for each start
    assert (tmp_path / "run" / "pin-guard.json").exists()
    hsm.pin_file.unlink()
    hsm.pin_file.write_text("8642")
    with running(faulty, tmp_path / "run", BOTH) as plugin:
        assert ranks(plugin)[-1] == 0
    assert faulty.calls("C_Login") == 4
    assert not (tmp_path / "run" / "pin-guard.json").exists()
