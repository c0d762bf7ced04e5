"""The command line: `serve`, `health` for probes, and `rotation` for operators.

Exit codes: 0 stopped in order, or healthy; 1 an operator must act, or not healthy; 2 the command
or its settings are wrong.
"""

import argparse
import asyncio
import ctypes
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from istiod_ca_bridge.ca_key import KeyMode
from istiod_ca_bridge.config import Config, read_config, read_health_address
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.health_probe import probe
from istiod_ca_bridge.kube import kubernetes_store
from istiod_ca_bridge.kube_client import connect
from istiod_ca_bridge.kube_status import KubernetesStatus
from istiod_ca_bridge.log import event_log
from istiod_ca_bridge.rotation import Wish
from istiod_ca_bridge.rotation_commands import RotationCommands
from istiod_ca_bridge.server import serve
from istiod_ca_bridge.signer import RSA_BITS, KeyAlgorithm

_ENVIRONMENT = """\
environment (durations as 24h or 1h30m; lists by comma):
  BRIDGE_STORE               kubernetes (default) or directory
  BRIDGE_STORE_DIR           the directory: <dir>/<secret name>/<key>
  KUBECONFIG                 a cluster to talk to from outside; in a pod, unset
  POD_NAMESPACE              namespace of the Secrets (istio-system)
  KEY_MANAGEMENT_ENDPOINT    the HSM plugin's socket (/var/run/hsm-socket/.sock)
  KEY_MANAGEMENT_KEY_ID      KEK id; required
  CA_KEY_MODE                resident (default: signs in the HSM) or sealed (in memory)
  CA_KEY_ALGORITHM           rsa-2048 (default), rsa-3072, rsa-4096, ecdsa-p256, ecdsa-p384
  TRUST_DOMAIN               SPIFFE trust domain (cluster.local)
  CA_RENEW_BEFORE            when to ask for a new CA certificate: a part of its life (33%), or
                             a duration before its end
  CLUSTER_ID                 the cluster whose tokens are accepted (Kubernetes)
  CA_LISTEN                  host:port of the CA service (0.0.0.0:15012)
  CA_SERVER_NAMES            DNS names of its certificate
  CA_MAX_CONNECTIONS         at once (4096)
  HEALTH_LISTEN              host:port of gRPC health in the clear; unset: on CA_LISTEN only
  TOKEN_REVIEW               kubernetes (default in Kubernetes without JWKS_FILE) or off
  TOKEN_REVIEW_CACHE         how long an answer is remembered (10s); 0: not at all
  JWKS_FILE                  public keys of the token issuer, instead of TokenReview
  TOKEN_ISSUER               the tokens' iss; required with JWKS_FILE
  TOKEN_AUDIENCES            accepted audiences (istio-ca)
  DEFAULT_WORKLOAD_CERT_TTL  lifetime when none is asked for (24h)
  MAX_WORKLOAD_CERT_TTL      longest lifetime (2160h)
  ROOT_CERT_FILE             write the served roots here
  PUBLISH_ROOT_CERT          istio-ca-root-cert in every namespace (true in Kubernetes)
  ISTIOD_TLS                 the Secret istiod-tls for istiod to serve with (true in Kubernetes)
  ISTIO_REVISIONS            istiod's revisions, whose names are in it
  POD_NAME, POD_UID          of this pod: who the Events are about, who leads
  LEADER_LEASE_DURATION      how long a leader may be silent before another writes (15s)
  DRAIN_DURATION             how long requests may end after SIGTERM (10s)
  LOG_FORMAT                 text (default) or json
"""
_PR_SET_DUMPABLE = 4


def run(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    options = _parser().parse_args(arguments)
    command: str = options.command
    _protect_memory()
    try:
        if command == "health":
            probe(read_health_address())
        elif command == "rotation":
            sys.stdout.write(asyncio.run(_rotation(read_config(), options)) + "\n")
        else:
            asyncio.run(_serve(read_config()))
    except BridgeError as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        ours = _first(group)
        if ours is None:
            raise
        return _fail(ours)
    return 0


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(config, lambda: datetime.now(UTC), event_log(config.log_format), stop)


async def _rotation(config: Config, options: argparse.Namespace) -> str:
    if config.store_directory is not None:
        raise ConfigError("a rotation needs BRIDGE_STORE=kubernetes")
    cluster = connect(config.kubeconfig)
    commands = RotationCommands(
        kubernetes_store(cluster, config.namespace),
        lambda: datetime.now(UTC),
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="istiod-ca-bridge", description="Istio's CA service, signing by an HSM."
    )
    parser.add_argument("--version", action="version", version=version("istio-hsm"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "serve",
        help="bring the CA key to life and serve certificates",
        description="Bring the CA key to life, wait for its certificate, and serve.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands.add_parser(
        "health",
        help="exit 0 when the bridge beside it serves, for an exec probe",
        description="Ask HEALTH_LISTEN whether the bridge serves.",
    )
    _add_rotation(commands)
    return parser


def _add_rotation(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    rotation = commands.add_parser(
        "rotation",
        help="replace the CA key, and its root, step by step",
        description="Ask the leading bridge for the next step of a rotation of the CA key. "
        "The settings are those of `serve`.",
    )
    actions = rotation.add_subparsers(dest="action", required=True, metavar="ACTION")
    start = actions.add_parser("start", help="make the next key and its CSR")
    start.add_argument("--algorithm", choices=[entry.value for entry in KeyAlgorithm])
    actions.add_parser("status", help="how far it is, and why it does not go on")
    actions.add_parser("activate", help="let the next key sign")
    actions.add_parser("abort", help="give the next key up, before it signs, and destroy it")
    retire = actions.add_parser("retire", help="trust the old root no more")
    old_key = retire.add_mutually_exclusive_group(required=True)
    old_key.add_argument("--keep-old-key", action="store_true", help="leave it in the HSM")
    old_key.add_argument("--destroy-old-key", action="store_true", help="for good")


def _protect_memory() -> None:
    """No core dump shows a key; as many connections as the host allows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first(group: BaseExceptionGroup[BaseException]) -> BridgeError | None:
    """Return the one of our errors that ended the task group."""
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, BridgeError):
            return found
    return None


def _fail(error: BridgeError) -> int:
    hint = error.hint or "the log above says what led here"
    sys.stderr.write(f"error: {error}\nhint: {hint}\n")
    return 2 if isinstance(error, ConfigError) else 1
