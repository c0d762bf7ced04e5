"""Who judges the tokens of other clusters: an API server for each, as remote secrets name them.

Level-triggered: the secrets are listed every few seconds, so a cluster is there soon after its
secret is, and gone soon after that.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from istiod_ca_bridge.authn import TokenAuthenticator
from istiod_ca_bridge.errors import BridgeError, CorruptSecretError
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.remote_kubeconfig import RemoteApi, remote_api

_POLL_SECONDS = 3.0


class RemoteSecrets(Protocol):
    """Kubeconfigs of other clusters."""

    async def kubeconfigs(self) -> Mapping[str, Mapping[str, bytes]]:
        """Return each secret's kubeconfigs by cluster; ClusterUnavailableError when unknown."""
        ...


class RemoteTokens(TokenAuthenticator, Protocol):
    """Judges the tokens of one other cluster, until it is closed."""

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True, slots=True)
class _Remote:
    digest: bytes
    tokens: RemoteTokens


class RemoteClusters:
    """Other clusters by their ids."""

    def __init__(
        self,
        secrets: RemoteSecrets,
        own_cluster: str,
        connect: Callable[[RemoteApi], RemoteTokens],
        log: EventLog,
        *,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._secrets = secrets
        self._own_cluster = own_cluster
        self._connect = connect
        self._log = log
        self._poll_seconds = poll_seconds
        self._remotes: dict[str, _Remote] = {}
        self._refused: dict[str, bytes] = {}

    def tokens_of(self, cluster: str) -> TokenAuthenticator | None:
        """Return who judges a cluster's tokens; None when it is not known here."""
        remote = self._remotes.get(cluster)
        return remote.tokens if remote else None

    async def run(self) -> None:
        """Follow the secrets until cancelled."""
        told = ""
        while True:
            try:
                self._take_up(await self._secrets.kubeconfigs())
                told = ""
            except BridgeError as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("remote_clusters.not_read", reason=told, hint=error.hint)
            await asyncio.sleep(self._poll_seconds)

    def _take_up(self, secrets: Mapping[str, Mapping[str, bytes]]) -> None:
        """Connect what is new, let go of what is gone; of two secrets, the first by name counts."""
        wanted: dict[str, tuple[str, bytes]] = {}
        for secret in sorted(secrets):
            for cluster, kubeconfig in secrets[secret].items():
                if cluster != self._own_cluster:  # nobody takes the place of the own API server
                    wanted.setdefault(cluster, (secret, kubeconfig))
        for cluster in self._remotes.keys() - wanted.keys():
            self._let_go(cluster)
        for gone in self._refused.keys() - wanted.keys():
            del self._refused[gone]
        for cluster, (secret, kubeconfig) in wanted.items():
            digest = hashlib.sha256(kubeconfig).digest()
            remote = self._remotes.get(cluster)
            if digest not in {remote.digest if remote else b"", self._refused.get(cluster)}:
                self._replace(cluster, secret, kubeconfig, digest)

    def _replace(self, cluster: str, secret: str, kubeconfig: bytes, digest: bytes) -> None:
        """Use a new kubeconfig; one that is refused takes the place of none, nor the old one."""
        if cluster in self._remotes:
            self._let_go(cluster)
        try:
            api = remote_api(kubeconfig)
            self._remotes[cluster] = _Remote(digest, self._connect(api))
        except CorruptSecretError as error:
            self._refused[cluster] = digest
            self._log.warning(
                "remote_cluster.refused",
                cluster=cluster,
                secret=secret,
                reason=str(error),
                hint=error.hint,
            )
            return
        self._refused.pop(cluster, None)
        self._log.info("remote_cluster.added", cluster=cluster, secret=secret, server=api.server)

    def _let_go(self, cluster: str) -> None:
        self._remotes.pop(cluster).tokens.close()
        self._log.info("remote_cluster.removed", cluster=cluster)
