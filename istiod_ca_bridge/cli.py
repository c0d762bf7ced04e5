"""The command line: `serve`, and `health` for probes.

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

from istiod_ca_bridge.config import Config, read_config, read_health_address
from istiod_ca_bridge.errors import BridgeError, ConfigError
from istiod_ca_bridge.health_probe import probe
from istiod_ca_bridge.log import event_log
from istiod_ca_bridge.server import serve

_ENVIRONMENT = """\
environment (durations as 24h or 1h30m; lists by comma):
  BRIDGE_MODE                ca-server (default), csr-signer, sealed or asm
  BRIDGE_STORE               kubernetes (default) or directory
  BRIDGE_STORE_DIR           the directory: <dir>/<secret name>/<key>
  KUBECONFIG                 a cluster to talk to from outside; in a pod, unset
  POD_NAMESPACE              namespace of the Secrets (istio-system)
  KEY_MANAGEMENT_ENDPOINT    the HSM plugin's socket (/var/run/hsm-socket/.sock)
  KEY_MANAGEMENT_KEY_ID      KEK id; required
  CA_KEY_MODE                resident (default: signs in the HSM) or sealed (in memory; the
                             default, and the only one, with BRIDGE_MODE=sealed and asm)
  CA_KEY_ALGORITHM           rsa-2048 (default), rsa-3072, rsa-4096, ecdsa-p256, ecdsa-p384
  TRUST_DOMAIN               SPIFFE trust domain (cluster.local)
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
  CA_PLUG_IN_DIR             BRIDGE_MODE=sealed: istiod's ROOT_CA_DIR, in memory; required
  CA_PLUG_IN_AT_EXIT         keep (default) or wipe what is in it
  CA_PLUG_IN_ALLOW_DISK      true: it need not be in memory
  CERT_SIGNER_DOMAIN         BRIDGE_MODE=csr-signer: as istiod's own; required
  CERT_SIGNER_NAMES          names of our signers in that domain; required
  CSR_REQUESTORS             <namespace>/<service account> of each istiod (by ISTIO_REVISIONS)
  CSR_DNS_NAMES              further names of istiod, such as its ISTIOD_CUSTOM_HOST
  DRAIN_DURATION             how long requests may end after SIGTERM (10s)
  LOG_FORMAT                 text (default) or json
"""
_PR_SET_DUMPABLE = 4


def run(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    command: str = _parser().parse_args(arguments).command
    _protect_memory()
    try:
        if command == "health":
            probe(read_health_address())
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
    return parser


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
