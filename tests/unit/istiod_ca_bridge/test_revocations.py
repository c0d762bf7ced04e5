import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.conditions import Conditions
from istiod_ca_bridge.crl import (
    LIFETIME,
    MAX_REVOCATIONS,
    Revocation,
    make_crl,
    number_of,
    read_revocations,
    reason_of,
    serial_of,
    why_anew,
    write_revocations,
)
from istiod_ca_bridge.crl_bundle import MAX_FURTHER_BYTES, lists_in, path_of, pem_of_lists
from istiod_ca_bridge.directory_secret import DirectorySecret
from istiod_ca_bridge.errors import (
    CorruptSecretError,
    RefusedRequestError,
    SecretExistsError,
    WrongProductError,
)
from istiod_ca_bridge.issue import Issuer
from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.policy import CLOCK_SKEW
from istiod_ca_bridge.revocations import (
    CRL_KEY,
    ISSUERS_KEY,
    RECORD_KEY,
    Chain,
    RevocationKeeper,
    revoke,
)
from istiod_ca_bridge.signer import KeyAlgorithm
from istiod_ca_bridge.store import MAX_SECRET_BYTES, StoredSecret
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
_OF_SOME = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=True,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)
OLD = Revocation(0x77, AT - timedelta(days=1), x509.ReasonFlags.unspecified)


def serving(signer: LocalSigner, root: pki.Issued = ROOT) -> Authority:
    chain = pem(ca_certificate(signer.public_key, root), root.certificate)
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
    assert (crl.last_update_utc, crl.next_update_utc) == (AT - CLOCK_SKEW, AT + LIFETIME)
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

    def put(self, **values: bytes) -> None:
        """Write by hand."""
        held = dict(self.stored.values) if self.stored else {}
        version = str(int(self.stored.version if self.stored else 0) + 1)
        self.stored = StoredSecret(held | values, version)

    async def read(self) -> StoredSecret | None:
        return self.stored

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        if self.first is not None:
            self.stored, self.first = self.first, None
        if (self.stored.version if self.stored else None) != version:
            raise SecretExistsError("another was first")
        held = dict(self.stored.values) if self.stored else {}
        self.stored = StoredSecret(held | dict(values), str(int(version or 0) + 1))


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
    many = [Revocation(n, AT, OLD.reason) for n in range(1, MAX_REVOCATIONS + 2)]

    with pytest.raises(RefusedRequestError):
        await revoke(Secret(), many)


ROOT_LIST = pki.crl(ROOT, valid_from=AT - timedelta(days=900), valid_until=AT + timedelta(days=900))


def lists_of(text: str) -> tuple[x509.CertificateRevocationList, ...]:
    return lists_in(text.encode())


def issuers_lists(*lists: x509.CertificateRevocationList) -> dict[str, bytes]:
    return {ISSUERS_KEY: pem_of_lists(lists).encode()}


@dataclass
class Others:
    """The keys of a rotation, as the test wants them."""

    keys: tuple[Authority, ...] = ()
    gone: tuple[Authority, ...] = ()
    """Shown, and their keys cannot be used any more."""

    shown_ones: bool = True

    @property
    def listed(self) -> list[Chain]:
        return [path_of(it.chain) for it in (*self.keys, *self.gone)]

    @property
    def shown(self) -> list[Chain]:
        return self.listed if self.shown_ones else []

    async def issuers(self) -> tuple[Issuer, ...]:
        return tuple(it.issuer for it in self.keys)


class Replica:
    """A bridge's keeper on a shared secret, at a time of its own."""

    def __init__(self, secret: Secret, ca: Authority | None = CA) -> None:
        self.published: list[tuple[x509.CertificateRevocationList, ...]] = []
        self.now = NOW
        self.ca = ca
        self.secret = secret
        self.others = Others()
        self.conditions = Conditions(self._clock)
        self.ends: list[datetime | None] = []
        log, self.lines = recorded_log()
        self.keeper = RevocationKeeper(
            secret,
            lambda: self.ca,
            self._publish,
            self._clock,
            log,
            others=self.others,
            conditions=self.conditions,
            further_end=self.ends.append,
            poll_seconds=0.001,
        )

    async def _publish(self, text: str) -> None:
        self.published.append(lists_of(text))

    def _clock(self) -> datetime:
        return self.now

    def issued_for(self, ca: Authority) -> x509.CertificateRevocationList | None:
        """Return the CA's list among those that were published last."""
        key = ca.signer.public_key
        return next((it for it in self.published[-1] if it.is_signature_valid(key)), None)

    def tells(self, event: str) -> int:
        return sum(event in line for line in self.lines)

    async def look(self) -> None:
        task = asyncio.create_task(self.keeper.run())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])


