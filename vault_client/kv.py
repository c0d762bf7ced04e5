"""Secrets in a KV engine, version 1 or 2, and the kinds of their absence. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vault_client.answers import encoded, mapping
from vault_client.errors import DeletedError, DeliveryError, DestroyedError, MissingError
from vault_client.secret import Secret

_MAX_VERSION = 1 << 63


@dataclass(frozen=True, slots=True)
class KvMount:
    """Where a KV engine is mounted and which version it speaks."""

    path: str
    version: Literal[1, 2]

    def read_path(self, secret_path: str) -> str:
        """Return the API path that reads the secret named `<mount>/<path>`."""
        inner = secret_path.removeprefix(self.path)
        if self.version == 1:
            return self.path + inner
        return f"{self.path}data/{inner.removeprefix('data/')}"


@dataclass(frozen=True, slots=True)
class KvSecret:
    """The values of one secret; a value that is no string is None."""

    values: Mapping[str, Secret | None]
    version: int | None


def values_of(data: Mapping[str, object]) -> Mapping[str, Secret | None]:
    """Return the values that are texts, and None for the others; ServerError for no Unicode."""
    return {
        name: Secret(encoded(value)) if isinstance(value, str) else None
        for name, value in data.items()
    }


def version_of(metadata: Mapping[str, object]) -> int:
    """Return the version that KV version 2 counts; 0 when it tells none."""
    version = metadata.get("version")
    return version if isinstance(version, int) and abs(version) <= _MAX_VERSION else 0


def absent(path: str, data: Mapping[str, object]) -> DeliveryError:
    """Return which kind of 404 this is; KV version 2 sends metadata for the first two."""
    metadata = mapping(data.get("metadata"))
    version = metadata.get("version")
    if metadata.get("destroyed") is True:
        return DestroyedError(
            f"version {version} of the secret at {path} was destroyed",
            hint="write it anew: bao kv put",
        )
    if metadata.get("deletion_time"):
        return DeletedError(
            f"version {version} of the secret at {path} was deleted",
            hint=f"if that was a mistake: bao kv undelete -versions={version} <path>",
        )
    return MissingError(
        f"there is no secret at {path}",
        hint="write it with bao kv put, or correct VAULT_KV_PATH",
    )
