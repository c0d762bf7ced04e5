"""The CA as it serves now: what it issues by, and what it answers along with a leaf."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from istiod_ca_bridge.chain import CaChain, pem_of
from istiod_ca_bridge.issue import Issuer, issuer
from istiod_ca_bridge.policy import SERIAL_BITS
from istiod_ca_bridge.signer import Signer, key_der


@dataclass(frozen=True, slots=True)
class Authority:
    """A verified chain and the signer of its first certificate's key."""

    chain: CaChain
    issuer: Issuer = field(repr=False)
    tail: tuple[str, ...] = field(repr=False)
    """What follows a leaf in an answer: each intermediate, then all roots in one."""

    own_keys: frozenset[bytes] = field(repr=False)
    """The CA's own and those above it, in a rotation the other one's too from its making on, as DER
    SubjectPublicKeyInfos: no leaf is issued for one."""

    @property
    def signer(self) -> Signer:
        """The CA key."""
        return self.issuer.signer

    @property
    def not_after(self) -> datetime:
        """When the first certificate of the path expires: no leaf outlives it."""
        return self.chain.not_after

    @property
    def roots_pem(self) -> str:
        """What workloads and clients trust."""
        return self.tail[-1]

    @property
    def intermediates_pem(self) -> str:
        """The CA's certificate and its issuers, without roots."""
        return "".join(self.tail[:-1])

    def answer(self, leaf: x509.Certificate) -> list[str]:
        """Return the cert_chain of an answer: leaf first, all roots last."""
        return [pem_of(leaf), *self.tail]

    def refusing(self, keys: Iterable[bytes]) -> "Authority":
        """Return the same, which issues no leaf for these keys either."""
        return replace(self, own_keys=self.own_keys.union(keys))


def authority(chain: CaChain, signer: Signer) -> Authority:
    """Return the authority of a verified chain."""
    # In an order of their own, so that who trusts the same holds the same, whichever key signs.
    roots = sorted(chain.roots, key=lambda root: root.fingerprint(hashes.SHA256()))
    tail = (*(pem_of(entry) for entry in chain.intermediates), pem_of(*roots))
    of_cas = (*chain.intermediates, *chain.roots, *chain.kin)
    own_keys = frozenset(key_der(entry.public_key()) for entry in of_cas)
    return Authority(chain, issuer(chain.ca, signer), tail, own_keys)


def new_serial() -> int:
    """Return a random positive serial."""
    return secrets.randbits(SERIAL_BITS) or 1
