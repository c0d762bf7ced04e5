"""Where the CA's Secrets lie, and what is read from and written to them.

These Secrets are made once and never changed by this program: a creation either happens whole or
finds that another writer was first.
"""

from collections.abc import Mapping
from typing import Protocol

KEY_SECRET = "istio-ca-encrypted-key"  # noqa: S105 - the name of a Secret
CSR_SECRET = "istio-ca-cert-csr"  # noqa: S105 - the name of a Secret
CERTIFICATE_SECRET = "istio-ca-cert"  # noqa: S105 - the name of a Secret
CHAIN_KEY = "cert-chain.pem"

SECRET_TYPE = "istio.io/intermediate-ca"  # noqa: S105 - the type of a Secret
MAX_SECRET_BYTES = 1 << 20
"""As Kubernetes limits them."""


class SecretStore(Protocol):
    """Secrets by name, each a few named values."""

    async def read(self, name: str) -> Mapping[str, bytes] | None:
        """Return the Secret's values; None when it does not exist.

        StoreUnavailableError when the store cannot tell.
        """
        ...

    async def create(self, name: str, values: Mapping[str, bytes]) -> None:
        """Write a new Secret whole.

        SecretExistsError when there is one, StoreUnavailableError when it is not known to be
        written.
        """
        ...
