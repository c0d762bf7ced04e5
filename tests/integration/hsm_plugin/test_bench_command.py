"""`bench` measures the token and the socket, leaves nothing in the token, and claims no Luna."""

import json
from pathlib import Path

from istio_hsm_proto import signing_v1_pb2 as signing
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm
from tests.support.token_view import viewed


def bench(hsm: SoftHsm, socket: Path, *arguments: str) -> tuple[int, str, str]:
    environment = hsm.environment() | {"SOCKET": str(socket)}
    done = plugins.command(["bench", "--seconds", "100ms", *arguments], environment=environment)
    return done.returncode, done.stdout, done.stderr


def test_the_token_and_the_socket_are_measured(shared_hsm: SoftHsm, plugin: Plugin) -> None:
    with plugin.signing() as stub:
        stub.GenerateSigningKey(
            signing.GenerateSigningKeyRequest(key_id=b"bench-me", algorithm=signing.ECDSA_P256)
        )
    arguments = ("--key-id", "bench-me", "--certificate-lifetime", "60m", "--output", "json")
    code, output, errors = bench(shared_hsm, plugin.socket, *arguments)
    assert code == 0, errors
    figures = json.loads(output)
    raw = figures["raw"]["signatures_per_second_by_threads"]
    assert raw.keys() == {"ECDSA P-256", "RSA-2048"}
    assert all(rate > 0 for by_threads in raw.values() for rate in by_threads.values())
    over_socket = figures["over_socket"]
    best = max(over_socket["Sign"], over_socket["SignBatch"])
    assert figures["renews_sidecars"] == int(best * 1800)


def test_it_says_that_these_are_no_figures_of_a_luna_and_leaves_no_key(tmp_path: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    code, output, _ = bench(hsm, tmp_path / ".sock")
    assert code == 0
    assert "They are not a Luna's." in output
    assert "name a signing key with --key-id" in output
    with viewed(hsm) as view:
        assert list(view.session.get_objects()) == []


def test_a_key_that_is_not_there_is_an_error_with_a_hint(
    shared_hsm: SoftHsm, plugin: Plugin
) -> None:
    code, _, errors = bench(shared_hsm, plugin.socket, "--key-id", "none")
    assert code == 1
    assert "hint:" in errors


def test_a_pin_that_was_refused_is_not_tried_again(tmp_path: Path) -> None:
    hsm = softhsm.make_token(tmp_path / "token")
    hsm.pin_file.chmod(0o600)
    hsm.pin_file.write_text("000000")
    for words in ("refused the PIN", "is not tried again"):
        code, _, errors = bench(hsm, tmp_path / ".sock")
        assert code == 1
        assert words in errors
        assert "000000" not in errors
