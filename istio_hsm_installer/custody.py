"""Whose certificate is served, and where its key is, judged point by point. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from istio_hsm_installer import certificates
from istio_hsm_installer.certificates import is_signed_by, key_sha256
from istio_hsm_installer.verification import Point


class KeyPlace(StrEnum):
    """Where the CA key signs, as the Secret istio-ca-encrypted-key says."""

    RESIDENT = "resident"
    SEALED = "sealed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class CaKey:
    """What the Secret istio-ca-encrypted-key says of the CA key; nothing secret."""

    place: KeyPlace
    kek_id: str = ""
    key_id: str = ""


def ca_key(values: Mapping[str, bytes]) -> CaKey:
    """Return what the Secret's values say."""
    kek_id = values.get("kek-id", b"").decode(errors="replace").strip()
    if "key-id" in values:
        key_id = values["key-id"].decode(errors="replace").strip()
        return CaKey(KeyPlace.RESIDENT, kek_id, key_id)
    if "encrypted-skey" in values:
        return CaKey(KeyPlace.SEALED, kek_id)
    return CaKey(KeyPlace.NONE)


def served(
    where: str,
    leaf: x509.Certificate,
    distrust: str,
    chain: Sequence[x509.Certificate],
    now: datetime,
) -> Sequence[Point]:
    """Return whether what is served was signed by the HSM's certificate, and is trusted."""
    name = f"served at {where}"
    issuer = chain[0].subject.rfc4514_string()
    if not is_signed_by(leaf, chain[0]):
        other = leaf.issuer.rfc4514_string()
        return [
            Point(
                name,
                is_fine=False,
                said=f"signed by {other}, which is not the HSM's {issuer}",
                hint="see what listens there; after a new chain it may not have been taken up yet",
            )
        ]
    is_valid = leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc
    until = f"until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
    if distrust or not is_valid:
        return [
            Point(
                name,
                is_fine=False,
                said=f"signed by {issuer}, {until}, and yet refused: {distrust or 'expired'}",
                hint="compare the name, the clocks and the intermediates that it serves",
            )
        ]
    return [Point(name, is_fine=True, said=f"signed by {issuer}, {until}")]


def resident(
    key: CaKey, listed: Sequence[Mapping[str, object]], chain: Sequence[x509.Certificate]
) -> Point:
    """Return whether the HSM has the chain's key, sensitive and never extractable."""
    name = "CA key in the HSM"
    found = next((entry for entry in listed if entry.get("key_id") == key.key_id), None)
    if found is None:
        return Point(
            name,
            is_fine=False,
            said=f"the plugin lists no key {key.key_id}",
            hint="name the socket of a plugin on the same token in hsm.socket",
        )
    if fault := found.get("fault"):
        return Point(
            name,
            is_fine=False,
            said=f"key {key.key_id} is not used: {fault}",
            hint="make a new CA key in the HSM, and hold the ceremony again",
        )
    if not chain or found.get("public_key_sha256") != key_sha256(chain[0].public_key()):
        return Point(
            name,
            is_fine=False,
            said=f"the chain is not for the key {key.key_id}",
            hint="hold the ceremony for the CSR in istio-ca-cert-csr",
        )
    return Point(
        name,
        is_fine=True,
        said=f"{found.get('algorithm')} key {key.key_id}, the chain's, cannot be extracted",
    )


def sealed(key: CaKey, wanted_kek_id: str, *, has_kek: bool) -> Point:
    """Return whether the KEK that seals the CA key is the configured one, and is in the HSM."""
    name = "KEK in the HSM"
    if key.kek_id != wanted_kek_id:
        said = f"the CA key is sealed by {key.kek_id}, not by {wanted_kek_id}"
        return Point(name, is_fine=False, said=said, hint="set hsm.kekId to the one that seals it")
    if not has_kek:
        hint = "never make it anew: restore the token that has it"
        return Point(name, is_fine=False, said=f"{key.kek_id} is not in the HSM", hint=hint)
    said = f"{key.kek_id} seals the CA key, which is in istiod's memory while it signs"
    return Point(name, is_fine=True, said=said)


def bundle(found: Sequence[bytes], chain: Sequence[x509.Certificate]) -> Point:
    """Return whether each CA bundle of the injection webhook has the root of the chain."""
    name = "webhook's CA"
    root = chain[-1].fingerprint(hashes.SHA256())
    wrong = [pem for pem in found if root not in certificates.fingerprints(pem)]
    if not found or wrong:
        return Point(
            name,
            is_fine=False,
            said="it is not the root of the chain" if found else "there is none",
            hint="restart istiod: it writes the bundle; until then pods are not injected",
        )
    return Point(name, is_fine=True, said="it is the root of the chain")


def vault_ca(published: str | None, wanted: str) -> Point:
    """Return whether istiod's pod trusts Vault by the configured CA."""
    is_same = published is not None and published.strip() == wanted.strip()
    said = "there is none" if published is None else "is not vault.caFile"
    return Point(
        "ConfigMap vault-tls-cert",
        is_fine=is_same,
        said="is vault.caFile" if is_same else said,
        hint="" if is_same else "istio-hsm apply --only kubernetes",
    )


def istiod_tls(
    values: Mapping[str, bytes], chain: Sequence[x509.Certificate], name: str, now: datetime
) -> Point:
    """Return whether istiod's serving certificate is the bridge's, valid, and for its name."""
    title = "Secret istiod-tls"
    hint = "see the bridge's log; without it istiod does not start"
    try:
        leaf = certificates.read(values.get("tls.crt", b""))[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names.get_values_for_type(x509.DNSName)
    except (IndexError, x509.ExtensionNotFound):
        return Point(title, is_fine=False, said="holds no certificate with names", hint=hint)
    faults = [
        text
        for is_wrong, text in (
            (name not in dns, f"is not for {name}"),
            (not is_signed_by(leaf, chain[0]), "is not signed by the HSM's certificate"),
            (not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc, "is expired"),
        )
        if is_wrong
    ]
    if faults:
        return Point(title, is_fine=False, said=", ".join(faults), hint=hint)
    return Point(title, is_fine=True, said=f"until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M}Z")
