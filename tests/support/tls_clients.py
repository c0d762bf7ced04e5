"""Files for mutual TLS, and clients of every kind that come with them."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support import pki
from tests.support.pki import Issued

NAME = "hsm-plugin.test"
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's certificate and key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TlsSite:
    """A folder with the files of one server, and the roots that both sides are under."""

    folder: Path
    root: Issued

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def server(self) -> Identity:
        return Identity(self.folder / "server.pem", self.folder / "server.key")

    def arguments(self, *allow: str) -> list[str]:
        """Return the flags of a server with these files on a free port."""
        return [
            *("--enable-server", "--host", "127.0.0.1", "--port", "0", "--tls-ca", str(self.ca)),
            *("--tls-certificate", str(self.server.certificate)),
            *("--tls-key", str(self.server.key)),
            *(part for name in allow for part in ("--tls-allow", name)),
        ]

    def issue(
        self,
        name: str,
        *sans: x509.GeneralName,
        issuer: Issued | None = None,
        seconds: float = 3600,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> Identity:
        """Return a client whose certificate ends so many seconds from now."""
        now = datetime.now(UTC)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.ExtendedKeyUsage([usage]), False)
        ]
        if sans:
            extensions.append((x509.SubjectAlternativeName(sans), False))
        made = pki.issue(
            name,
            issuer or self.root,
            valid_from=now - timedelta(hours=1),
            valid_until=now + timedelta(seconds=seconds),
            extensions=extensions,
        )
        number = len(list(self.folder.iterdir()))
        return self.write(
            made, Identity(self.folder / f"{number}.pem", self.folder / f"{number}.key")
        )

    def write(self, made: Issued, to: Identity) -> Identity:
        """Replace the files."""
        to.certificate.write_bytes(made.pem)
        to.key.unlink(missing_ok=True)
        to.key.touch(mode=0o400)
        to.key.chmod(0o600)
        to.key.write_bytes(
            made.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        to.key.chmod(0o400)
        return to

    @contextmanager
    def channel(self, port: int, client: Identity) -> Iterator[grpc.Channel]:
        """A channel of the client."""
        credentials = grpc.ssl_channel_credentials(
            self.ca.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
        )
        options = (
            ("grpc.ssl_target_name_override", NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        )
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            yield channel

    def hears_from(
        self,
        port: int,
        client: Identity | None,
        *,
        most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        protocol: str = "h2",
    ) -> bool:
        """Tell whether a server of HTTP/2 answers this client; False when it is turned away."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.maximum_version = most
        context.set_alpn_protocols([protocol])
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        with socket.create_connection(("127.0.0.1", port), _SECONDS) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=NAME) as session:
                    session.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                    return bool(session.recv(1))
            except (ssl.SSLError, ConnectionError):
                return False


def make_site(folder: Path) -> TlsSite:
    """Return a site whose server has a sound certificate for NAME."""
    folder.mkdir(exist_ok=True)
    root = _root("TLS Root")
    site = TlsSite(folder, root)
    site.ca.write_bytes(root.pem)
    renew_server(site)
    return site


def renew_server(site: TlsSite, issuer: Issued | None = None) -> Issued:
    """Write another certificate of the server, and return it."""
    now = datetime.now(UTC)
    made = pki.issue(
        "server",
        issuer or site.root,
        valid_from=now - timedelta(hours=1),
        valid_until=now + timedelta(hours=1),
        extensions=[(x509.SubjectAlternativeName([x509.DNSName(NAME)]), False)],
    )
    site.write(made, site.server)
    return made


def other_root() -> Issued:
    """Return a root that no site has."""
    return _root("Another Root")


def _root(name: str) -> Issued:
    now = datetime.now(UTC)
    return pki.root(name, valid_from=now - timedelta(hours=1), valid_until=now + timedelta(days=1))
