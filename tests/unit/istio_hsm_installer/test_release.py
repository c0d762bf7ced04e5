from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istio_hsm_installer import release
from istio_hsm_installer.errors import InputError, RefusedError


def pem(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def archive(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """An archive of some chunks, and its signature beside it."""
    path = tmp_path / "istio.tar.gz"
    path.write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "istio.tar.gz.1.sig").write_bytes(
        key.sign(path.read_bytes(), ec.ECDSA(hashes.SHA256()))
    )
    return path


def signature_of(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.1.sig")


def test_a_signed_archive_passes(archive: Path, key: ec.EllipticCurvePrivateKey) -> None:
    release.verify(archive, signature_of(archive), release.load_key(pem(key.public_key())))


def test_a_changed_archive_is_refused(archive: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = bytearray(archive.read_bytes())
    content[-1] ^= 1
    archive.write_bytes(content)
    with pytest.raises(RefusedError, match="not signed by this key"):
        release.verify(archive, signature_of(archive), key.public_key())


def test_an_archive_under_another_key_is_refused(archive: Path) -> None:
    with pytest.raises(RefusedError):
        release.verify(archive, signature_of(archive), release.load_key(release.GUIDE_KEY))


def test_a_garbled_signature_is_refused(archive: Path, key: ec.EllipticCurvePrivateKey) -> None:
    signature_of(archive).write_bytes(b"Verified OK")
    with pytest.raises(RefusedError):
        release.verify(archive, signature_of(archive), key.public_key())


def test_the_guide_s_key_is_p256() -> None:
    assert isinstance(release.load_key(release.GUIDE_KEY).curve, ec.SECP256R1)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
        pem(rsa.generate_private_key(65537, 2048).public_key()),
    ],
    ids=["garbage", "p384", "rsa"],
)
def test_another_kind_of_key_verifies_nothing(content: bytes) -> None:
    with pytest.raises(InputError):
        release.load_key(content)
