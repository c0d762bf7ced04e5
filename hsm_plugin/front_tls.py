"""The front's TLS: its context from three files, loaded anew when they change, and client names."""

import os
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsm_plugin.errors import ConfigError
from hsm_plugin.front_settings import TlsSettings

_MAX_FILE_BYTES = 1 << 20
_FORBIDDEN_MODE = 0o037
"""Of the key's file: nothing for others, reading at most for the group."""


class TlsFiles:
    """The context of the files as they were last found sound."""

    def __init__(self, settings: TlsSettings) -> None:
        """Load the files; ConfigError when they cannot be served with."""
        self._settings = settings
        self._seen = self._fingerprints()
        self._ca = read(settings.ca)
        self.context = _context(settings, self._ca)

    def reload(self) -> bool | None:
        """Load changed files: None when nothing changed, true when the clients' roots did.

        ConfigError when the new files cannot be served with; the context then stays as it is.
        """
        found = self._fingerprints()
        if found == self._seen:
            return None
        self._seen = found
        ca = read(self._settings.ca)
        self.context = _context(self._settings, ca)
        changed, self._ca = ca != self._ca, ca
        return changed

    def _fingerprints(self) -> list[tuple[int, ...]]:
        files = (self._settings.ca, self._settings.certificate, self._settings.key)
        return [_fingerprint(path) for path in files]


def identity_of(certificate: dict[str, Any], allowed: Sequence[str]) -> int | None:
    """Return which entry names the owner of a verified certificate; None when none does.

    URI and DNS names count; the subject's common name only where the certificate has neither.
    """
    names = {value for kind, value in certificate.get("subjectAltName", ()) if kind in _SANS}
    if not names:
        names = {
            value
            for part in certificate.get("subject", ())
            for kind, value in part
            if kind == "commonName"
        }
    return next((index for index, entry in enumerate(allowed) if entry in names), None)


_SANS = ("URI", "DNS")


def read(path: Path, forbidden_mode: int = 0) -> bytes:
    """Return a file's content; ConfigError when it is missing, too large, or open to others."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="see the --tls- flags and file modes"
        ) from None
    if mode & forbidden_mode:
        raise ConfigError(
            f"{path} has mode {mode:04o}, so that others can use the key",
            hint="give it mode 0400, or 0440 where its group must read it (defaultMode: 0440)",
        )
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
    return content


def _context(settings: TlsSettings, ca: bytes) -> ssl.SSLContext:
    """Return a context for TLS 1.3 that wants a client certificate under `ca`.

    There are no session tickets: each connection is a handshake, checked against the roots of
    its time.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"{settings.ca} holds no certificates", hint="give the clients' roots as PEM: --tls-ca"
        ) from None
    _load_chain(context, settings)
    return context


def _load_chain(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Load certificate and key, as they were checked, through an anonymous file in memory."""
    pem = b"\n".join((read(settings.certificate), read(settings.key, _FORBIDDEN_MODE)))
    descriptor = os.memfd_create("front-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"{settings.certificate} and {settings.key} are no PEM certificate and its key",
            hint="write both anew, whole and unencrypted, the server's certificate first",
        ) from None
    finally:
        os.close(descriptor)


def _no_password() -> str:
    """Refuse an encrypted key, instead of asking at a terminal."""
    return ""


def _fingerprint(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 - follows the symbolic links of mounted Secrets
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
