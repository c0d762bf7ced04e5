"""What answers at an address over TLS: its certificate, and whether a client would trust it."""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from istio_hsm_installer import certificates
from istio_hsm_installer.errors import InputError, InstallerError

_TIMEOUT_SECONDS = 5.0
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Peer:
    """A certificate that was served, judged as a client judges it that trusts one root alone."""

    leaf: x509.Certificate
    distrust: str
    """Why such a client goes away; empty when it stays."""


def look(address: str, *, name: str | None, root_pem: bytes, alpn: Sequence[str] = ()) -> Peer:
    """Return what is served; InstallerError when nothing answers there.

    The first handshake takes any certificate, so that a wrong one can be shown; nothing is sent
    over it. The second trusts the root alone: intermediates must be served beside the leaf.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise InputError(f"{address!r} is no address", hint="write host:port")
    target = (host.strip("[]"), int(port))
    anything = _context(alpn)
    anything.verify_mode = ssl.CERT_NONE
    shown = _shake_hands(target, anything, name)
    strict = _context(alpn)
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.check_hostname = name is not None
    strict.load_verify_locations(cadata=root_pem.decode("ascii"))
    try:
        again = _shake_hands(target, strict, name)
    except _DistrustError as error:
        return Peer(_leaf(shown, address), str(error))
    return Peer(_leaf(again, address), "")


class _DistrustError(Exception):
    """The peer was not trusted."""


def _leaf(der: bytes, address: str) -> x509.Certificate:
    try:
        return certificates.load_der(der)
    except certificates.MALFORMED:
        raise InstallerError(
            f"what {address} serves is no sound certificate", hint="see what listens there"
        ) from None


def _context(alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _shake_hands(target: tuple[str, int], context: ssl.SSLContext, name: str | None) -> bytes:
    """Return the DER of the peer's certificate."""
    where = f"{target[0]}:{target[1]}"
    try:
        with (
            socket.create_connection(target, _TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        raise _DistrustError(error.verify_message) from None
    except (OSError, ValueError) as error:  # the latter for what cannot be a host's name
        raise InstallerError(
            f"nothing at {where} answers over TLS: {type(error).__name__}",
            hint="from outside the cluster: kubectl port-forward, then --address 127.0.0.1:<port>",
        ) from None
