import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.crl import (
    LIFETIME,
    Revocation,
    make_crl,
    number_of,
    read_revocations,
    reason_of,
    serial_of,
    why_anew,
    write_revocations,
)
from istiod_ca_bridge.directory_secret import DirectorySecret
from istiod_ca_bridge.errors import (
    CorruptSecretError,
    RefusedRequestError,
    SecretExistsError,
    WrongProductError,
)
from istiod_ca_bridge.revocations import CRL_KEY, RECORD_KEY, RevocationKeeper, revoke
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import StoredSecret
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    LocalSigner,
    ca_certificate,
    local_signer,
    pem,
    recorded_log,
)

ROOT = pki.root()
AT = NOW.replace(microsecond=0)
STOLEN = Revocation(0x5FA3, AT, x509.ReasonFlags.key_compromise)
OLD = Revocation(0x77, AT - timedelta(days=1), x509.ReasonFlags.unspecified)


def serving(signer: LocalSigner) -> Authority:
    chain = pem(ca_certificate(signer.public_key, ROOT), ROOT.certificate)
    return authority(checked_chain(chain, signer.public_key, NOW), signer)


CA = serving(local_signer())


@pytest.mark.parametrize("entries", [[], [STOLEN, OLD]])
@pytest.mark.parametrize(
    "algorithm", [KeyAlgorithm.RSA_2048, KeyAlgorithm.ECDSA_P256, KeyAlgorithm.ECDSA_P384]
)
async def test_a_list_says_what_is_revoked_and_the_ca_signed_it(
    entries: list[Revocation], algorithm: KeyAlgorithm
) -> None:
    signer = local_signer(algorithm)
    ca = serving(signer)

    crl = await make_crl(ca.issuer, entries, number=7, now=NOW)

    assert crl.is_signature_valid(signer.public_key)
    assert (crl.issuer, number_of(crl)) == (ca.chain.ca.subject, 7)
    assert (crl.last_update_utc, crl.next_update_utc) == (AT, AT + LIFETIME)
    assert {it.serial_number for it in crl} == {it.serial for it in entries}
    if entries:
        found = crl.get_revoked_certificate_by_serial_number(STOLEN.serial)
        assert found is not None
        reason = found.extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert (reason, found.revocation_date_utc) == (STOLEN.reason, AT)


class Confused(LocalSigner):
    """Signs something else."""

    async def sign(self, message: bytes) -> bytes:
        return await super().sign(message + b"x")


async def test_a_list_that_the_key_did_not_sign_does_not_leave() -> None:
    with pytest.raises(WrongProductError):
        await make_crl(serving(Confused(local_signer().key)).issuer, [], number=1, now=NOW)


async def test_another_list_is_needed_when_anything_changed() -> None:
    crl = await make_crl(CA.issuer, [OLD], number=1, now=NOW)

    assert why_anew(crl, CA.issuer, [OLD], NOW) == ""
    assert why_anew(None, CA.issuer, [OLD], NOW)
    assert why_anew(crl, CA.issuer, [OLD, STOLEN], NOW)
    assert why_anew(crl, CA.issuer, [], NOW)
    assert why_anew(crl, serving(local_signer()).issuer, [OLD], NOW)
    assert why_anew(crl, CA.issuer, [OLD], NOW + LIFETIME / 2)
    assert why_anew(crl, CA.issuer, [OLD], NOW - timedelta(hours=1))


def test_a_record_is_read_as_it_was_written_and_a_broken_one_is_refused() -> None:
    record = write_revocations([STOLEN, OLD])

    assert read_revocations(record) == {STOLEN.serial: STOLEN, OLD.serial: OLD}
    assert read_revocations(b"") == {}
    for broken in (b"{", b"[1]", record.replace(b"keyCompromise", b"boredom"), b'[{"serial":"0"}]'):
        with pytest.raises(CorruptSecretError):
            read_revocations(broken)


def test_serials_are_read_as_tools_write_them() -> None:
    assert serial_of("5F:A3") == serial_of("5fa3") == 0x5FA3
    for wrong in ("", "0", "xyz", "-1", "1" * 41):
        with pytest.raises(ValueError, match="no serial"):
            serial_of(wrong)
    with pytest.raises(ValueError, match="no reason"):
        reason_of("removeFromCRL")


