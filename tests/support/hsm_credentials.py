"""Credentials as the guide keeps them in Vault: a certificate, its key, a server's, and a PIN."""

import secrets
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.pki import MOMENT, issue

FOUR_KEYS = ("clientcert", "clientkey", "servercert", "PIN")


def make_credentials(
    *,
    mark: str = "one",
    valid_from: datetime = MOMENT - timedelta(hours=1),
    valid_until: datetime = MOMENT + timedelta(days=30),
) -> dict[str, str]:
    """Return one whole set; `mark` is in the certificates' subjects and ends the PIN."""
    client = issue(f"client-{mark}", valid_from=valid_from, valid_until=valid_until)
    server = issue(f"server-{mark}", valid_from=valid_from, valid_until=valid_until)
    key = client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "clientcert": client.pem.decode(),
        "clientkey": key.decode(),
        "servercert": server.pem.decode(),
        "PIN": f"{secrets.token_hex(4)}-{mark}",
    }
