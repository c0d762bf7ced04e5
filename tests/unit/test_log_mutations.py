"""Whatever is done to an audit log or an issuance log is found, or is after the last signature."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hsm_plugin.audit_chain import EMPTY, digest_of
from hsm_plugin.audit_command import as_json, as_text
from istiod_ca_bridge.errors import TamperedLogError
from tests.support import corpus, json_mutants
from tests.unit.hsm_plugin.test_audit_verification import sound, verified
from tests.unit.istiod_ca_bridge.test_issuance_chain import log_of, verifier
from tests.unit.parsers import bounded

_AUDIT = sound()
_ISSUED = asyncio.run(log_of(4))
_SMALL = [data for data in corpus.entries().values() if len(data) <= 2048]


@st.composite
def mutants(draw: st.DrawFn, lines: list[bytes], canonical: Callable[[Any], bytes]) -> list[bytes]:
    """Return the lines with a few deeds done to them; perhaps chained anew, as a forger would."""
    found = list(lines)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        match draw(st.integers(0, 7)):
            case 0 if found:
                del found[at]
            case 1 if found:
                found.insert(draw(st.integers(0, len(found))), found[at])
            case 2 if found:
                other = draw(st.integers(0, len(found) - 1))
                found[at], found[other] = found[other], found[at]
            case 3:
                del found[at + 1 :]
            case 4:
                found.insert(at, draw(st.sampled_from(_SMALL)) + b"\n")
            case 5 if found:
                cut = draw(st.integers(0, len(found[at])))
                found[at] = found[at][:cut] + draw(st.binary(max_size=2)) + found[at][cut + 1 :]
            case _ if found:
                found[at] = _edited(draw, found[at], canonical)
    if draw(st.booleans()):
        found = _chained_anew(found, canonical)
    return b"".join(found).splitlines(keepends=True)


def _edited(draw: st.DrawFn, line: bytes, canonical: Callable[[Any], bytes]) -> bytes:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(entry, dict | list):
        return line
    return canonical(draw(json_mutants.mutants(entry))) + b"\n"


def _chained_anew(lines: list[bytes], canonical: Callable[[Any], bytes]) -> list[bytes]:
    before, found = EMPTY.digest, []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            renewed = entry | {"seq": number, "prev": before}
            line = canonical(renewed) + b"\n"  # noqa: PLW2901 - as a forger would write it
        before = digest_of(line.removesuffix(b"\n"))
        found.append(line)
    return found


def _compact(entry: Any) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode()


@given(mutants(_AUDIT.lines, _compact))
def test_what_is_done_to_an_audit_log_is_found_or_was_not_signed_yet(lines: list[bytes]) -> None:
    report = verified(lines)
    assert len(as_text(report)) < 10_000
    json.dumps(as_json(report))
    if report.finding is None:
        signed = slice(report.first - 1, report.signed_up_to)
        assert lines[: report.signed_up_to - report.first + 1] == _AUDIT.lines[signed]


@given(mutants(_AUDIT.lines, _compact))
def test_with_a_head_that_is_known_nothing_that_is_done_to_an_audit_log_is_hidden(
    lines: list[bytes],
) -> None:
    report = verified(lines, head=_AUDIT.head)
    if report.finding is None:
        known = _AUDIT.lines[report.first - 1 :]
        assert lines[: len(known)] == known  # what follows a known head may be new


@given(mutants(_ISSUED, _compact))
def test_what_is_done_to_an_issuance_log_is_found_or_was_not_signed_yet(lines: list[bytes]) -> None:
    tested = verifier()
    try:
        tested.follow("log", lines)
    except TamperedLogError as error:
        bounded(error)
        return
    found = tested.findings
    if found.sealed:
        assert lines[: found.sealed - found.first + 1] == _ISSUED[found.first - 1 : found.sealed]


def test_the_logs_that_are_changed_are_sound() -> None:
    assert verified(_AUDIT.lines, head=_AUDIT.head).finding is None
    tested = verifier()
    tested.follow("log", _ISSUED)
    assert tested.findings.sealed == 5
