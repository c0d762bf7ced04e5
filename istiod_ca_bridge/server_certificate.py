"""The certificate of the CA server itself, made by the CA; its key lives in memory only."""

import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta

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
    renew_at: datetime
    not_after: datetime


async def make_server_certificate(
    authority: Authority, names: tuple[str, ...], now: datetime
) -> ServerCertificate:
    """Return a new certificate with a new key; raises what issuing raises."""
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
    context = server_context(
        pem_of(certificate) + authority.intermediates_pem,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        authority.intermediates_pem + authority.roots_pem,
    )
    return ServerCertificate(context, now + (grant.not_after - now) / 2, grant.not_after)