def listed_secret(*lists: x509.CertificateRevocationList) -> Secret:
    """Return a secret in which an operator has put the lists of the CAs above."""
    secret = Secret()
    secret.put(**issuers_lists(*lists or (ROOT_LIST,)))
    return secret


async def test_there_is_a_list_without_any_entry_and_all_replicas_publish_the_same() -> None:
    secret = listed_secret()
    one, two = Replica(secret), Replica(secret)
    await one.look()
    await two.look()

    assert one.published == two.published
    assert [len(list(crl)) for crl in one.published[0]] == [0, 0]
    assert one.published[0][1] == ROOT_LIST
    assert len(one.published) == 1


async def test_a_revocation_is_heeded_and_numbers_only_grow_whatever_the_clock_says() -> None:
    secret = listed_secret()
    replica = Replica(secret)
    await replica.look()
    replica.now -= timedelta(days=400)
    await revoke(secret, [STOLEN])
    await replica.look()
    replica.now += timedelta(days=404)
    await replica.look()

    assert STOLEN.serial in replica.keeper
    assert OLD.serial not in replica.keeper
    numbers = [number_of(own) for own, _ in replica.published]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3
    assert [len(list(own)) for own, _ in replica.published] == [0, 1, 1]


async def test_nothing_is_published_that_would_have_proxies_refuse_everybody() -> None:
    secret = Secret()
    replica = Replica(secret)
    await replica.look()
    assert replica.published == []
    assert replica.tells("crl.not_published") == 1
    assert replica.keeper.unlisted(pem(*path_of(CA.chain))) == '"O=cluster.local", "CN=Mesh Root"'

    far = pki.crl(ROOT, valid_from=AT + timedelta(days=1), valid_until=AT + timedelta(days=2))
    over = pki.crl(ROOT, valid_from=AT - timedelta(days=2), valid_until=AT)
    partial = pki.crl(ROOT, extensions=[(_OF_SOME, True)])
    for useless in (far, over, partial, pki.crl(pki.root()), pki.crl(pki.root("Other"))):
        secret.put(**issuers_lists(useless))
        await replica.look()
    for garbage in (b"x", pki.crl_pem(ROOT) + ROOT.pem, pki.crl_pem(ROOT) * 17, b"-" * 300_000):
        secret.put(**{ISSUERS_KEY: garbage})
        await replica.look()
    assert replica.published == []
    assert replica.tells("crl.issuer_lists_unusable") >= 1
    assert [it.reason for it in replica.conditions.take()] == ["CrlNotPublished"]

    secret.put(**issuers_lists(over, ROOT_LIST))
    await replica.look()
    assert len(replica.published) == 1
    assert ROOT_LIST in replica.published[0]
    assert over not in replica.published[0]
    assert replica.keeper.unlisted(pem(*path_of(CA.chain))) == ""
    assert replica.keeper.unlisted(b"spoilt") == "a chain that cannot be read"


async def test_what_was_published_stays_when_the_root_s_list_ends_and_that_is_told_before() -> None:
    secret = listed_secret()
    replica = Replica(secret)
    await replica.look()
    assert replica.tells("crl.issuer_list_ends") == 0

    replica.now += timedelta(days=880)
    await replica.look()
    assert replica.tells("crl.issuer_list_ends") == 1
    published = len(replica.published)
    replica.now += timedelta(days=30)
    await replica.look()
    assert len(replica.published) == published
    assert [it.reason for it in replica.conditions.take()] == ["IssuerCrlEnds", "CrlNotPublished"]


async def test_the_end_of_the_first_list_of_each_issuer_is_measured_also_once_it_is_over() -> None:
    secret = listed_secret()
    replica = Replica(secret)
    ends = replica.ends
    await replica.look()
    until = AT + timedelta(days=400)
    assert ends[-1] == ROOT_LIST.next_update_utc

    older = pki.crl(ROOT, valid_from=AT - timedelta(days=9), valid_until=AT - timedelta(days=1))
    newer = pki.crl(ROOT, valid_from=AT - timedelta(days=1), valid_until=until)
    foreign = pki.crl(pki.root("Other"), valid_until=AT + timedelta(days=1))
    secret.put(**issuers_lists(older, newer, foreign))
    await replica.look()
    assert ends[-1] == until

    secret.put(**issuers_lists(older))
    await replica.look()
    assert ends[-1] == older.next_update_utc
    for nothing in (issuers_lists(foreign), {ISSUERS_KEY: b"spoilt"}, {ISSUERS_KEY: b""}):
        secret.put(**nothing)
        await replica.look()
        assert ends[-1] is None


