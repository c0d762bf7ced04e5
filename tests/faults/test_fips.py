"""A plugin on an HSM in FIPS mode, which makes AES-GCM's IV itself."""

import re
from pathlib import Path

import grpc
import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from tests.faults.clients import status_of
from tests.support import plugin as plugins
from tests.support.faults import FaultyHsm, GcmIvOf
from tests.support.plugin import Plugin

KEK = b"fips"
_BLOB = re.compile(rb"[\w-]+\.\.[\w-]{22}\.[\w-]+\.[\w-]{22}", re.ASCII)


def _sealed(plugin: Plugin) -> tuple[bytes, bytes]:
    """Return a new DEK's blob and a ciphertext under it."""
    with plugin.keys() as keys:
        keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK))
        dek = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=KEK)).encrypted_dek_blob
        encrypted = keys.AuthenticatedEncrypt(
            kms.AuthenticatedEncryptRequest(kek_kid=KEK, encrypted_dek_blob=dek, plaintext=b"it")
        )
        return dek, encrypted.ciphertext


def _opened(plugin: Plugin, dek: bytes, ciphertext: bytes) -> bytes:
    with plugin.keys() as keys:
        return keys.AuthenticatedDecrypt(
            kms.AuthenticatedDecryptRequest(
                kek_kid=KEK, encrypted_dek_blob=dek, ciphertext=ciphertext
            )
        ).plaintext


def test_blobs_have_the_references_form_and_outlive_a_change_of_the_mode(
    hsm: FaultyHsm, tmp_path: Path
) -> None:
    environment = hsm.environment()
    hsm.make_gcm_ivs(GcmIvOf.TOKEN)
    with plugins.running(hsm.hsm, tmp_path / "fips", environment=environment) as plugin:
        in_fips = _sealed(plugin)
    hsm.make_gcm_ivs(GcmIvOf.CALLER)
    told = environment | {"P11_GCM_IV": "caller"}
    with plugins.running(hsm.hsm, tmp_path / "plain", environment=told) as plugin:
        plain = _sealed(plugin)
        assert _opened(plugin, *in_fips) == b"it"
        hsm.make_gcm_ivs(GcmIvOf.TOKEN)
        assert _opened(plugin, *plain) == b"it"
        with pytest.raises(grpc.RpcError) as caught:
            _sealed(plugin)
    assert status_of(caught.value).code() is grpc.StatusCode.UNIMPLEMENTED
    assert _BLOB.fullmatch(in_fips[0])
    assert _BLOB.fullmatch(plain[0])
