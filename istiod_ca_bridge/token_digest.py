"""What a token is known by in memory: a digest that only this process can make, never the token."""

import hmac
import secrets


class TokenDigest:
    """Digests under a key that is drawn anew for each."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, token: str) -> bytes:
        """Return the token's digest."""
        return hmac.digest(self._key, token.encode("utf-8", "surrogatepass"), "sha256")