def test_the_end_that_was_measured_is_a_figure_and_none_is_zero() -> None:
    metrics = Metrics()
    for at, text in ((AT, f"{AT.timestamp():.0f}"), (None, "0.0")):
        metrics.issuer_crl_ends(at)
        [line] = [
            it
            for it in metrics.exposition().decode().splitlines()
            if it.startswith("istiod_ca_bridge_issuer_crl_end_timestamp_seconds ")
        ]
        assert float(line.split()[1]) == float(text)


async def test_while_the_key_is_rotated_both_keys_lists_are_there_and_grow() -> None:
    next_root = pki.root("Next Root")
    following = serving(local_signer(), next_root)
    secret = listed_secret(ROOT_LIST, pki.crl(next_root))
    replica, late = Replica(secret), Replica(secret)
    replica.others.keys = late.others.keys = (CA, following)
    for _ in range(2):
        await replica.look()
        await late.look()
        late.ca = following  # it takes up the next key before the other does
    assert late.published == replica.published
    assert len(replica.published) == 1
    assert len(replica.published[0]) == 4
    assert replica.keeper.unlisted(pem(*path_of(following.chain))) == ""

    await revoke(secret, [STOLEN])
    await replica.look()
    for ca in (CA, following):
        assert [it.serial_number for it in replica.issued_for(ca) or ()] == [STOLEN.serial]

    replica.others.keys, replica.ca = (), following
    await replica.look()
    assert len(replica.published[-1]) == 2
    assert replica.issued_for(CA) is None


async def test_a_chain_that_is_not_shown_yet_holds_no_list_back() -> None:
    following = serving(local_signer(), pki.root("Next Root"))
    replica = Replica(listed_secret())
    replica.others.keys, replica.others.shown_ones = (following,), False
    await replica.look()
    assert len(replica.published) == 1
    assert replica.keeper.unlisted(pem(*path_of(following.chain))) == '"CN=Next Root"'

    replica.others.shown_ones = True
    await revoke(replica.secret, [STOLEN])
    await replica.look()
    assert len(replica.published) == 1
    assert replica.tells("crl.not_published") == 1


async def test_the_last_list_of_a_key_that_is_gone_is_kept_while_its_leaves_are_shown() -> None:
    following = serving(local_signer())
    replica = Replica(listed_secret())
    await replica.look()

    replica.ca, replica.others.gone = following, (CA,)
    await replica.look()
    assert replica.issued_for(CA) is not None
    assert replica.issued_for(following) is not None

    replica.now += LIFETIME
    await replica.look()
    assert replica.tells("crl.not_published") == 1


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
    assert replica.tells("crl.delayed") == 1


async def test_the_most_that_may_be_revoked_fits_into_the_secret_with_two_lists() -> None:
    longest = x509.ReasonFlags.cessation_of_operation
    most = [Revocation((1 << 127) + n, AT, longest) for n in range(MAX_REVOCATIONS)]
    crl = await make_crl(CA.issuer, most, number=1, now=NOW)

    lists = pem_of_lists([crl] * 2)
    assert len(write_revocations(most)) + len(lists) + MAX_FURTHER_BYTES <= MAX_SECRET_BYTES


@pytest.mark.parametrize("beside", ["é\n".encode(), b"\xff", b"text\n"])
async def test_what_somebody_wrote_beside_a_sound_list_is_not_published(beside: bytes) -> None:
    secret = listed_secret()
    replica = Replica(secret)
    await replica.look()
    assert secret.stored is not None
    sound = secret.stored.values[CRL_KEY]
    secret.put(**{CRL_KEY: sound + beside})

    second = Replica(secret)
    await second.look()

    assert second.published == replica.published
    assert secret.stored.values[CRL_KEY] == sound


async def test_a_number_that_no_list_can_follow_is_not_followed() -> None:
    builder = x509.CertificateRevocationListBuilder(
        ROOT.certificate.subject, NOW, NOW + LIFETIME
    ).add_extension(x509.CRLNumber((1 << 159) - 1), critical=False)
    endless = builder.sign(ROOT.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = listed_secret()
    secret.put(**{CRL_KEY: endless, RECORD_KEY: write_revocations([OLD])})
    replica = Replica(secret)
    await replica.look()
    assert number_of(replica.published[0][0]) == int(NOW.timestamp())
