"""What is delivered: the files of one secret, as one set."""

from collections.abc import Mapping
from dataclasses import dataclass

from vault_client.secret import Secret


@dataclass(frozen=True, slots=True)
class SecretSet:
    """The files of one version of the secret, by file name."""

    files: Mapping[str, Secret]
    version: int | None
    """The KV version; None on a version 1 mount, which counts none."""

    def wipe(self) -> None:
        """Overwrite every value."""
        for secret in self.files.values():
            secret.wipe()


@dataclass(frozen=True, slots=True)
class FileNames:
    """Where each part of the HSM's credentials goes: KV key to file name."""

    client_cert: str = "clientcert.pem"
    client_key: str = "clientkey.pem"
    server_cert: str = "servercert.pem"
    pin: str = "pin"
    extra: tuple[tuple[str, str], ...] = ()

    def by_key(self) -> dict[str, str]:
        """Return the file name for each KV key, the required ones first."""
        return {
            "clientcert": self.client_cert,
            "clientkey": self.client_key,
            "servercert": self.server_cert,
            "PIN": self.pin,
        } | dict(self.extra)
