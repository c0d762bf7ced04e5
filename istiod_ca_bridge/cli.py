"""The command line: `serve`, `health` for probes, `log`, `revoke` and `rotation` for people.

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
from importlib.metadata import version
from pathlib import Path

import uvloop

from istiod_ca_bridge.config import Config, read_config, read_health_address
from istiod_ca_bridge.errors import BridgeError, ConfigError, error_in
from istiod_ca_bridge.health_probe import probe
from istiod_ca_bridge.issuance_chain import Findings
from istiod_ca_bridge.issuance_verify import verify_each
from istiod_ca_bridge.log import event_log
from istiod_ca_bridge.served_place import ServedPlace
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.worker_channel import die_with_bridge
from istiod_ca_bridge.worker_pool import WorkerPool
from istiod_ca_bridge.worker_process import work
from istiod_ca_bridge.worker_seat import WorkerSeat, share_of

_ENVIRONMENT = """\
environment (durations as 24h or 1h30m; lists by comma):
  BRIDGE_MODE                ca-server (default), csr-signer, sealed or asm
  BRIDGE_STORE               kubernetes (default) or directory
  BRIDGE_STORE_DIR           the directory: <dir>/<secret name>/<key>
  KUBECONFIG                 a cluster to talk to from outside; in a pod, unset
  POD_NAMESPACE              namespace of the Secrets (istio-system)
  POD_NAME, POD_UID          the pod that Events are about; the leader's name
  KEY_MANAGEMENT_ENDPOINT    the HSM plugin's socket (/var/run/hsm-socket/.sock)
  KEY_MANAGEMENT_KEY_ID      KEK id; required
  CA_KEY_MODE                resident (default: signs in the HSM) or sealed (in memory; the
                             default, and the only one, with BRIDGE_MODE=sealed and asm)
  CA_KEY_ALGORITHM           rsa-2048 (default), rsa-3072, rsa-4096, ecdsa-p256, ecdsa-p384
  TRUST_DOMAIN               SPIFFE trust domain (cluster.local)
  TRUST_DOMAIN_ALIASES       other names of it: their certificates are renewed into it
  CA_RENEW_BEFORE            when to ask for a new CA certificate: a part of its life (33%), or
                             a duration before its end
  CLUSTER_ID                 the cluster whose tokens are accepted (Kubernetes)
  REMOTE_CLUSTERS            true: tokens of clusters that remote secrets name (false)
  CA_TRUSTED_NODE_ACCOUNTS   namespace/ServiceAccount of ambient's node agents, by comma
  CA_LISTEN                  host:port of the CA service (0.0.0.0:15012)
  CA_SERVER_NAMES            DNS names of its certificate
  CA_MAX_CONNECTIONS         at once (4096)
  CA_MAX_WAITING             requests that wait for a signature (4096)
  CA_WORKERS                 processes that answer agents: 1 (default) to 32, or auto: one for each
                             core, up to 4
  METRICS_LISTEN             host:port of /metrics in the clear; unset: nowhere
  HEALTH_LISTEN              host:port of gRPC health in the clear; unset: on CA_LISTEN only
  TOKEN_REVIEW               kubernetes (default in Kubernetes without JWKS_FILE) or off
  TOKEN_REVIEW_CACHE         how long an answer is remembered (10s); 0: not at all
  JWKS_FILE                  public keys of the token issuer, instead of TokenReview
  TOKEN_ISSUER               the tokens' iss; required with JWKS_FILE
  TOKEN_AUDIENCES            accepted audiences (istio-ca)
  DEFAULT_WORKLOAD_CERT_TTL  lifetime when none is asked for (24h)
  MAX_WORKLOAD_CERT_TTL      longest lifetime (2160h)
  WORKLOAD_CERT_TTL_POLICY   over it: reject (default) or clamp
  WORKLOAD_CERT_TTL_JITTER   lifetimes are shorter by up to this much (5%)
  KEY_BLOCKLIST_FILE         SHA-256 digests of public keys that get no certificate
  ISSUANCE_LOG               file of the tamper-evident log; unset: none
  ISSUANCE_LOG_MAX_BYTES     it is put aside at this size (104857600)
  ISSUANCE_LOG_CHECKPOINT    certificates between two signatures on it (1000)
  ISSUANCE_LOG_WHEN_FAILING  refuse (default) certificates, or issue them all the same
  CA_CRL                     true: a revocation list is kept, published and heeded (false)
  CRL_FILE                   write the revocation list here
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
  POD_NAME, POD_UID          of this pod: who the Events are about, who leads
  LEADER_LEASE_DURATION      how long a leader may be silent before another writes (15s)
  DRAIN_DELAY                after SIGTERM, not ready and serving as before for so long (5s in
                             Kubernetes, else 0s)
  DRAIN_DURATION             how long requests may end after that (10s)
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
        elif command in {"revoke", "rotation"}:
            sys.stdout.write(_on_record(command, options))
        elif command == "log":
            _tell_of_log(options.files, options.ca)
        elif command == "worker":
            die_with_bridge()
            uvloop.run(_work(WorkerSeat(*options.seat)))
        else:
            uvloop.run(_serve(read_config()))
    except (BridgeError, BaseExceptionGroup) as raised:
        ours = error_in(raised)
        if ours is None:
            raise
        return _exit_code(ours) if command == "worker" else _fail(ours)
    return 0


