"""What is delivered: the files of one secret as one set, whose they are, and what is in place."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

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


@dataclass(frozen=True, slots=True)
class Permissions:
    """The mode of the files and who owns them; None leaves the process's own ids."""

    file_mode: int = 0o400
    uid: int | None = None
    gid: int | None = None

    @property
    def directory_mode(self) -> int:
        """Return the mode of a generation's directory: whoever may read a file may look in."""
        group = 0o050 if self.file_mode & 0o040 else 0
        return 0o700 | group


@dataclass(frozen=True, slots=True)
class Published:
    """The generation that `..data` points to."""

    generation: str
    version: int | None
    published_at: datetime
