"""The commands that speak to a cluster, apart from those that do without its driver.

Loading that driver takes a second and some 45 MiB, which the bridge of several workers and a probe
are spared.
"""

import argparse
import asyncio
from datetime import UTC, datetime

from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.config import Config
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.kube import kubernetes_store
from istiod_ca_bridge.kube_client import connect
from istiod_ca_bridge.kube_status import KubernetesStatus
from istiod_ca_bridge.log import EventLog
from istiod_ca_bridge.revoke_command import run_revoke
from istiod_ca_bridge.rotation import Wish
from istiod_ca_bridge.rotation_commands import RotationCommands
from istiod_ca_bridge.served_place import ServedPlace
from istiod_ca_bridge.server import serve
from istiod_ca_bridge.signer import RSA_BITS, KeyAlgorithm


async def serve_alone(config: Config, log: EventLog, stop: asyncio.Event) -> None:
    """Serve as the one process of a bridge."""
    await serve(config, _now, log, stop)


async def serve_at(place: ServedPlace, config: Config, log: EventLog, stop: asyncio.Event) -> None:
    """Serve as one of several workers."""
    await serve(config, _now, log, stop, place)


def revocation(config: Config, options: argparse.Namespace) -> str:
    """Revoke what the options name, and return what to tell the operator."""
    return run_revoke(config, options.targets, options.reason, options.log)


def rotation(config: Config, options: argparse.Namespace) -> str:
    """Take the step of a rotation that the options name, and return what to tell the operator."""
    return asyncio.run(_rotation(config, options)) + "\n"


async def _rotation(config: Config, options: argparse.Namespace) -> str:
    if config.store_directory is not None:
        raise ConfigError("a rotation needs BRIDGE_STORE=kubernetes")
    cluster = connect(config.kubeconfig)
    commands = RotationCommands(
        kubernetes_store(cluster, config.namespace),
        _now,
        config.ttl.maximum,
        KubernetesStatus(cluster, config.namespace, config.pod_name, config.pod_uid).messages,
    )
    match options.action:
        case "start":
            wanted = options.algorithm
            algorithm = KeyAlgorithm(wanted) if wanted else config.key_algorithm
            if config.key_mode is KeyMode.SEALED and algorithm not in RSA_BITS:
                raise ConfigError("CA_KEY_MODE=sealed needs an RSA --algorithm")
            return await commands.start(algorithm)
        case "activate":
            return await commands.ask(Wish.ACTIVATE)
        case "abort":
            return await commands.ask(Wish.ABORT)
        case "retire":
            return await commands.ask(
                Wish.RETIRE_AND_DESTROY if options.destroy_old_key else Wish.RETIRE
            )
        case _:
            return await commands.status()


def _now() -> datetime:
    return datetime.now(UTC)
