"""The command line: `serve`, and commands that are clients of a running plugin.

Exit codes: 0 done, 1 the operation failed, 2 the command or its settings are wrong, 79 something
was found that should not be (`audit verify`, `doctor`).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from hsm_plugin import (
    audit_options,
    config,
    core_dumps,
    examinations,
    key_commands,
    log,
    token_options,
)
from hsm_plugin.certificate_name import printable
from hsm_plugin.client import (
    KEY_ALGORITHMS,
    SIGNATURE_ALGORITHMS,
    CallRefusedError,
    Client,
    Result,
)
from hsm_plugin.daemon import serve
from hsm_plugin.durations import seconds as _duration
from hsm_plugin.errors import BadRequestError, ConfigError, HsmPluginError, HsmUnavailableError
from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.keys import CBC_KEK_LABEL, CBC_MAC_LABEL, KekCipher
from hsm_plugin.listen_settings import DEFAULT_HOST, DEFAULT_PORT, ListenSettings, listen_settings


def run(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        return _client(options)
    except HsmPluginError as error:
        _fail(error, as_json=getattr(options, "output", "text") == "json")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def _serve(options: argparse.Namespace) -> int:
    if options.p11_pin is not None:
        raise ConfigError(
            "--p11-pin would show the PIN to every process of this host",
            hint="write it into a file of mode 0400 and name the file in P11_PIN_FILE",
        )
    if options.p11_slot is not None:
        raise ConfigError(
            "--p11-slot is not followed: slot ids change when an HSM joins or leaves",
            hint="name the token's label in P11_TOKEN",
        )
    if options.ca_id is not None:
        raise ConfigError(
            "--ca-id has no meaning for serve: every root that is in the token is trusted",
            hint="leave it out; `import-ca --ca-id` gives a root its id",
        )
    core_dumps.forbid()  # one would hold keys
    log.setup(as_json=_log_as_json(options))
    uvloop.run(
        serve(
            config.serve_config(
                socket=options.socket,
                module=options.p11_lib,
                token_label=token_options.named(options),
                pin_file=options.p11_pin_file,
                state_dir=options.state_dir,
                sessions=options.sessions,
                queue_limit=options.queue_limit,
                drain_seconds=options.drain,
                hang_seconds=options.hang_limit,
                kubernetes_kek_id=options.kms_kek_id,
                listen=_listen(options),
                log_as_json=_log_as_json(options),
                kek_id=options.kek_id,
                auto_create=options.auto_create,
                return_seconds=options.return_after,
                algorithm=options.algorithm,
                key_label=options.p11_key_label,
                hmac_label=options.p11_hmac_label,
                gcm_iv=options.gcm_iv,
                dek_stock=options.dek_stock,
                metrics_listen=options.metrics_listen,
                watched_certificates=options.watch_certificates,
                audit=audit_options.settings_of(options),
            )
        )
    )
    return 0


def _log_as_json(options: argparse.Namespace) -> bool:
    return bool((options.output or options.log_format) == "json")


def _listen(options: argparse.Namespace) -> ListenSettings:
    return listen_settings(
        disable_socket=options.disable_socket,
        allow_uids=options.allow_uid,
        allow_gids=options.allow_gid,
        enable_server=options.enable_server,
        host=options.host,
        port=options.port,
        tls_ca=options.tls_ca,
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        tls_allow=options.tls_allow,
    )


def _client(options: argparse.Namespace) -> int:
    client = Client(socket=options.socket, timeout_seconds=options.timeout)
    show = partial(_show, options)
    if options.command in examinations.COMMANDS:
        return examinations.run(options, client, show)
    if options.command in key_commands.COMMANDS:
        key_commands.run(options, client, show)
    else:
        _call(options, client)
    return 0


def _call(options: argparse.Namespace, client: Client) -> None:
    match options.command:
        case "generate-kek":
            result = client.generate_kek(options.kek_id)
            _show(options, result, f"KEK ID: {result['kek_id']}")
        case "import-ca":
            result = client.import_ca(options.file, options.ca_id)
            _show(options, result, f"Imported root: {_subject(result)}, SHA-256 {result['sha256']}")
        case "decrypt-csr":
            result = client.decrypt_csr(options.file, options.out)
            _show(options, result, _csr_text(result, options.out))
        case "verify-cert":
            result = client.verify_cert(options.file)
            _show(options, result, f"Verified: {_subject(result)}, until {result['not_after']}")
        case "health":
            _show(options, client.health(), "The plugin serves")
        case "list-keys":
            _list_keys(options, client.list_keys())
        case "generate-signing-key":
            result = client.generate_signing_key(options.key_id, options.key_algorithm)
            _show(options, result, f"Key {result['key_id']}\n{result['public_key']}".rstrip())
        case "sign-digest":
            result = client.sign_digest(options.key_id, options.signature_algorithm, options.digest)
            _show(options, result, str(result["signature"]))
        case "test":
            result = client.self_test(options.kek_id)
            _show(options, result, f"KEK {result['kek_id']} encrypts and decrypts")


def _list_keys(options: argparse.Namespace, keys: list[Result]) -> None:
    lines = [
        f"{key['key_id']}  not used: {key['fault']}"
        if "fault" in key
        else f"{key['key_id']}  {key['algorithm']}  public key SHA-256 {key['public_key_sha256']}"
        for key in keys
    ]
    text = "\n".join(lines) if lines else "No signing key is in the token"
    _show(options, {"keys": keys}, text)


def _csr_text(result: Result, output: Path | None) -> str:
    if output is None:
        return str(result["csr"]).rstrip()
    return (
        f"Wrote {output}: subject {_subject(result)}, "
        f"public key SHA-256 {result['public_key_sha256']}"
    )


def _subject(result: Result) -> str:
    return printable(str(result["subject"]))


def _show(options: argparse.Namespace, result: Mapping[str, object], text: str) -> None:
    sys.stdout.write((json.dumps(result) if options.output == "json" else text) + "\n")


def _fail(error: HsmPluginError, *, as_json: bool) -> None:
    if as_json:
        code = error.status if isinstance(error, CallRefusedError) else _error_code(error)
        document = {"code": code, "message": str(error), "hint": error.hint}
        sys.stdout.write(json.dumps({"error": document}) + "\n")
    sys.stderr.write(f"error: {error}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")


def _error_code(error: HsmPluginError) -> str:
    """Return a stable word for errors that are no answer of the server."""
    if isinstance(error, HsmUnavailableError):
        return "UNREACHABLE"
    return "INVALID_INPUT" if isinstance(error, BadRequestError) else "FAILED"


def _parser() -> argparse.ArgumentParser:
    env = config.environment()
    parser = argparse.ArgumentParser(
        prog="hsm-plugin",
        description="Guards keys in an HSM (PKCS#11) and serves them on a Unix socket.",
    )
    parser.add_argument("--version", action="version", version=version("istio-hsm"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--socket",
        default=env.get("SOCKET", config.DEFAULT_SOCKET),
        help="the Unix socket (SOCKET; now %(default)s)",
    )
    token = token_options.parser(env)
    server = commands.add_parser("serve", parents=[common, token], help="serve until SIGTERM")
    server.add_argument(
        "--provider", choices=("p11",), default="p11", help="kept for the reference's command line"
    )
    server.add_argument(
        "--algorithm",
        choices=[cipher.value for cipher in KekCipher],
        default=env.get("HSM_PLUGIN_ALGORITHM", KekCipher.GCM.value),
        help="of the KEKs that are made (HSM_PLUGIN_ALGORITHM; aes-gcm)",
    )
    server.add_argument(
        "--p11-key-label",
        default=env.get("P11_KEY_LABEL", CBC_KEK_LABEL),
        help="the label of KEKs for aes-cbc (P11_KEY_LABEL; now %(default)s)",
    )
    server.add_argument(
        "--p11-hmac-label",
        default=env.get("P11_HMAC_LABEL", CBC_MAC_LABEL),
        help="the label of the HMAC keys beside them (P11_HMAC_LABEL; now %(default)s)",
    )
    server.add_argument(
        "--gcm-iv",
        choices=[entry.value for entry in GcmIv],
        default=env.get("P11_GCM_IV", GcmIv.AUTO.value),
        help="who makes the IV for aes-gcm; auto: the token where it refuses ours (P11_GCM_IV)",
    )
    server.add_argument(
        "--dek-stock",
        choices=config.ON_OFF,
        default=env.get("HSM_PLUGIN_DEK_STOCK", config.ON),
        help="make DEKs ahead for a KEK that is asked for again and again "
        "(HSM_PLUGIN_DEK_STOCK; on)",
    )
    server.add_argument("--p11-pin", help=argparse.SUPPRESS)
    server.add_argument("--p11-slot", help=argparse.SUPPRESS)
    server.add_argument(
        "--sessions", type=int, default=8, help="PKCS#11 sessions, one a thread (%(default)s)"
    )
    server.add_argument(
        "--queue-limit", type=int, default=1024, help="calls that may wait (%(default)s)"
    )
    server.add_argument(
        "--drain", type=_duration, default=5.0, help="for calls under way at the end (5s)"
    )
    server.add_argument(
        "--hang-limit",
        type=_duration,
        default=config.DEFAULT_HANG_SECONDS,
        help="for one call of the PKCS#11 module, until its process is replaced (10s)",
    )
    server.add_argument(
        "--return-after",
        type=_duration,
        default=config.DEFAULT_RETURN_SECONDS,
        help="how often a better token is looked for while a stand-by is in use (30s)",
    )
    server.add_argument(
        "--kms-kek-id",
        default=env.get("HSM_PLUGIN_KMS_KEK_ID", ""),
        help="serve Kubernetes' KMS API too, with this KEK (HSM_PLUGIN_KMS_KEK_ID)",
    )
    server.add_argument(
        "--metrics-listen",
        default=env.get("METRICS_LISTEN", ""),
        help="HOST:PORT of /metrics, /healthz and /readyz (METRICS_LISTEN; off)",
    )
    server.add_argument(
        "--watch-certificates",
        default=env.get("HSM_PLUGIN_WATCH_CERTIFICATES", ""),
        help="PEM files, separated by colons, whose expiry is shown "
        "(HSM_PLUGIN_WATCH_CERTIFICATES)",
    )
    audit_options.add(server, env)
    server.add_argument(
        "--log-format", choices=("text", "json"), default=env.get("LOG_FORMAT", "text")
    )
    server.add_argument(
        "--output", choices=("text", "json"), help="the reference's name of --log-format"
    )
    server.add_argument("--kek-id", default="", help="a KEK to look for at the start")
    server.add_argument(
        "--auto-create", action="store_true", help="make that KEK when it is not there"
    )
    server.add_argument("--ca-id", help=argparse.SUPPRESS)
    _add_ways_in(server, env)

    _add_client_commands(commands, common, token)
    return parser


def _add_client_commands(
    commands: Any, common: argparse.ArgumentParser, token: argparse.ArgumentParser
) -> None:
    """Add what talks to a running plugin. `commands`: argparse has no public type for them."""
    client = argparse.ArgumentParser(add_help=False, parents=[common])
    client.add_argument("--timeout", type=_duration, default=10.0, help="of the call (10s)")
    client.add_argument("--output", choices=("text", "json"), default="text")
    kek = commands.add_parser("generate-kek", parents=[client], help="make a KEK, or find it")
    kek.add_argument(
        "--kek-id", default="", help="its id or a PKCS#11 URI; a new UUID when left out"
    )
    root = commands.add_parser("import-ca", parents=[client], help="trust a root certificate")
    root.add_argument("-f", "--file", type=Path, required=True, help="the root, PEM or DER")
    root.add_argument("--ca-id", default="", help="its id; its SHA-256 when left out")
    csr = commands.add_parser("decrypt-csr", parents=[client], help="open the encrypted CSR")
    csr.add_argument("-f", "--file", type=Path, required=True, help="the Secret's data, JSON")
    csr.add_argument("-o", "--out", type=Path, help="where to write it; else standard output")
    check = commands.add_parser("verify-cert", parents=[client], help="verify a chain")
    check.add_argument("-f", "--file", type=Path, required=True, help="PEM, its target first")
    commands.add_parser("health", parents=[client], help="exit 0 when the plugin serves")
    commands.add_parser("list-keys", parents=[client], help="the signing keys of the token")
    made = commands.add_parser(
        "generate-signing-key", parents=[client], help="make a signing key, or find it"
    )
    made.add_argument("--key-id", default="", help="its id; a new UUID when left out")
    made.add_argument("--key-algorithm", choices=KEY_ALGORITHMS, default="ECDSA_P256")
    signed = commands.add_parser("sign-digest", parents=[client], help="sign a digest by a key")
    signed.add_argument("--key-id", required=True, help="a signing key of the token")
    signed.add_argument("--signature-algorithm", choices=SIGNATURE_ALGORITHMS, required=True)
    signed.add_argument("--digest", type=_hexadecimal, required=True, help="in hexadecimal")
    test = commands.add_parser("test", parents=[client], help="encrypt and decrypt once")
    test.add_argument("--kek-id", required=True, help="an existing KEK")
    key_commands.add(commands, client)
    examinations.add(commands, client, token)


def _add_ways_in(server: argparse.ArgumentParser, env: Mapping[str, str]) -> None:
    server.add_argument(
        "--disable-socket", action="store_true", help="no Unix socket; for --enable-server"
    )
    server.add_argument(
        "--allow-uid",
        default=env.get("ALLOW_UIDS", ""),
        help="uids that may use the socket, such as 1337,0; `any` only logs them (ALLOW_UIDS)",
    )
    server.add_argument(
        "--allow-gid",
        default=env.get("ALLOW_GIDS", ""),
        help="groups whose processes may use the socket (ALLOW_GIDS)",
    )
    server.add_argument(
        "--enable-server", action="store_true", help="a TCP port too, for TLS clients"
    )
    server.add_argument("--host", default=DEFAULT_HOST, help="of the port (%(default)s)")
    server.add_argument("--port", type=int, default=DEFAULT_PORT, help="(%(default)s)")
    server.add_argument("--tls-ca", default="", help="roots of the clients' certificates, PEM")
    server.add_argument("--tls-certificate", default="", help="the server's chain, PEM")
    server.add_argument("--tls-key", default="", help="its key, PEM, mode 0400 or 0440")
    server.add_argument(
        "--tls-allow",
        action="append",
        default=[],
        help="a client that may use the port: the exact URI or DNS name, or else the common"
        " name, of its certificate; again, or with commas, for more",
    )


def _hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("it is not hexadecimal") from None
