"""Every parser of the product as a function of bytes, and the errors that it may refuse with."""

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_plugin import audit_command, envelope, keys, pin_file, trust
from hsm_plugin import client as plugin_client
from hsm_plugin import config as plugin_config
from hsm_plugin import durations as plugin_durations
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.pin_guard import PinGuard, PinState
from istio_hsm_installer import ceremony, durations, findings, release, schema
from istio_hsm_installer import certificates as installer_certificates
from istio_hsm_installer import config as installer_config
from istio_hsm_installer.documents import from_yaml
from istio_hsm_installer.errors import InstallerError
from istio_hsm_installer.state import State
from istio_hsm_installer.steps import kv_secret
from istiod_ca_bridge import authn, chain, csr, identity, jwks_file, policy, records, token_review
from istiod_ca_bridge import config as bridge_config
from istiod_ca_bridge.errors import BridgeError
from tests.unit.istiod_ca_bridge.doubles import recorded_log
from vault_client import answers, diagnosis, files, kv, verify
from vault_client import config as vault_config
from vault_client.delivery import FileNames
from vault_client.errors import VaultClientError
from vault_client.secret import Secret

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
_TOKEN_KEY = jwt.PyJWK({"kty": "RSA", "alg": "RS256", "n": "_" * 342, "e": "AQAB"})
_STATE = PinState(locked=False, final_try=False, count_low=False)
_MAX_VARIABLE_BYTES = (128 << 10) - 64
"""MAX_ARG_STRLEN (execve(2)), less the name."""

_Parse = Callable[[bytes, Path], object]


@dataclass(frozen=True, slots=True)
class Parser:
    """One way in."""

    name: str
    parse: _Parse
    """Of the bytes, and of a file that holds them."""

    refusals: tuple[type[Exception], ...]
    is_own: bool
    """Whether it reads what the operator gave: a refusal may quote that at length."""


PARSERS: list[Parser] = []


def parser(*refusals: type[Exception], is_own: bool = False) -> Callable[[_Parse], _Parse]:
    """Register a parser that refuses with these errors only."""

    def registered(parse: _Parse) -> _Parse:
        PARSERS.append(Parser(parse.__name__.strip("_"), parse, refusals, is_own))
        return parse

    return registered


def variable(data: bytes) -> str:
    """Return the bytes as a process finds them in its environment: no NUL, and bounded."""
    return data.replace(b"\0", b"").decode("utf-8", "surrogateescape")[:_MAX_VARIABLE_BYTES]


