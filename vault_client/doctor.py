"""Gathers the facts about a refusal, with at most two more requests, and names its cause."""

from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from vault_client.credentials import read_secret
from vault_client.diagnosis import (
    Claims,
    LoginFacts,
    ReadFacts,
    decode_claims,
    diagnose_login,
    diagnose_read,
)
from vault_client.errors import (
    CredentialsError,
    DeliveryError,
    ForbiddenError,
    RejectedError,
)
from vault_client.secret import Secret
from vault_client.settings import KubernetesLogin, Login
from vault_client.vault import Vault


def explain_login(
    vault: Vault, login: Login, mount: str, error: ForbiddenError | RejectedError
) -> DeliveryError:
    """Return the refusal with its likely cause and the command that mends it."""
    kubernetes = login if isinstance(login, KubernetesLogin) else None
    empty = _status(vault, mount, {})
    mount_exists = None if empty is None else empty != HTTPStatus.FORBIDDEN
    probe = None
    if kubernetes is not None and mount_exists:
        probe = _status(vault, mount, {"role": kubernetes.role, "jwt": "none"})
    found = diagnose_login(
        LoginFacts(
            mount=mount,
            role=kubernetes.role if kubernetes else None,
            claims=_claims(kubernetes) if kubernetes else None,
            expected_audience=kubernetes.audience if kubernetes else None,
            mount_exists=mount_exists,
            role_exists=None if probe is None else probe != HTTPStatus.BAD_REQUEST,
            clock_ahead=timedelta(seconds=vault.clock_ahead_seconds or 0.0),
            now=datetime.now(UTC),
        )
    )
    if isinstance(error, RejectedError):
        message = f"{found.message} ({error})"
        return RejectedError(message, hint=found.hint, reason=found.reason.value)
    return ForbiddenError(found.message, hint=found.hint, reason=found.reason.value)


def explain_read(vault: Vault, token: Secret, kv_path: str) -> ForbiddenError:
    """Return the refusal to read with its likely cause and the command that mends it."""
    try:
        granted = vault.granted_paths(token)
    except DeliveryError:
        granted = None
    try:
        read_path: str | None = vault.kv_mount(token, kv_path).read_path(kv_path)
    except DeliveryError:
        read_path = None
    found = diagnose_read(ReadFacts(kv_path, read_path, granted))
    return ForbiddenError(found.message, hint=found.hint, reason=found.reason.value)


def _status(vault: Vault, mount: str, body: dict[str, str]) -> int | None:
    try:
        return vault.login_status(mount, body)
    except DeliveryError:
        return None


def _claims(login: KubernetesLogin) -> Claims | None:
    try:
        jwt = read_secret(login.jwt_path, "the service account's token")
    except CredentialsError:
        return None
    try:
        return decode_claims(jwt.reveal())
    finally:
        jwt.wipe()
