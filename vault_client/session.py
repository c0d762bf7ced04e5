"""Our standing with Vault: trusted, logged in, renewed in time, and revoked at the end.

Synchronous: one thread at a time runs it.
"""

import random
import time
from collections.abc import Callable
from datetime import timedelta

from vault_client.answers import Grant
from vault_client.credentials import read_login
from vault_client.diagnosis import CLOCK_TOLERANCE, MEND_CLOCK, side_of
from vault_client.doctor import explain_login, explain_read
from vault_client.errors import (
    DeliveryError,
    ForbiddenError,
    MissingError,
    RejectedError,
    ServerError,
    TlsError,
)
from vault_client.kv import KvMount, KvSecret
from vault_client.lease import Lease
from vault_client.logs import Log
from vault_client.metrics import Metrics
from vault_client.secret import Secret
from vault_client.settings import Login, TokenFileLogin
from vault_client.trust import TrustSource
from vault_client.vault import Vault

_REPEAT_WARNING_SECONDS = 600.0

Connect = Callable[[bytes | None], Vault]


class VaultSession:
    """Reads one secret, holding one token for as long as it lives."""

    def __init__(
        self,
        *,
        connect: Connect,
        trust: TrustSource,
        login: Login,
        kv_path: str,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._connect = connect
        self._trust = trust
        self._login = login
        self._kv_path = kv_path
        self._log = log
        self._metrics = metrics
        self._vault: Vault | None = None
        self._ca_pem: bytes | None = None
        self._token: Secret | None = None
        self._lease: Lease | None = None
        self._refresh_at = float("inf")
        self._mount: KvMount | None = None

    def fetch(self) -> KvSecret:
        """Return the newest version of the secret; a DeliveryError says why there is none."""
        try:
            return self._fetch()
        except TlsError:
            before = self._ca_pem
            self._trust.expire()
            if self._vault is None or self._trust.certificates() == before:
                raise
            return self._fetch()

    @property
    def clock_ahead(self) -> timedelta:
        """How far Vault's clock is ahead of ours, as far as is known."""
        seconds = self._vault.clock_ahead_seconds if self._vault else None
        return timedelta(seconds=seconds or 0.0)

    def refresh_in(self) -> float:
        """Return the seconds until the token wants a renewal or a login."""
        return max(0.0, self._refresh_at - time.monotonic())

    def end(self) -> None:
        """Revoke the token if it is ours, and drop the connection."""
        if self._vault is not None:
            self._revoke(self._vault)
            self._vault.close()
            self._vault = None

    def _fetch(self) -> KvSecret:
        vault = self._connected()
        token = self._authenticated(vault)
        self._compare_clocks()
        try:
            return self._read(vault, token)
        except ForbiddenError:
            if self._alive(vault, token):
                raise explain_read(vault, token, self._kv_path) from None
        self._log.warning("token.lost", reason="it expired or was revoked on the server")
        self._forget()
        return self._read(vault, self._authenticated(vault))

    def _compare_clocks(self) -> None:
        if abs(self.clock_ahead) > CLOCK_TOLERANCE:
            self._log.thinned(
                "clock.differs",
                same="clock",
                every_seconds=_REPEAT_WARNING_SECONDS,
                vault=side_of(self.clock_ahead),
                hint=MEND_CLOCK,
            )

    def _read(self, vault: Vault, token: Secret) -> KvSecret:
        if self._mount is None:
            self._mount = vault.kv_mount(token, self._kv_path)
            self._log.info("kv.found", mount=self._mount.path, kv_version=self._mount.version)
        try:
            return vault.read(token, self._mount, self._kv_path)
        except (MissingError, ForbiddenError):
            self._mount = None
            raise

    def _connected(self) -> Vault:
        pem = self._trust.certificates()
        if self._trust.problem is not None:
            problem = str(self._trust.problem)
            self._log.thinned(
                "ca.stale", same=problem, every_seconds=_REPEAT_WARNING_SECONDS, reason=problem
            )
        if self._vault is None or pem != self._ca_pem:
            if self._vault is not None:
                self._vault.close()
                self._log.info("ca.changed")
            self._vault, self._ca_pem = self._connect(pem), pem
        return self._vault

    def _authenticated(self, vault: Vault) -> Secret:
        now = time.monotonic()
        if self._token is None or self._lease is None:
            return self._log_in(vault)
        if now < self._refresh_at:
            return self._token
        if self._lease.renewable and now < self._lease.expires:
            try:
                grant = vault.renew(self._token)
            except (ForbiddenError, RejectedError, ServerError):  # past the maximum TTL it is 500
                return self._log_in(vault)
            self._hold(grant, self._lease.renewed(now, grant.seconds, renewable=grant.renewable))
            self._metrics.renewals.inc()
            self._log.info("token.renewed", ttl_seconds=grant.seconds)
            if not self._lease.capped():
                return self._token
        return self._log_in(vault)

    def _log_in(self, vault: Vault) -> Secret:
        now = time.monotonic()
        request = read_login(self._login)
        if isinstance(request, Secret):
            grant = self._adopted(vault, request)
        else:
            try:
                grant = vault.login(request.mount, request.body)
            except (ForbiddenError, RejectedError) as error:
                raise explain_login(vault, self._login, request.mount, error) from None
            finally:
                request.wipe()
        self._revoke(vault)
        self._hold(grant, Lease(now, grant.seconds, grant.renewable, grant.seconds))
        self._metrics.logins.inc()
        self._log.info("login.succeeded", ttl_seconds=grant.seconds, renewable=grant.renewable)
        return grant.token

    def _adopted(self, vault: Vault, token: Secret) -> Grant:
        try:
            return vault.look_up(token)
        except ForbiddenError:
            raise ForbiddenError(
                "Vault does not know the token in VAULT_TOKEN_PATH, or it expired",
                hint="write a fresh one there: bao token create -policy=<policy>",
            ) from None

    def _hold(self, grant: Grant, lease: Lease) -> None:
        if self._token is not None and self._token is not grant.token:
            self._token.wipe()
        self._token, self._lease = grant.token, lease
        self._refresh_at = lease.refresh_at(random.random())  # noqa: S311 - spreads load
        self._metrics.token_expires(lease.expires - time.monotonic())

    def _forget(self) -> None:
        if self._token is not None:
            self._token.wipe()
        self._token, self._lease, self._refresh_at = None, None, float("inf")

    def _revoke(self, vault: Vault) -> None:
        """Revoke the token in hand, if a login of ours made it; failing is only worth a line."""
        if self._token is not None and not isinstance(self._login, TokenFileLogin):
            try:
                vault.revoke(self._token)
                self._log.info("token.revoked")
            except ForbiddenError:
                self._log.debug("token.expired")
            except DeliveryError as error:
                self._log.warning("token.not_revoked", cause=error.cause.value)
        self._forget()

    def _alive(self, vault: Vault, token: Secret) -> bool:
        try:
            vault.look_up(token)
        except ForbiddenError:
            return False
        return True
