"""What we log in with, read from its files anew at each login: projected tokens rotate."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vault_client.errors import CredentialsError
from vault_client.secret import Secret
from vault_client.settings import AppRoleLogin, KubernetesLogin, Login, TokenFileLogin

_LARGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """The body of a login at a mount."""

    mount: str
    body: Mapping[str, Secret | str]

    def wipe(self) -> None:
        """Overwrite the secret parts."""
        for value in self.body.values():
            if isinstance(value, Secret):
                value.wipe()


def read_login(login: Login) -> LoginRequest | Secret:
    """Return the login to send, or the token itself if somebody else obtains it."""
    match login:
        case KubernetesLogin():
            jwt = read_secret(login.jwt_path, "the service account's token")
            return LoginRequest(login.mount, {"role": login.role, "jwt": jwt})
        case AppRoleLogin():
            role_id = read_secret(login.role_id_path, "the AppRole's role id")
            secret_id = read_secret(login.secret_id_path, "the AppRole's secret id")
            return LoginRequest(login.mount, {"role_id": role_id, "secret_id": secret_id})
        case TokenFileLogin():
            return read_secret(login.token_path, "the Vault token")


def read_secret(path: Path, what: str) -> Secret:
    """Return the file's content without the white space around it."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1).strip()
    except OSError as error:
        raise CredentialsError(
            f"{what} cannot be read from {path}: {error.strerror}",
            hint="mount it there, readable by this user, or correct the path",
        ) from error
    if not content or len(content) > _LARGEST_BYTES or not content.isascii():
        raise CredentialsError(
            f"{what} in {path} is empty or not text",
            hint="the file must hold the bare value and nothing else",
        )
    return Secret(content)
