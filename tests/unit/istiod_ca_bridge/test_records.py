import pytest

from istiod_ca_bridge.errors import CorruptSecretError
from istiod_ca_bridge.records import CsrRecord, ResidentKey, SealedKey, csr_record, key_record
from istiod_ca_bridge.signer import KeyAlgorithm

SEALED = SealedKey("kek", b"dek", b"skey")
RESIDENT = ResidentKey("kek", b"dek", "istio-ca-1", KeyAlgorithm.ECDSA_P256)
CSR = CsrRecord("kek", b"dek", "cluster.local", b"csr")


def test_a_sealed_key_is_what_the_guide_s_istiod_writes() -> None:
    assert SEALED.values() == {"kek-id": b"kek", "encrypted-dek": b"dek", "encrypted-skey": b"skey"}
    assert key_record(SEALED.values()) == SEALED


def test_a_resident_key_is_told_by_its_id() -> None:
    assert RESIDENT.values() == {
        "kek-id": b"kek",
        "encrypted-dek": b"dek",
        "key-id": b"istio-ca-1",
        "key-algorithm": b"ecdsa-p256",
    }
    assert key_record(RESIDENT.values()) == RESIDENT


def test_a_csr_record_is_what_the_guide_s_istiod_writes() -> None:
    assert set(CSR.values()) == {"kek-id", "encrypted-dek", "csr-id", "encrypted-csr"}
    assert csr_record(CSR.values()) == CSR


def test_a_final_newline_from_an_editor_does_no_harm() -> None:
    assert key_record({k: v + b"\n" for k, v in RESIDENT.values().items()}) == RESIDENT


@pytest.mark.parametrize("missing", ["kek-id", "encrypted-dek", "encrypted-skey"])
def test_a_sealed_key_with_a_value_missing_is_corrupt(missing: str) -> None:
    values = SEALED.values()
    del values[missing]

    with pytest.raises(CorruptSecretError, match=missing):
        key_record(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("key-algorithm", b"dsa"),
        ("key-algorithm", b""),
        ("key-id", b""),
        ("key-id", b"a b"),
        ("key-id", b"\xff"),
        ("kek-id", b"x" * 300),
        ("encrypted-dek", b" "),
    ],
)
def test_a_resident_key_with_a_value_spoilt_is_corrupt(key: str, value: bytes) -> None:
    with pytest.raises(CorruptSecretError, match=key):
        key_record(RESIDENT.values() | {key: value})


@pytest.mark.parametrize("missing", ["kek-id", "encrypted-dek", "csr-id", "encrypted-csr"])
def test_a_csr_record_with_a_value_missing_is_corrupt(missing: str) -> None:
    values = CSR.values()
    del values[missing]

    with pytest.raises(CorruptSecretError, match=missing):
        csr_record(values)


def test_no_record_shows_its_blobs() -> None:
    assert "skey" not in repr(SEALED)
    assert "b'csr'" not in repr(CSR)
