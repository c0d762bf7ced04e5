"""The CA certificates that judge Vault's certificate: from a file or a ConfigMap.

Whatever is given replaces the bundled public roots, and is looked at again while the process runs.
"""

from collections.abc import Callable

from cryptography import x509

from vault_client.errors import TlsError
from vault_client.kube import read_config_map_value
from vault_client.settings import CaConfigMap, CaFile, CaSource
from vault_client.verify import MALFORMED

_KEY = "cert"


class TrustSource:
    """Reads the CA certificates at most once per interval unless told otherwise.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self, source: CaSource, *, refresh_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._pem: bytes | None = None
        self._read_at = float("-inf")
        self.problem: TlsError | None = None
        """Why the last look failed although older certificates are at hand; None if it did not."""

    def expire(self) -> None:
        """Make the next call read again, as after a failed handshake."""
        self._read_at = float("-inf")

    def certificates(self) -> bytes | None:
        """Return the PEM certificates to trust; None stands for the bundled roots.

        A file is read each time. TlsError when there is nothing usable and never was.
        """
        due = isinstance(self._source, CaFile) or (
            self._clock() - self._read_at >= self._refresh_seconds
        )
        if self._source is None or not due:
            return self._pem
        try:
            self._pem, self.problem = self._read(self._source), None
        except TlsError as error:
            if self._pem is None:
                raise
            self.problem = error
        self._read_at = self._clock()
        return self._pem

    def _read(self, source: CaFile | CaConfigMap) -> bytes:
        pem = _content(source)
        try:
            x509.load_pem_x509_certificates(pem)
        except MALFORMED:
            raise TlsError(
                f"{_described(source)} holds no PEM certificate",
                hint="put the certificate of the CA that issued Vault's there",
            ) from None
        return pem


def _content(source: CaFile | CaConfigMap) -> bytes:
    if isinstance(source, CaConfigMap):
        return read_config_map_value(source, _KEY).encode(errors="replace")
    try:
        return source.path.read_bytes()
    except OSError as error:
        raise TlsError(
            f"the CA file {source.path} cannot be read: {error.strerror}",
            hint="mount it there, or correct VAULT_CACERT",
        ) from error


def _described(source: CaFile | CaConfigMap) -> str:
    if isinstance(source, CaFile):
        return f"the CA file {source.path}"
    return f"the key {_KEY} of ConfigMap {source.name}"
