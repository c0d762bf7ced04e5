"""What the TLS front serves with: our certificate, and the roots that clients are checked by."""

import os
import ssl

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def server_context(chain_pem: str, key_pem: bytes, trusted_pem: str) -> ssl.SSLContext:
    """Return a context that asks for a client certificate and goes on without one.

    A certificate that is sent must verify up to a self-signed one in `trusted_pem`. There are
    no session tickets: each connection is a handshake, checked against the roots of its time.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST
    context.load_verify_locations(cadata=trusted_pem)
    _load_chain(context, chain_pem.encode("ascii") + key_pem)
    return context


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Load from an anonymous file in memory: the key never reaches a file system."""
    descriptor = os.memfd_create("server-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
