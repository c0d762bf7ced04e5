"""`revoke`: put certificates on the record, by serial or, with the issuance log, by identity."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from istiod_ca_bridge.config import Config
from istiod_ca_bridge.crl import Revocation, reason_of, serial_of
from istiod_ca_bridge.errors import ConfigError
from istiod_ca_bridge.identity import parse_spiffe_id
from istiod_ca_bridge.issuance_verify import certificates
from istiod_ca_bridge.revocation_secret import revocation_secret
from istiod_ca_bridge.revocations import revoke

_SPIFFE = "spiffe://"


def run_revoke(config: Config, targets: Sequence[str], reason: str, logs: Sequence[Path]) -> str:
    """Revoke, and return what to tell the operator; raises a BridgeError when it is not done."""
    if not config.crl:
        raise ConfigError(
            "nobody would heed a revocation: CA_CRL is not true",
            hint="set CA_CRL=true for `serve` and for this command",
        )
    try:
        why = reason_of(reason)
    except ValueError as error:
        raise ConfigError(f"--reason: {error}", hint="see `revoke --help`") from None
    now = datetime.now(UTC).replace(microsecond=0)
    serials = {serial for target in targets for serial in _serials(target, logs, now)}
    secret = revocation_secret(config)
    added = asyncio.run(revoke(secret, [Revocation(serial, now, why) for serial in serials]))
    return f"revoked {added} certificates; {len(serials) - added} were revoked already\n"


def _serials(target: str, logs: Sequence[Path], now: datetime) -> set[int]:
    """Return the serials that a target names: itself, or all that an identity still has."""
    if not target.startswith(_SPIFFE):
        try:
            return {serial_of(target)}
        except ValueError as error:
            raise ConfigError(f"{target!r}: {error}") from None
    identity = str(parse_spiffe_id(target))
    if not logs:
        raise ConfigError(
            "which certificates an identity has is in the issuance log alone",
            hint="name its files by --log, those of every replica",
        )
    return {
        serial_of(serial)
        for serial, holder, not_after in certificates(logs)
        if holder == identity and not_after > f"{now:%FT%TZ}"
    }
