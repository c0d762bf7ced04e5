import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from istiod_ca_bridge.authority import Authority, authority
from istiod_ca_bridge.chain import checked_chain
from istiod_ca_bridge.errors import SecretExistsError, StoreUnavailableError
from istiod_ca_bridge.istiod_tls import IstiodTls, istiod_names, why_anew
from istiod_ca_bridge.server_certificate import LIFETIME
from istiod_ca_bridge.store import StoredSecret
from tests.integration.istiod_ca_bridge.harness import strict_root
from tests.support import pki
from tests.unit.istiod_ca_bridge.doubles import (
    NOW,
    LocalSigner,
    ca_certificate,
    certificate_of_unknown_version,
    local_signer,
    pem,
    recorded_log,
)

NAMES = ("istiod.istio-system.svc", "istiod-1-32.istio-system.svc")
ROOT = pki.root(valid_until=NOW + timedelta(days=60))
SIGNER = local_signer()


def authority_of(
    signer: LocalSigner = SIGNER, *, not_after: datetime = NOW + timedelta(days=30)
) -> Authority:
    ca = ca_certificate(signer.public_key, ROOT, not_after=not_after)
    return authority(checked_chain(pem(ca, ROOT.certificate), signer.public_key, NOW), signer)


AUTHORITY = authority_of()


@dataclass(slots=True)
class Secret:
    """A Secret in memory, written by its version."""

    stored: StoredSecret | None = None
    writes: list[Mapping[str, bytes]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    async def read(self) -> StoredSecret | None:
        return self.stored

    async def write(self, values: Mapping[str, bytes], version: str | None) -> None:
        if self.errors:
            raise self.errors.pop(0)
        if version != (self.stored.version if self.stored else None):
            raise SecretExistsError("istiod-tls")
        self.writes.append(values)
        self.put(values)

    def put(self, values: Mapping[str, bytes]) -> None:
        self.stored = StoredSecret(values, str(len(self.writes)) + str(id(values)))


@dataclass(slots=True)
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@asynccontextmanager
async def running(
    secret: Secret, clock: Clock, serving: list[Authority | None]
) -> AsyncIterator[list[str]]:
    log, lines = recorded_log()
    kept = IstiodTls(secret, NAMES, lambda: serving[-1], clock, log, poll_seconds=0.005)
    task = asyncio.create_task(kept.run())
    try:
        yield lines
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the double has no event for it
            await asyncio.sleep(0.005)


async def issued() -> dict[str, bytes]:
    secret = Secret()
    async with running(secret, Clock(), [AUTHORITY]):
        await until(lambda: bool(secret.writes))
    return dict(secret.writes[0])


async def test_what_is_issued_has_the_names_a_key_and_the_roots_and_will_do() -> None:
    values = await issued()

    assert sorted(values) == ["ca.crt", "tls.crt", "tls.key"]
    leaf, ca = x509.load_pem_x509_certificates(values["tls.crt"])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert tuple(names.get_values_for_type(x509.DNSName)) == NAMES
    assert ca == AUTHORITY.chain.ca
    assert values["ca.crt"] == AUTHORITY.roots_pem.encode()
    assert why_anew(values, AUTHORITY, NAMES, NOW) == ""


@pytest.mark.parametrize("key", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", "swapped"])
async def test_a_tampered_part_is_a_reason_to_issue_anew(
    key: str, content: bytes | str | None
) -> None:
    values, other = await issued(), await issued()
    if content is None:
        del values[key]
    elif isinstance(content, str):
        values[key] = other[key] if key != "ca.crt" else strict_root().pem
    else:
        values[key] = content

    assert why_anew(values, AUTHORITY, NAMES, NOW)


async def test_a_certificate_of_an_unknown_version_is_a_reason_to_issue_anew() -> None:
    values = await issued()
    values["tls.crt"] = certificate_of_unknown_version(values["tls.crt"])

    assert why_anew(values, AUTHORITY, NAMES, NOW) == "it cannot be used"


async def test_other_names_another_ca_and_another_time_are_reasons_to_issue_anew() -> None:
    values = await issued()

    assert why_anew(None, AUTHORITY, NAMES, NOW) == "there is none"
    assert why_anew(values, AUTHORITY, NAMES[:1], NOW) == "it has other names"
    assert "not issued by" in why_anew(values, authority_of(local_signer()), NAMES, NOW)
    assert "valid" in why_anew(values, AUTHORITY, NAMES, NOW + LIFETIME)
    assert "valid" in why_anew(values, AUTHORITY, NAMES, NOW - timedelta(hours=1))


async def test_it_is_renewed_at_half_of_its_life_and_not_before() -> None:
    secret, clock = Secret(), Clock()
    async with running(secret, clock, [AUTHORITY]) as lines:
        await until(lambda: len(secret.writes) == 1)
        clock.now += LIFETIME / 2 - timedelta(minutes=2)
        await asyncio.sleep(0.03)
        assert len(secret.writes) == 1

        clock.now += timedelta(minutes=2)
        await until(lambda: len(secret.writes) == 2)

    assert "half of its life is over" in lines[-1]
    assert secret.writes[0]["tls.key"] != secret.writes[1]["tls.key"]
    assert not any("PRIVATE KEY" in line for line in lines)


async def test_one_that_ends_with_the_ca_is_not_issued_over_and_over() -> None:
    short = authority_of(not_after=NOW + timedelta(hours=2))
    secret, clock = Secret(), Clock()
    async with running(secret, clock, [short]):
        await until(lambda: len(secret.writes) == 1)
        clock.now += timedelta(hours=1, minutes=30)
        await asyncio.sleep(0.03)

        assert len(secret.writes) == 1


async def test_nothing_is_written_before_the_ca_serves_and_a_new_ca_issues_anew() -> None:
    secret = Secret()
    serving: list[Authority | None] = [None]
    async with running(secret, Clock(), serving):
        await asyncio.sleep(0.03)
        assert secret.writes == []

        serving.append(AUTHORITY)
        await until(lambda: len(secret.writes) == 1)
        serving.append(authority_of(local_signer()))
        await until(lambda: len(secret.writes) == 2)


async def test_another_replica_s_good_certificate_is_kept() -> None:
    secret, theirs = Secret(), await issued()
    secret.errors.append(SecretExistsError("istiod-tls"))
    async with running(secret, Clock(), [AUTHORITY]) as lines:
        await until(lambda: not secret.errors)
        secret.put(theirs)
        await asyncio.sleep(0.03)

    assert secret.writes == []
    assert lines == []


async def test_a_store_that_is_away_is_told_once_and_tried_again() -> None:
    secret = Secret(errors=[StoreUnavailableError("away")] * 3)
    async with running(secret, Clock(), [AUTHORITY]) as lines:
        await until(lambda: len(secret.writes) == 1)

    assert [line.split()[0] for line in lines] == ["istiod_tls.delayed", "istiod_tls.issued"]


def test_every_revision_has_its_service_s_name_once() -> None:
    assert istiod_names("mesh", ()) == ("istiod.mesh.svc",)
    assert istiod_names("mesh", ("default", "a", "1-32", "a")) == (
        "istiod.mesh.svc",
        "istiod-a.mesh.svc",
        "istiod-1-32.mesh.svc",
    )
    for wrong in ("A", "a.b", "*", "-a", "a" * 51):
        with pytest.raises(ValueError, match="revision"):
            istiod_names("mesh", (wrong,))
