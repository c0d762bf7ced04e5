"""The keys that sign lists of revocations while the CA key is rotated: the next one, the old one.

Leaves of both are shown in the mesh, and proxies want a list of each one's issuer.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from cryptography import x509

from istiod_ca_bridge.ca_key import CaKeys
from istiod_ca_bridge.der import MALFORMED
from istiod_ca_bridge.errors import ConfigError, CorruptSecretError, KeyServiceNotPreparedError
from istiod_ca_bridge.issue import Issuer, issuer
from istiod_ca_bridge.rotation import Rotation
from istiod_ca_bridge.signer import Signer, key_der
from istiod_ca_bridge.store import ACTIVE, NEXT, PREVIOUS_KEY_SECRET, SecretStore, Slot

Chain = tuple[x509.Certificate, ...]

_PREVIOUS = Slot(PREVIOUS_KEY_SECRET, ACTIVE.csr, ACTIVE.certificate)


class ListIssuers:
    """Finds the keys of a rotation's chains, wherever the rotation has put them by now."""

    def __init__(
        self,
        store: SecretStore,
        keys: CaKeys,
        rotation: Callable[[], Rotation | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._keys = keys
        self._rotation = rotation
        self._clock = clock
        self._opened: dict[str, tuple[Mapping[str, bytes], Signer]] = {}
        """By the Secret's name, what it held and the key of that."""

    @property
    def listed(self) -> tuple[Chain, ...]:
        """The chains whose keys sign lists now."""
        rotation = self._rotation()
        return self._valid(rotation.listed_chains if rotation else ())

    @property
    def shown(self) -> tuple[Chain, ...]:
        """The chains that workloads may show."""
        rotation = self._rotation()
        return self._valid(rotation.shown_chains if rotation else ())

    async def issuers(self) -> tuple[Issuer, ...]:
        """Return those of them whose key can be used; KeyServiceUnavailableError for not now."""
        listed = self.listed
        if not listed:
            self._opened.clear()  # a sealed key is in memory no longer than it is needed
        found = [await self._issuer(chain[0]) for chain in listed]
        return tuple(by for by in found if by is not None)

    def _valid(self, chains: Iterable[bytes]) -> tuple[Chain, ...]:
        found = filter(None, map(_certificates, chains))
        return tuple(it for it in found if self._clock() < it[0].not_valid_after_utc)

    async def _issuer(self, ca: x509.Certificate) -> Issuer | None:
        for slot in (NEXT, ACTIVE, _PREVIOUS):
            signer = await self._signer(slot)
            if signer is not None and key_der(signer.public_key) == key_der(ca.public_key()):
                return issuer(ca, signer)
        return None

    async def _signer(self, slot: Slot) -> Signer | None:
        values = await self._store.read(slot.key)
        if values is None:
            return None
        before, signer = self._opened.get(slot.key, (None, None))
        if values != before or signer is None:
            try:
                _, signer = await self._keys.opened(slot, values)
            except (KeyServiceNotPreparedError, CorruptSecretError, ConfigError):
                return None
            self._opened[slot.key] = (dict(values), signer)
        return signer


def _certificates(pem: bytes) -> Chain:
    """Return a chain's certificates; none of one that was spoilt by hand."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except MALFORMED:
        return ()
