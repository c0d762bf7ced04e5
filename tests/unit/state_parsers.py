"""The parsers of what lies in Kubernetes, in logs and in references to keys, as functions of bytes.

`PARSERS` has those of tests.unit.parsers too.
"""

import contextlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from hsm_plugin import key_reference, token_reference
from hsm_plugin import pkcs11_uri as plugin_uri
from hsm_plugin.audit_file import AuditFile
from hsm_plugin.errors import HsmPluginError
from istio_hsm_installer import pkcs11_uri as installer_uri
from istio_hsm_installer.errors import InstallerError
from istiod_ca_bridge import crl, issuance_verify, kube_csr, replica_report, rotation, status_record
from istiod_ca_bridge.crl_bundle import lists_in
from istiod_ca_bridge.errors import BridgeError, ForbiddenError, RefusedRequestError
from istiod_ca_bridge.issuance_file import IssuanceFile
from istiod_ca_bridge.kube_watch import MALFORMED
from istiod_ca_bridge.remote_kubeconfig import remote_api
from istiod_ca_bridge.signing_request import SigningRequest, grant_request
from tests.unit.istiod_ca_bridge.test_signing_request import POLICY
from tests.unit.parsers import NOW, PARSERS, document, parser, string, variable

__all__ = ["PARSERS"]

SIGNER = "mesh.example.com/hsm"
REQUESTOR = next(iter(POLICY.requestors))
ROTATION_KEYS = (
    *("phase", "key-algorithm", "started-at", "longest-lifetime-seconds", "distributed-at"),
    *(
        "activated-at",
        "next-key.pem",
        "next-chain.pem",
        "old-chain.pem",
        "old-expires-at",
        "wish",
        "answer",
    ),
)


def secret_values(data: bytes) -> Mapping[str, bytes]:
    """Return a Secret's values: those of a JSON object of texts, or the bytes as each value."""
    match document(data):
        case dict() as found:
            return {str(k): str(v).encode("utf-8", "surrogatepass") for k, v in found.items()}
        case _:
            return dict.fromkeys(ROTATION_KEYS, data)


# -- what the bridge reads from Kubernetes -------------------------------------------------


@parser(BridgeError)
def _bridge_rotation(data: bytes, _: Path) -> object:
    record = rotation.rotation_of(secret_values(data))
    assert rotation.rotation_of(record.values()) == record
    told = []
    for has_next in (False, True):
        facts = rotation.Facts(
            NOW, has_next_key=has_next, has_next_csr=has_next, next_chain_fault=None, lacking=()
        )
        told.append(str(rotation.next_step(record, facts)))
    assert max(map(len, told)) < 1000
    return record


@parser()
def _bridge_replica_report(data: bytes, _: Path) -> object:
    report = replica_report.parse_report("r", string(data))
    replica_report.is_heard(report, NOW)
    return report.text()


@parser()
def _bridge_condition_messages(data: bytes, _: Path) -> object:
    return status_record.messages_of(string(data))


@parser(BridgeError)
def _bridge_revocations(data: bytes, _: Path) -> object:
    entries = crl.read_revocations(data)
    assert crl.read_revocations(crl.write_revocations(entries.values())) == entries
    return entries


@parser(BridgeError)
def _bridge_crls(data: bytes, _: Path) -> object:
    return [crl.number_of(it) for it in lists_in(data)]


@parser(BridgeError)
def _bridge_kubeconfig(data: bytes, _: Path) -> object:
    api = remote_api(data)
    assert api.token not in str(api)
    return api


@parser(*MALFORMED)
def _bridge_signing_request(data: bytes, _: Path) -> object:
    body = document(data)
    if not isinstance(body, dict):
        return None
    request = kube_csr._change(SIGNER, body).content
    if isinstance(request, SigningRequest):
        with contextlib.suppress(ForbiddenError, RefusedRequestError):
            return grant_request(
                request, POLICY, now=NOW, ca_not_after=NOW + timedelta(days=9), serial=1
            )
    return None


# -- references to keys and tokens ---------------------------------------------------------


@parser(HsmPluginError)
def _plugin_pkcs11_uri(data: bytes, _: Path) -> object:
    uri = plugin_uri.parse(variable(data))
    assert plugin_uri.parse(str(uri)) == uri
    return uri


@parser(HsmPluginError)
def _plugin_token_references(data: bytes, _: Path) -> object:
    return [str(reference) for reference in token_reference.parse_list(variable(data))]


@parser(HsmPluginError)
def _plugin_key_reference(data: bytes, _: Path) -> object:
    text = variable(data)
    return [key_reference.key_id(text, use) for use in key_reference.KeyUse]


@parser(InstallerError)
def _installer_pkcs11_uri(data: bytes, _: Path) -> object:
    uri = installer_uri.parse(variable(data))
    assert all("\0" not in part for part in (uri.module, uri.token, uri.key_id, uri.pin_file))
    assert uri.pin_file
    return uri


# -- logs that must be found whole ---------------------------------------------------------


@parser(BridgeError)
def _bridge_issuance_log(_: bytes, path: Path) -> object:
    list(issuance_verify.certificates([path]))
    return issuance_verify.verify([path], None)


@parser(BridgeError)
def _bridge_issuance_file(data: bytes, path: Path) -> object:
    log = IssuanceFile(path, 1 << 30, lambda: NOW)
    try:
        log.open()
    finally:
        log.close()
        path.write_bytes(data)
    return log.at


@parser(HsmPluginError)
def _plugin_audit_file(data: bytes, path: Path) -> object:
    log = None
    try:
        log = AuditFile(path, max_bytes=1 << 30)
        return log.head
    finally:
        if log is not None:
            log.close()
        path.write_bytes(data)
