"""GenerateSKey beyond RSA: what is made loads as it was stored, and under its DEK only."""

from collections.abc import Callable

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub

Make = Callable[..., bytes]


@pytest.fixture
def make(keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes) -> Make:
    def make(kind: kms.KeyKind.ValueType, *, size: int = 0, curve: int = 0) -> bytes:
        return keys.GenerateSKey(
            kms.GenerateSKeyRequest(
                kind=kind,
                size=size,
                curve=curve,  # type: ignore[arg-type] # enum values are ints
                kek_kid=kek_id,
                encrypted_dek_blob=dek_blob,
            )
        ).encrypted_skey_blob

    return make


@pytest.fixture
def load(
    keys: KeyManagementServiceStub, kek_id: bytes, dek_blob: bytes
) -> Callable[[bytes], bytes]:
    return lambda blob: (
        keys.LoadSKey(
            kms.LoadSKeyRequest(
                kek_kid=kek_id, encrypted_dek_blob=dek_blob, encrypted_skey_blob=blob
            )
        ).plaintext_skey
    )


@pytest.mark.parametrize(
    ("curve", "name"), [(kms.ED25519, "ed25519"), (kms.P256, "secp256r1"), (kms.P384, "secp384r1")]
)
def test_an_elliptic_key_is_pem_of_pkcs8_and_new_each_time(
    make: Make, load: Callable[[bytes], bytes], curve: int, name: str
) -> None:
    first, second = (load(make(kms.ECC, curve=curve)) for _ in range(2))
    assert first.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    key = serialization.load_pem_private_key(first, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        assert key.curve.name == name
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        assert name == "ed25519"
    assert first != second


@pytest.mark.parametrize("bits", [128, 256])
def test_an_aes_key_has_as_many_bits_as_asked_and_is_new_each_time(
    make: Make, load: Callable[[bytes], bytes], bits: int
) -> None:
    first, second = (load(make(kms.AES, size=bits)) for _ in range(2))
    assert len(first) == len(second) == bits // 8
    assert first != second


@pytest.mark.parametrize("bits", [-256, 0, 1, 192, 512])
def test_an_aes_key_of_another_size_is_refused(make: Make, bits: int) -> None:
    with pytest.raises(grpc.RpcError, match="AES keys of") as caught:
        make(kms.AES, size=bits)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_changed_blob_or_another_dek_loads_nothing(
    keys: KeyManagementServiceStub, make: Make, load: Callable[[bytes], bytes], kek_id: bytes
) -> None:
    blob = make(kms.ECC, curve=kms.P256)
    head, _, tail = blob.rpartition(b".")
    with pytest.raises(grpc.RpcError, match="does not authenticate"):
        load(head + b"." + (b"A" if tail[:1] != b"A" else b"B") + tail[1:])
    other = keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek_id)).encrypted_dek_blob
    with pytest.raises(grpc.RpcError, match="another DEK"):
        keys.LoadSKey(
            kms.LoadSKeyRequest(kek_kid=kek_id, encrypted_dek_blob=other, encrypted_skey_blob=blob)
        )