async def _serve(config: Config) -> None:
    stop, log = _stop_signal(), event_log(config.log_format)
    if config.workers > 1:
        await WorkerPool(config, log).run(stop)
    else:
        from istiod_ca_bridge import cluster_commands  # noqa: PLC0415 - others do without its driver

        await cluster_commands.serve_alone(config, log, stop)


async def _work(seat: WorkerSeat) -> None:
    from istiod_ca_bridge import cluster_commands  # noqa: PLC0415 - others do without its driver

    stop = _stop_signal()

    async def serve(place: ServedPlace) -> None:
        config = share_of(read_config(), seat)
        log = event_log(config.log_format, seat.number)
        await cluster_commands.serve_at(place, config, log, stop)

    await work(seat, serve)


def _on_record(command: str, options: argparse.Namespace) -> str:
    from istiod_ca_bridge import cluster_commands  # noqa: PLC0415 - others do without its driver

    does = cluster_commands.revocation if command == "revoke" else cluster_commands.rotation
    return does(read_config(), options)


def _stop_signal() -> asyncio.Event:
    """Return what is set when the process is asked to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


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
    worker = commands.add_parser("worker", add_help=False)  # one of CA_WORKERS; not for people
    worker.add_argument("seat", nargs=5, type=int, help=argparse.SUPPRESS)
    commands.add_parser(
        "health",
        help="exit 0 when the bridge beside it serves, for an exec probe",
        description="Ask HEALTH_LISTEN whether the bridge serves.",
    )
    log = commands.add_parser("log", help="look at issuance logs")
    verify_log = log.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "verify",
        help="say what the files hold, or name the first line that is not as it was written",
        description="Verify an issuance log: exit 0 intact, 1 changed, 2 unreadable.",
    )
    verify_log.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="in any order, of all workers"
    )
    verify_log.add_argument(
        "--ca",
        type=Path,
        metavar="CERT-CHAIN",
        help="hold the checkpoints against the keys of these certificates",
    )
    revoke = commands.add_parser(
        "revoke",
        help="revoke certificates by serial, or all that an identity has",
        description="Revoke certificates; takes the same environment as `serve`. Doing so twice "
        "changes nothing.",
    )
    revoke.add_argument(
        "targets", nargs="+", metavar="SERIAL|SPIFFE-ID", help="a serial is in hexadecimal"
    )
    revoke.add_argument(
        "--reason",
        default="unspecified",
        help="keyCompromise, affiliationChanged, superseded, cessationOfOperation, "
        "privilegeWithdrawn or unspecified (default)",
    )
    revoke.add_argument(
        "--log",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="issuance logs, which say what an identity has",
    )
    _add_rotation(commands)
    return parser


def _tell_of_log(files: Sequence[Path], ca: Path | None) -> None:
    found = verify_each(files, ca)
    for worker, findings in found.items():
        _tell_of_chain(findings, f"worker {worker}: " if len(found) > 1 else "")
    if ca is None:
        sys.stdout.write("whose key that is was not checked: name the CA's certificate by --ca\n")


def _tell_of_chain(found: Findings, worker: str) -> None:
    unsigned = found.last - max(found.sealed, found.first - 1)
    sys.stdout.write(
        f"{worker}intact: lines {found.first} to {found.last}, {found.issued} certificates, "
        f"{found.gaps} gaps, {found.recovered} torn ends\n"
        f"signed up to line {found.sealed}, by {found.checkpoints} checkpoints; "
        f"{unsigned} lines after that are linked by digests alone\n"
    )
    for key in sorted(found.keys):
        sys.stdout.write(f"checkpoint key sha256:{key}\n")


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


def _fail(error: BridgeError) -> int:
    hint = error.hint or "the log above says what led here"
    sys.stderr.write(f"error: {error}\nhint: {hint}\n")
    return _exit_code(error)


def _exit_code(error: BridgeError) -> int:
    return 2 if isinstance(error, ConfigError) else 1
