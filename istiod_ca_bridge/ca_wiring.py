"""The CA's keepers, put together from the settings: lifecycle, leader, rotation, revocations."""

import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime

from istiod_ca_bridge.api_server_watch import WatchedLease
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.ca_key import CaKeys
from istiod_ca_bridge.chain_check import ChainCheck
from istiod_ca_bridge.clock_watch import ClockWatch
from istiod_ca_bridge.condition_report import ConditionReport
from istiod_ca_bridge.conditions import Conditions
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.directory_leadership import DirectoryLeadership
from istiod_ca_bridge.directory_store import DirectoryStore
from istiod_ca_bridge.election import Election, LeaseTiming
from istiod_ca_bridge.key_service import KeyService
from istiod_ca_bridge.kube import kubernetes_store
from istiod_ca_bridge.kube_client import Cluster
from istiod_ca_bridge.kube_lease import KubernetesLease
from istiod_ca_bridge.kube_root_cert import KubernetesRootCertificates
from istiod_ca_bridge.kube_status import KubernetesStatus
from istiod_ca_bridge.leadership import Leadership
from istiod_ca_bridge.lifecycle import Lifecycle, LifecycleSettings
from istiod_ca_bridge.list_issuers import ListIssuers
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.name_constraints import IssuedNames
from istiod_ca_bridge.replica_report import replica_name
from istiod_ca_bridge.revocation_secret import revocation_secret
from istiod_ca_bridge.revocations import RevocationKeeper
from istiod_ca_bridge.root_readback import ListedRoots
from istiod_ca_bridge.rotation_keeper import RotationKeeper
from istiod_ca_bridge.status_publisher import StatusPublisher

Task = Callable[[], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class WiredCa:
    """What keeps the CA going, and what it says about itself."""

    tasks: tuple[Task, ...]
    conditions: Conditions
    leads: Callable[[], bool]
    """Whether this replica may write; one that is alone always may."""
    list_issuers: ListIssuers | None = None
    """The further keys that sign revocation lists, where the CA key can be rotated."""


def wire_ca(
    config: Config,
    cluster: Cluster | None,
    keys: KeyService,
    adopt: Callable[[Authority], None],
    serving: Callable[[], Authority | None],
    clock: Callable[[], datetime],
    log: EventLog,
    metrics: Metrics,
    unlisted: Callable[[bytes], str],
) -> WiredCa:
    """Return the tasks to run; `adopt` takes each authority that may serve.

    `unlisted` tells which CAs of a chain have no published list of revocations.
    """
    settings = _settings(config)
    conditions = Conditions(clock, ConditionReport(log, metrics))
    clock_watch = ClockWatch(conditions, clock, log)
    if config.store_directory is not None:
        store = DirectoryStore(config.store_directory)
        writer = DirectoryLeadership(config.store_directory, log)
        here = Lifecycle(
            settings,
            store,
            keys,
            adopt,
            clock,
            log,
            leads=writer.leads,
            conditions=conditions,
        )
        return WiredCa((writer.run, here.run, clock_watch.run), conditions, writer.leads)
    assert cluster is not None  # noqa: S101 - there is one where there is no directory
    secrets_here = kubernetes_store(cluster, config.namespace)
    replica = replica_name(config.pod_name or socket.gethostname(), config.worker)
    identity = f"{replica}_{secrets.token_hex(4)}"
    timing = LeaseTiming(config.lease_duration.total_seconds())
    leadership = Leadership(
        WatchedLease(KubernetesLease(cluster, config.namespace), conditions),
        Election(identity, timing),
        clock,
        log,
    )
    told = KubernetesStatus(cluster, config.namespace, config.pod_name, config.pod_uid)
    ca_keys = CaKeys(settings.keys, secrets_here, keys, leadership.leads, log)
    rotation = RotationKeeper(
        secrets_here,
        keys,
        ca_keys,
        ChainCheck(keys, settings.names, clock),
        ListedRoots(KubernetesRootCertificates(cluster)),
        told.reports,
        config.ttl.maximum,
        conditions,
        clock,
        log,
        watches_istiod_tls=config.issue_istiod_tls,
        unlisted=unlisted,
    )
    lifecycle = Lifecycle(
        settings,
        secrets_here,
        keys,
        adopt,
        clock,
        log,
        leads=leadership.leads,
        conditions=conditions,
        rotation=rotation,
    )
    status = StatusPublisher(replica, conditions, serving, told, leadership.leads, clock, log)
    issuers = ListIssuers(secrets_here, ca_keys, lambda: rotation.known, clock)
    tasks = (leadership.run, lifecycle.run, status.run, clock_watch.run)
    return WiredCa(tasks, conditions, leadership.leads, issuers)


def wire_revocations(
    config: Config,
    cluster: Cluster | None,
    ca: WiredCa,
    serving: Callable[[], Authority | None],
    publish: Callable[[str], Awaitable[None]],
    clock: Callable[[], datetime],
    log: EventLog,
    metrics: Metrics,
) -> RevocationKeeper | None:
    """Return what keeps the revocation lists, where there are any."""
    if not config.crl:
        return None
    return RevocationKeeper(
        revocation_secret(config, cluster),
        serving,
        publish,
        clock,
        log,
        others=ca.list_issuers,
        conditions=ca.conditions,
        further_end=metrics.issuer_crl_ends,
    )


def _settings(config: Config) -> LifecycleSettings:
    istiod_names = config.istiod_names if config.issue_istiod_tls else ()
    return LifecycleSettings(
        kek_id=config.kek_id,
        mode=config.key_mode,
        algorithm=config.key_algorithm,
        trust_domain=config.trust_domain,
        namespace=config.namespace,
        names=IssuedNames((config.trust_domain,), config.server_names + istiod_names),
        renewal=config.renewal,
    )