def document(data: bytes) -> object:
    """Return the JSON value, as a client's library makes it; None when there is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def string(data: bytes) -> str:
    """Return a text of a protobuf or JSON answer."""
    return data.decode("utf-8", "replace")


def bounded(error: Exception) -> None:
    """Assert that a refusal quotes nothing at length."""
    assert len(str(error)) < 1000


# -- hsm_plugin ----------------------------------------------------------------------------


@parser(HsmPluginError)
def _plugin_jwe(data: bytes, _: Path) -> object:
    return envelope.parse(data, "the blob")


@parser(HsmPluginError)
def _plugin_dek(data: bytes, _: Path) -> object:
    return envelope.Dek.from_jwk(data)


@parser(HsmPluginError)
def _plugin_decrypt(data: bytes, _: Path) -> object:
    return envelope.Dek("00ff", bytearray(32)).decrypt(data)


@parser(HsmPluginError)
def _plugin_root(data: bytes, _: Path) -> object:
    certificate = trust.load_certificate(data, "the certificate")
    trust.check_root(certificate, NOW)
    return certificate


@parser(HsmPluginError)
def _plugin_chain(data: bytes, _: Path) -> object:
    certificate = trust.load_certificate(data, "the certificate")
    return trust.verify_chain([certificate, certificate], [certificate], NOW)


@parser(HsmPluginError)
def _plugin_id(data: bytes, _: Path) -> object:
    return keys.checked_id(data, "the id")


@parser(HsmPluginError)
def _plugin_pin_file(_: bytes, path: Path) -> object:
    return pin_file.read_pin(path)


@parser(HsmPluginError)
def _plugin_pin_guard(data: bytes, path: Path) -> object:
    try:
        PinGuard(path).permit("1234", _STATE)
    finally:
        path.write_bytes(data)
    return None


@parser(HsmPluginError)
def _plugin_csr_secret(_: bytes, path: Path) -> object:
    return plugin_client._csr_secret(path)


@parser(argparse.ArgumentTypeError, is_own=True)
def _plugin_duration(data: bytes, _: Path) -> object:
    return plugin_durations.seconds(variable(data))


@parser(HsmPluginError)
def _plugin_audit_log(_: bytes, path: Path) -> object:
    client = plugin_client.Client(socket="none", timeout_seconds=1)
    verify_log = audit_command.Verify((path,), (), chain_only=True, head="", patience_seconds=0)
    return audit_command.as_text(verify_log.run(client))


@parser(HsmPluginError)
def _plugin_audit_key(_: bytes, path: Path) -> object:
    return audit_command._read_key(path)


@parser(HsmPluginError, is_own=True)
def _plugin_settings(data: bytes, _: Path) -> object:
    text = variable(data)
    return plugin_config.serve_config(
        socket=text,
        module=text,
        token_label=text,
        pin_file=text,
        state_dir=text,
        sessions=1,
        queue_limit=1,
        drain_seconds=1,
        kubernetes_kek_id=text,
    )


# -- istiod_ca_bridge ----------------------------------------------------------------------


@parser(BridgeError)
def _bridge_csr(data: bytes, _: Path) -> object:
    return policy.requested_key(string(data))


@parser(BridgeError)
def _bridge_own_csr(data: bytes, _: Path) -> object:
    csr.check_request(data, KEY)
    return None


@parser(BridgeError)
def _bridge_chain(data: bytes, _: Path) -> object:
    return chain.checked_chain(data, KEY, NOW)


@parser(BridgeError)
def _bridge_chain_of_its_own_key(data: bytes, _: Path) -> object:
    found = chain._read(data)
    return chain.checked_chain(data, found[0].public_key(), NOW)  # type: ignore[arg-type] # any key


@parser(BridgeError)
def _bridge_client_certificate(data: bytes, _: Path) -> object:
    return authn.caller_of_certificate(data, authn.TrustDomain("cluster.local"), NOW)


@parser(BridgeError)
def _bridge_signed_token(data: bytes, _: Path) -> object:
    authenticator = authn.SignedTokenAuthenticator(
        lambda: {"k1": _TOKEN_KEY},
        "https://issuer.test",
        ("istio-ca",),
        "cluster.local",
        lambda: NOW,
    )
    return asyncio.run(authenticator.authenticate(string(data)))


@parser(BridgeError)
def _bridge_reviewed_token(data: bytes, _: Path) -> object:
    return token_review._life_left(string(data), NOW)


@parser(BridgeError)
def _bridge_reviewed_name(data: bytes, _: Path) -> object:
    return token_review._caller(token_review.ReviewedToken(string(data)), "cluster.local")


@parser(BridgeError)
def _bridge_jwks(data: bytes, _: Path) -> object:
    return authn.key_set(document(data))


@parser(BridgeError)
def _bridge_jwks_file(_: bytes, path: Path) -> object:
    return jwks_file.JwksFile(path, recorded_log()[0])


@parser(BridgeError)
def _bridge_spiffe_id(data: bytes, _: Path) -> object:
    return identity.parse_spiffe_id(string(data))


@parser(BridgeError)
def _bridge_key_record(data: bytes, _: Path) -> object:
    names = ("kek-id", "encrypted-dek", "key-id", "key-algorithm")
    return records.key_record(dict.fromkeys(names, data))


@parser(BridgeError)
def _bridge_sealed_record(data: bytes, _: Path) -> object:
    return records.key_record(dict.fromkeys(("kek-id", "encrypted-dek", "encrypted-skey"), data))


@parser(BridgeError)
def _bridge_csr_record(data: bytes, _: Path) -> object:
    names = ("kek-id", "encrypted-dek", "csr-id", "encrypted-csr")
    return records.csr_record(dict.fromkeys(names, data))


BRIDGE_VARIABLES = (
    *("POD_NAMESPACE", "KEY_MANAGEMENT_ENDPOINT", "KEY_MANAGEMENT_KEY_ID", "CA_KEY_MODE"),
    *("CA_KEY_ALGORITHM", "TRUST_DOMAIN", "CLUSTER_ID", "CA_LISTEN", "CA_SERVER_NAMES"),
    *("CA_MAX_CONNECTIONS", "HEALTH_LISTEN", "JWKS_FILE", "TOKEN_ISSUER", "TOKEN_AUDIENCES"),
    *("TOKEN_REVIEW", "TOKEN_REVIEW_CACHE", "DEFAULT_WORKLOAD_CERT_TTL", "MAX_WORKLOAD_CERT_TTL"),
    *("ROOT_CERT_FILE", "PUBLISH_ROOT_CERT", "ISTIOD_TLS", "ISTIO_REVISIONS", "DRAIN_DURATION"),
    *("DRAIN_DELAY",),
    *("LOG_FORMAT", "BRIDGE_STORE", "BRIDGE_STORE_DIR", "KUBECONFIG"),
)


@parser(BridgeError, is_own=True)
def _bridge_settings(data: bytes, _: Path) -> object:
    return bridge_config.read_config(dict.fromkeys(BRIDGE_VARIABLES, variable(data)))


# -- vault_client --------------------------------------------------------------------------


VAULT_VARIABLES = (
    *("VAULT_ADDR", "VAULT_ALLOW_PLAINTEXT", "VAULT_NAMESPACE", "VAULT_CACERT"),
    *("VAULT_AUTH_CERT_CM", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"),
    *("VAULT_AUTH_METHOD", "VAULT_AUTH_PATH", "VAULT_ROLE", "VAULT_AUTH_JWT_PATH"),
    *("VAULT_AUTH_AUDIENCE", "VAULT_KV_PATH", "EXTRA_FILES", "CLIENT_CERT_FILENAME"),
    *("PIN_FILENAME", "OUTPUT_DIR", "OUTPUT_MODE", "OUTPUT_OWNER", "VAULT_CLIENT_ALLOW_DISK"),
    *("POLL_INTERVAL", "RETRY_MAX_INTERVAL", "CA_REFRESH_INTERVAL", "REQUEST_TIMEOUT"),
    *("ONCE_TIMEOUT", "ON_EXIT", "ON_MISSING", "ON_FORBIDDEN", "HEALTH_ADDR"),
    *("HSM_PLUGIN_SOCKET", "HSM_PLUGIN_TIMEOUT", "TRIAL_LOGIN", "LOG_FORMAT", "LOG_LEVEL"),
)


@parser(VaultClientError, is_own=True)
def _vault_settings(data: bytes, _: Path) -> object:
    environment = dict.fromkeys(VAULT_VARIABLES, variable(data))
    vault_config.load_logging(environment)
    return vault_config.load(environment)


@parser()
def _vault_duration(data: bytes, _: Path) -> object:
    return vault_config.parse_duration(variable(data))


@parser()
def _vault_retry_after(data: bytes, _: Path) -> object:
    return answers.retry_after(data.decode("latin-1"), NOW)


@parser(VaultClientError)
def _vault_login(data: bytes, _: Path) -> object:
    body = answers.mapping(document(data))
    values = {"client_token": body.get("kid", "t"), "lease_duration": body.get("exp")}
    return answers.grant_of(answers.Answer(200, {"auth": values}, None))


@parser()
def _vault_complaint(data: bytes, _: Path) -> object:
    return answers.Answer(500, {"errors": [document(data), string(data)]}, None).complaint()


@parser()
def _vault_absence(data: bytes, _: Path) -> object:
    return kv.absent(string(data), answers.mapping(document(data)))


@parser(VaultClientError)
def _vault_values(data: bytes, _: Path) -> object:
    body = answers.mapping(document(data))
    kv.version_of(body)
    values = kv.values_of(answers.mapping(body.get("data", body)))
    return verify.verify(values, 1, FileNames(), NOW)


@parser(VaultClientError)
def _vault_set(data: bytes, _: Path) -> object:
    names = FileNames()
    return verify.verify({key: Secret(data) for key in names.by_key()}, 1, names, NOW)


@parser()
def _vault_claims(data: bytes, _: Path) -> object:
    return diagnosis.decode_claims(data)


@parser()
def _vault_manifest(data: bytes, path: Path) -> object:
    root = path.parent / "published"
    generation = root / "..1"
    generation.mkdir(parents=True, exist_ok=True)
    (generation / files.MANIFEST).write_bytes(data)
    if not (root / files.DATA).is_symlink():
        (root / files.DATA).symlink_to("..1")
    return files.read_published(root)


# -- istio_hsm_installer -------------------------------------------------------------------


@parser(InstallerError)
def _installer_configuration(data: bytes, _: Path) -> object:
    return schema.parse(from_yaml(data, "istio-hsm.yaml"), Path("/site"))


@parser(InstallerError)
def _installer_secret_file(_: bytes, path: Path) -> object:
    return installer_config.secret_file(path)


@parser(InstallerError)
def _installer_state(_: bytes, path: Path) -> object:
    return State(path, {"name": "c1"})


@parser(InstallerError)
def _installer_request(data: bytes, _: Path) -> object:
    return ceremony.load_request(data)


@parser(InstallerError)
def _installer_chain(data: bytes, _: Path) -> object:
    certificates = ceremony.load_chain(data)
    request = ceremony.Request(None, KEY)  # type: ignore[arg-type] # its key alone is looked at
    ceremony.check_chain([certificates[0], certificates[0]], request, now=NOW)
    return certificates


@parser(InstallerError)
def _installer_root_key(data: bytes, _: Path) -> object:
    return ceremony.load_root_key(data, None)


@parser(InstallerError)
def _installer_release_key(data: bytes, _: Path) -> object:
    return release.load_key(data)


@parser(InstallerError)
def _installer_pair(data: bytes, path: Path) -> object:
    secret = installer_config.Secret(data)
    kv_secret._check_pair(secret, secret, path)
    return None


@parser()
def _installer_certificates(data: bytes, _: Path) -> object:
    return installer_certificates.read(data), installer_certificates.fingerprints(data)


@parser()
def _installer_clock(data: bytes, _: Path) -> object:
    return findings.clock("Vault", data.decode("latin-1"), NOW)


@parser()
def _installer_quantity(data: bytes, _: Path) -> object:
    return findings.quantity(string(data))


@parser(ValueError, is_own=True)
def _installer_duration(data: bytes, _: Path) -> object:
    return durations.parse(string(data))
