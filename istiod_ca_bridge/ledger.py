"""What is kept of each certificate that is issued, and the Protocol of who keeps it."""

import hashlib
from typing import Protocol

from cryptography import x509

from istiod_ca_bridge.authn import Caller
from istiod_ca_bridge.authority import Authority
from istiod_ca_bridge.issuance_chain import Facts
from istiod_ca_bridge.signer import key_der

_MAX_NAMES = 2000


class Ledger(Protocol):
    """Keeps what is issued."""

    async def record(self, facts: Facts) -> None:
        """Return once it is kept; IssuanceLogError when the certificate must not leave."""
        ...


def of_workload(leaf: x509.Certificate, authority: Authority, caller: Caller) -> Facts:
    """Return what is kept of a workload's certificate."""
    return {
        "serial": f"{leaf.serial_number:x}",
        "identity": str(caller.identity),
        "namespace": caller.identity.namespace,
        "service_account": caller.identity.service_account,
        "pod": caller.pod,
        "pod_uid": caller.pod_uid,
        "by": caller.method.value,
        "agent": caller.agent,
        **_of_any(leaf, authority),
    }


def of_server(leaf: x509.Certificate, authority: Authority, names: tuple[str, ...]) -> Facts:
    """Return what is kept of a certificate that the CA makes for a server of its own."""
    return {
        "serial": f"{leaf.serial_number:x}",
        "names": ",".join(names)[:_MAX_NAMES],
        "by": "ca",
        **_of_any(leaf, authority),
    }


def of_request(
    leaf: x509.Certificate, authority: Authority, names: tuple[str, ...], requestor: str
) -> Facts:
    """Return what is kept of a CertificateSigningRequest's certificate."""
    return {
        "serial": f"{leaf.serial_number:x}",
        "names": ",".join(names)[:_MAX_NAMES],
        "by": "csr",
        "requestor": requestor[:_MAX_NAMES],
        **_of_any(leaf, authority),
    }


def _of_any(leaf: x509.Certificate, authority: Authority) -> Facts:
    return {
        "key_sha256": hashlib.sha256(key_der(leaf.public_key())).hexdigest(),
        "not_after": f"{leaf.not_valid_after_utc:%FT%TZ}",
        "ca_serial": f"{authority.chain.ca.serial_number:x}",
    }
