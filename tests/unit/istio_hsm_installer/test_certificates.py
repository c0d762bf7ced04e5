"""Certificates as others wrote them: read, or taken for none."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from istio_hsm_installer import certificates
from tests.support import pki

_CORPUS = Path(__file__).parents[2] / "corpus"


@pytest.mark.parametrize(
    "path", sorted(_CORPUS.glob("certificate-*")), ids=lambda path: str(path.name)
)
def test_whatever_a_file_holds_it_is_certificates_or_none(path: Path) -> None:
    found = certificates.read(path.read_bytes())
    assert {entry.fingerprint(hashes.SHA256()) for entry in found} <= certificates.fingerprints(
        path.read_bytes()
    )


def test_sound_ones_are_read_in_their_order() -> None:
    root = pki.root()
    ca = pki.intermediate(root)
    assert certificates.read(ca.pem + root.pem) == [ca.certificate, root.certificate]
    assert certificates.is_signed_by(ca.certificate, root.certificate)
    assert not certificates.is_signed_by(root.certificate, ca.certificate)
