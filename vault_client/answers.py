"""What Vault's HTTP API answers, as typed values; no shape is taken for granted. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from vault_client.errors import ServerError
from vault_client.secret import Secret


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its status, its JSON object if it has one, and Retry-After."""

    status: int
    body: Mapping[str, object]
    retry_after_seconds: float | None

    def section(self, name: str) -> Mapping[str, object]:
        """Return the object under a name, empty if there is none."""
        return mapping(self.body.get(name))

    def complaint(self) -> str:
        """Return Vault's own words on what is wrong, on one line."""
        errors = self.body.get("errors")
        text = "; ".join(str(error) for error in errors) if isinstance(errors, list) else ""
        return " ".join(text.split())[:200]


@dataclass(frozen=True, slots=True)
class Grant:
    """A token and the life that Vault gives it; 0 seconds means for ever."""

    token: Secret
    seconds: float
    renewable: bool


def grant_of(answer: Answer) -> Grant:
    """Return the token in the answer to a login or a renewal."""
    auth = answer.section("auth")
    token = auth.get("client_token")
    if not isinstance(token, str) or not token:
        raise ServerError("Vault's answer to a login holds no token", hint="check VAULT_ADDR")
    return Grant(
        Secret(encoded(token)), number(auth.get("lease_duration")), auth.get("renewable") is True
    )


def encoded(text: str) -> bytes:
    """Return the text's UTF-8; ServerError for lone surrogates, which JSON can spell."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ServerError(
            "Vault answers a text that is no Unicode", hint="write the value anew"
        ) from None


def mapping(value: object) -> Mapping[str, object]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float:
    """Return the value if it is a number, else 0."""
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3), either form."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
