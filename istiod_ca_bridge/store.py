"""Where the CA's Secrets lie, and what is read from and written to them.

Secrets are made once: a creation either happens whole or finds that another writer was first.
Only a rotation of the CA key changes one, and only the very state of it that was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

KEY_SECRET = "istio-ca-encrypted-key"  # noqa: S105 - the name of a Secret
CSR_SECRET = "istio-ca-cert-csr"  # noqa: S105 - the name of a Secret
CERTIFICATE_SECRET = "istio-ca-cert"  # noqa: S105 - the name of a Secret
RENEWAL_SECRET = "istio-ca-cert-csr-renewal"  # noqa: S105 - the name of a Secret
ROTATION_SECRET = "istio-ca-rotation"  # noqa: S105 - the name of a Secret
PREVIOUS_KEY_SECRET = "istio-ca-encrypted-key-previous"  # noqa: S105 - the name of a Secret
CHAIN_KEY = "cert-chain.pem"

SECRET_TYPE = "istio.io/intermediate-ca"  # noqa: S105 - the type of a Secret
MAX_SECRET_BYTES = 1 << 20
"""As Kubernetes limits them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The names of the Secrets of one CA key."""

    key: str
    csr: str
    certificate: str


ACTIVE = Slot(KEY_SECRET, CSR_SECRET, CERTIFICATE_SECRET)
NEXT = Slot(f"{KEY_SECRET}-next", f"{CSR_SECRET}-next", f"{CERTIFICATE_SECRET}-next")


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What a Secret holds, and which state of it this is."""

    values: Mapping[str, bytes] = field(repr=False)
    version: str


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

    async def delete(self, name: str) -> None:
        """Remove the Secret, when there is one; StoreUnavailableError when it may be there."""
        ...


class VersionedStore(SecretStore, Protocol):
    """Secrets that may also be changed, safe with several writers."""

    async def load(self, name: str) -> StoredSecret | None:
        """Return the Secret and its state; as `read` otherwise."""
        ...

    async def replace(self, name: str, before: StoredSecret, values: Mapping[str, bytes]) -> None:
        """Write the values over just that state of the Secret.

        SecretExistsError when it is in another state by now, StoreUnavailableError when it is not
        known to be written.
        """
        ...
