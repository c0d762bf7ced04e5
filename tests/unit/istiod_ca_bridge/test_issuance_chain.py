from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiod_ca_bridge.errors import TamperedLogError
from istiod_ca_bridge.issuance_chain import (
    ORIGIN,
    Facts,
    Kind,
    Link,
    Verifier,
    checkpoint_facts,
    checkpoint_message,
    next_line,
)
from istiod_ca_bridge.signer import key_der
from tests.unit.istiod_ca_bridge.doubles import NOW, LocalSigner, local_signer

CA = local_signer()


async def log_of(certificates: int, signer: LocalSigner = CA) -> list[bytes]:
    """A log that was opened, with a checkpoint after its certificates, and one more after it."""
    at = ORIGIN
    lines: list[bytes] = []

    def add(kind: Kind, facts: Facts) -> Link:
        line, place = next_line(at, kind, NOW + timedelta(seconds=len(lines)), facts)
        lines.append(line)
        return place

    at = add(Kind.OPENED, {"pid": 1})
    for number in range(certificates):
        at = add(Kind.ISSUED, {"serial": f"{number:x}", "identity": "spiffe://t/ns/a/sa/b"})
    signature = await signer.sign(checkpoint_message(at))
    at = add(Kind.CHECKPOINT, checkpoint_facts(at, signer.public_key, signature))
    add(Kind.ISSUED, {"serial": "ff", "identity": "spiffe://t/ns/a/sa/b"})
    return lines


def verifier(signer: LocalSigner = CA) -> Verifier:
    return Verifier([key_der(signer.public_key)])


def fault(lines: list[bytes], tested: Verifier | None = None) -> str:
    with pytest.raises(TamperedLogError) as caught:
        (tested or verifier()).follow("log", lines)
    return str(caught.value)


async def test_an_intact_log_is_told_with_what_it_holds_and_how_far_it_is_signed() -> None:
    tested = verifier()

    tested.follow("log", await log_of(3))

    found = tested.findings
    assert (found.first, found.last, found.issued) == (1, 6, 4)
    assert (found.checkpoints, found.sealed) == (1, 4)


async def test_each_kind_of_change_is_found_and_the_first_changed_line_is_named() -> None:
    lines = await log_of(3)

    changed = [*lines[:2], lines[2].replace(b'"serial":"1"', b'"serial":"2"'), *lines[3:]]
    assert "log:4: line 3 or this one was changed" in fault(changed)
    assert "log:3: number 4 follows number 2" in fault([*lines[:2], *lines[3:]])
    assert "log:3" in fault([*lines[:2], lines[3], lines[2], *lines[4:]])
    assert "log:1: the file does not begin here" in fault(lines[1:])
    assert "log:6: it is no whole line" in fault([*lines[:5], lines[5][:-1]])
    assert "log:2: it is no whole line" in fault([lines[0], b" " + lines[1], *lines[2:]])


async def test_a_log_written_anew_without_the_ca_key_is_found() -> None:
    forged = await log_of(2, local_signer())

    assert "log:4: the checkpoint is signed by a key of none" in fault(forged)
    unlinked = Verifier([])
    unlinked.follow("log", forged)
    assert unlinked.findings.checkpoints == 1


async def test_a_checkpoint_that_does_not_fit_the_lines_before_it_is_found() -> None:
    opened, at = next_line(ORIGIN, Kind.OPENED, NOW, {"pid": 1})
    line, at = next_line(at, Kind.ISSUED, NOW, {"serial": "9"})

    async def sealed(signed: Link, said: Link) -> list[bytes]:
        signature = await CA.sign(checkpoint_message(signed))
        facts = checkpoint_facts(said, CA.public_key, signature)
        return [opened, line, next_line(at, Kind.CHECKPOINT, NOW, facts)[0]]

    verifier().follow("log", await sealed(at, at))
    other = Link(2, "0" * 64)
    assert "log:3: the checkpoint is of another line 2" in fault(await sealed(other, other))
    assert "log:3: the checkpoint's signature is wrong" in fault(await sealed(other, at))


@given(at=st.integers(0, 4000), byte=st.integers(0, 255))
async def test_no_byte_of_a_signed_log_can_be_changed_unseen(at: int, byte: int) -> None:
    if not _SIGNED:
        _SIGNED.extend(await log_of(3))
    whole = bytearray(b"".join(_SIGNED))
    end = whole.rindex(b'{"seq":6')  # what no checkpoint or later line covers yet
    at %= end
    if whole[at] == byte:
        return
    whole[at] = byte

    fault(bytes(whole).splitlines(keepends=True))


_SIGNED: list[bytes] = []
