"""Server certificates that the CA makes with their keys: its own, in memory only, and istiod's."""

import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from istiod_ca_bridge.authority import Authority, new_serial
from istiod_ca_bridge.chain import pem_of
from istiod_ca_bridge.issue import issue
from istiod_ca_bridge.policy import grant_server
from istiod_ca_bridge.tls_context import server_context

LIFETIME = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A TLS context with the certificate, and when to make the next one."""

    context: ssl.SSLContext = field(repr=False)
    leaf: x509.Certificate = field(repr=False)
    renew_at: datetime
    not_after: datetime

    def due_in(self, now: datetime) -> timedelta:
        """Return how long it will do; zero or less: another is due."""
        is_of_the_future = now < self.leaf.not_valid_before_utc
        return timedelta(0) if is_of_the_future else self.renew_at - now


@dataclass(frozen=True, slots=True)
class ServerKeyPair:
    """A certificate with its intermediates, and its key."""

    chain_pem: str = field(repr=False)
    key_pem: bytes = field(repr=False)
    leaf: x509.Certificate = field(repr=False)
    not_after: datetime


async def make_server_certificate(
    authority: Authority, names: tuple[str, ...], now: datetime
) -> ServerCertificate:
    """Return a new certificate with a new key, ready to serve; raises what issuing raises."""
    pair = await make_server_key_pair(authority, names, now)
    context = server_context(
        pair.chain_pem, pair.key_pem, authority.intermediates_pem + authority.roots_pem
    )
    return ServerCertificate(context, pair.leaf, now + (pair.not_after - now) / 2, pair.not_after)


async def make_server_key_pair(
    authority: Authority, names: tuple[str, ...], now: datetime
) -> ServerKeyPair:
    """Return a new certificate for these names with a new P-256 key; raises what issuing does."""
    key = ec.generate_private_key(ec.SECP256R1())
    grant = grant_server(
        key.public_key(),
        names,
        LIFETIME,
        now=now,
        ca_not_after=authority.not_after,
        serial=new_serial(),
    )
    certificate = await issue(authority.issuer, grant)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return ServerKeyPair(
        pem_of(certificate) + authority.intermediates_pem, key_pem, certificate, grant.not_after
    )
