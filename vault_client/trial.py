"""Whether a new set may be published, by a trial login of the plugin with its PIN.

A set that the token refused is remembered by a keyed digest, and not tried again until it changes.
"""

import hmac
import secrets
from dataclasses import dataclass

from vault_client.consumer import CredentialConsumer
from vault_client.delivery import SecretSet
from vault_client.errors import TrialError
from vault_client.logs import Log
from vault_client.settings import TrialMode


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The set that was refused, and what was said."""

    mark: bytes
    error: TrialError


class TrialLogin:
    """Asks the plugin, as far as the mode wants it."""

    def __init__(self, consumer: CredentialConsumer, mode: TrialMode, log: Log) -> None:
        self._consumer = consumer
        self._mode = mode
        self._log = log
        self._key = secrets.token_bytes(32)
        self._refusal: _Refusal | None = None

    def check_known(self, delivered: SecretSet) -> None:
        """Return unless just this set was refused before; TrialError then, and nobody is asked."""
        if self._refusal and hmac.compare_digest(self._refusal.mark, self._mark(delivered)):
            raise self._refusal.error

    def judge(self, generation: str, delivered: SecretSet, *, first: bool) -> None:
        """Return when the set in this folder may be published; TrialError when it may not.

        `first`: nothing is in place, so a plugin that is silent waits for the set itself.
        """
        if self._mode is TrialMode.OFF:
            return
        answer = self._consumer.try_out(generation, patient=not first)
        self._log.info(
            "trial.answered" if answer.given else "trial.silent",
            generation=generation,
            accepted=answer.accepted,
            reason=answer.reason,
        )
        self._refusal = None
        if answer.given and not answer.accepted:
            error = TrialError(
                f"the set is not published, because the plugin could not log in with its PIN: "
                f"{answer.reason}",
                hint="write the right PIN as a new version with bao kv put; "
                "the set in place stays, and this one is not tried again",
                reason="refused",
            )
            self._refusal = _Refusal(self._mark(delivered), error)
            raise error
        if not answer.given and self._mode is TrialMode.REQUIRED and not first:
            raise TrialError(
                f"the set is not published, because the plugin did not try its PIN: "
                f"{answer.reason}",
                hint="see the plugin's log; TRIAL_LOGIN=auto publishes without a trial then",
                reason="untried",
            )

    def _mark(self, delivered: SecretSet) -> bytes:
        mark = hmac.new(self._key, str(delivered.version).encode(), "sha256")
        for name, secret in sorted(delivered.files.items()):
            with secret.view() as value:
                mark.update(f"\0{name}\0{len(value)}\0".encode())
                mark.update(value)
        return mark.digest()