class Secret:
    """A secret in memory, written over by version, and perhaps by another first."""

    def __init__(self) -> None:
        self.stored: StoredSecret | None = None
        self.first: StoredSecret | None = None

    async def read(self) -> StoredSecret | None:
        return self.stored

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        if self.first is not None:
            self.stored, self.first = self.first, None
        if (self.stored.version if self.stored else None) != version:
            raise SecretExistsError("another was first")
        self.stored = StoredSecret(dict(values), str(int(version or 0) + 1))


async def test_revoking_is_idempotent_and_loses_nothing_to_another_who_writes_at_once(
    tmp_path: Path,
) -> None:
    secret = Secret()
    secret.first = StoredSecret({RECORD_KEY: write_revocations([OLD])}, "9")

    assert await revoke(secret, [STOLEN]) == 1
    assert await revoke(secret, [STOLEN, OLD]) == 0
    assert secret.stored is not None
    assert read_revocations(secret.stored.values[RECORD_KEY]).keys() == {0x5FA3, 0x77}

    folder = DirectorySecret(tmp_path, "istio-ca-revocations")
    assert await revoke(folder, [STOLEN]) == 1
    both = [revoke(folder, [Revocation(n, AT, OLD.reason)]) for n in (1, 2, 3)]
    assert await asyncio.gather(*both) == [1, 1, 1]
    stored = await folder.read()
    assert stored is not None
    assert read_revocations(stored.values[RECORD_KEY]).keys() == {0x5FA3, 1, 2, 3}
    with pytest.raises(SecretExistsError):
        await folder.write(stored.values, "another version")


async def test_more_than_a_list_can_hold_is_refused() -> None:
    many = [Revocation(n, AT, OLD.reason) for n in range(1, 5002)]

    with pytest.raises(RefusedRequestError):
        await revoke(Secret(), many)


class Replica:
    """A bridge's keeper on a shared secret, at a time of its own."""

    def __init__(self, secret: Secret, ca: Authority | None = CA) -> None:
        self.published: list[x509.CertificateRevocationList] = []
        self.now = NOW
        self.ca = ca
        log, self.lines = recorded_log()
        self.keeper = RevocationKeeper(
            secret, lambda: self.ca, self._publish, self._clock, log, poll_seconds=0.001
        )

    async def _publish(self, text: str) -> None:
        self.published.append(x509.load_pem_x509_crl(text.encode()))

    def _clock(self) -> datetime:
        return self.now

    async def look(self) -> None:
        task = asyncio.create_task(self.keeper.run())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])


async def test_there_is_a_list_without_any_entry_and_all_replicas_publish_the_same() -> None:
    secret = Secret()
    one, two = Replica(secret), Replica(secret)
    await one.look()
    await two.look()

    assert one.published == two.published
    assert len(list(one.published[0])) == 0
    assert len(one.published) == 1


async def test_a_revocation_is_heeded_and_numbers_only_grow_whatever_the_clock_says() -> None:
    secret = Secret()
    replica = Replica(secret)
    await replica.look()
    replica.now -= timedelta(days=400)
    await revoke(secret, [STOLEN])
    await replica.look()
    replica.now += timedelta(days=404)
    await replica.look()

    assert STOLEN.serial in replica.keeper
    assert OLD.serial not in replica.keeper
    numbers = [number_of(crl) for crl in replica.published]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3
    assert [len(list(crl)) for crl in replica.published] == [0, 1, 1]


async def test_revocations_are_heeded_before_there_is_a_ca_and_a_broken_record_is_told() -> None:
    secret = Secret()
    await revoke(secret, [STOLEN])
    replica = Replica(secret, ca=None)
    await replica.look()
    assert STOLEN.serial in replica.keeper
    assert replica.published == []

    secret.stored = StoredSecret({RECORD_KEY: b"{", CRL_KEY: b""}, "5")
    await replica.look()
    assert STOLEN.serial in replica.keeper
    assert sum("crl.delayed" in line for line in replica.lines) == 1
