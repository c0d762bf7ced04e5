"""What verify looks at beyond the cluster's objects: what is served, and the HSM itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from istio_hsm_installer import ceremony, custody, tls_peer
from istio_hsm_installer.custody import KeyPlace
from istio_hsm_installer.errors import InstallerError
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.installation import TLS_SECRET, Installation
from istio_hsm_installer.options import Mode
from istio_hsm_installer.programs import Plugin
from istio_hsm_installer.verification import Point


@dataclass(frozen=True, slots=True)
class Where:
    """What to connect to."""

    address: str | None
    """Of the CA or istiod; its Service's when left out."""

    server_name: str | None
    workloads: Sequence[str]


def points(
    installation: Installation, plugin: Plugin, where: Where, now: datetime
) -> Sequence[Point]:
    """Return a point for each thing looked at; what cannot be reached is a finding, too."""
    chain = installation.chain()
    found = [_vault_ca(installation)]
    if not chain:
        return found
    found += [custody.bundle(installation.webhook_bundles(), chain), *_key(installation, plugin)]
    if installation.options.mode is Mode.CA_SERVER:
        values = installation.secret(TLS_SECRET)
        name = f"{installation.options.istiod_name}.{installation.namespace}.svc"
        found.append(custody.istiod_tls(values, chain, name, now))
    name = where.server_name or installation.server_name
    try:
        address = where.address or installation.service_address()
    except InstallerError as error:
        found.append(_unreached("served", error))
    else:
        found += _served(address, name, (), chain, now)
    for workload in where.workloads:
        found += _served(workload, None, ("istio",), chain, now)
    return found


def _served(
    address: str,
    name: str | None,
    alpn: Sequence[str],
    chain: Sequence[x509.Certificate],
    now: datetime,
) -> Sequence[Point]:
    root = ceremony.to_pem(chain[-1:])
    try:
        peer = tls_peer.look(address, name=name, root_pem=root, alpn=alpn)
    except InstallerError as error:
        return [_unreached(f"served at {address}", error)]
    return custody.served(address, peer.leaf, peer.distrust, chain, now)


def _key(installation: Installation, plugin: Plugin) -> Sequence[Point]:
    key = installation.key()
    try:
        if key.place is KeyPlace.RESIDENT:
            return [custody.resident(key, plugin.signing_keys(), installation.chain())]
        if key.place is KeyPlace.SEALED:
            wanted = installation.options.hsm.kek_id
            return [custody.sealed(key, wanted, has_kek=plugin.has_kek(wanted))]
    except InstallerError as error:
        return [_unreached("key in the HSM", error)]
    hint = "restore istio-ca-encrypted-key from a backup"
    return [Point("CA key", is_fine=False, said="no Secret says where it is", hint=hint)]


def _vault_ca(installation: Installation) -> Point:
    try:
        wanted = read_pem(installation.options.vault.ca_file).decode("ascii", errors="replace")
    except InstallerError as error:
        return _unreached("ConfigMap vault-tls-cert", error)
    published = installation.config_map("vault-tls-cert")
    return custody.vault_ca(None if published is None else published.get("cert", ""), wanted)


def _unreached(name: str, error: InstallerError) -> Point:
    return Point(name, is_fine=False, said=str(error), hint=error.hint)
