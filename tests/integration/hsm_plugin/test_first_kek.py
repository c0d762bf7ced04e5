"""`serve --kek-id` tells whether the KEK is there; with `--auto-create` it makes it."""

from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.support import plugin as plugins
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

KEK = "7651a4ea-eeb7-4c1f-927b-8c871c2127aa"


def make_dek(plugin: Plugin) -> bytes:
    with plugin.keys() as keys:
        request = kms.GenerateDEKRequest(kek_kid=KEK.encode())
        return keys.GenerateDEK(request, timeout=10).encrypted_dek_blob


def test_auto_create_makes_the_kek_once(hsm: SoftHsm, folder: Path) -> None:
    arguments = ("--auto-create", "--kek-id", KEK)
    for event in ("kek.made", "kek.found"):
        with plugins.running(hsm, folder, arguments=arguments) as plugin:
            plugin.await_event(event)
            assert plugin.events(event)[0]["message"] == f"KEK ID: {KEK}"
            assert make_dek(plugin)
    assert len(plugin.events("kek.made")) == 1


def test_without_auto_create_a_missing_kek_is_told_and_found_once_it_is_made(
    hsm: SoftHsm, folder: Path
) -> None:
    with plugins.running(hsm, folder, arguments=("--kek-id", KEK, "--output", "json")) as plugin:
        plugin.await_event("kek.missing")
        assert "--auto-create" in plugin.events("kek.missing")[0]["hint"]
        with pytest.raises(grpc.RpcError):
            make_dek(plugin)
        with plugin.keys() as keys:
            keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK.encode()), timeout=10)
        plugin.await_event("kek.found")
