"""What the table says of strokes."""

from collections import Counter

from chaos.faults import Fault
from chaos.report import Finding, Strike, Summary, page, rows


def strike(name: str, recovery: float | None, **statuses: int) -> Strike:
    return Strike(name, Counter(statuses), 0.5, recovery)


def test_strokes_of_one_fault_are_one_row_with_median_and_worst() -> None:
    [row] = rows([strike("x", 1.0, OK=3), strike("x", 9.0, OK=2, UNAVAILABLE=1), strike("x", 2.0)])
    assert row.as_json() == {
        "fault": "x",
        "times": 3,
        "calls": 6,
        "failed": {"UNAVAILABLE": 1},
        "longest_wait_seconds": 0.5,
        "recovery_median_seconds": 2.0,
        "recovery_worst_seconds": 9.0,
    }
    assert row.as_markdown() == "| x | 3 | 1 UNAVAILABLE of 6 calls | 0.5 | 2.0 | 9.0 |"


def test_one_stroke_without_recovery_is_not_hidden_by_others() -> None:
    [row] = rows([strike("x", 1.0, OK=1), strike("x", None, OK=1)])
    assert row.as_json()["recovery_worst_seconds"] is None
    assert row.as_markdown().endswith("| never | never |")


def test_rows_stand_in_the_order_of_the_catalogue_and_pairs_come_last() -> None:
    first, last = next(iter(Fault)).title, tuple(Fault)[-1].title
    names = [
        row.name
        for row in rows([strike(f"{last} + {first}", 1), strike(last, 1), strike(first, 1)])
    ]
    assert names == [first, last, f"{last} + {first}"]


def test_the_page_says_what_did_not_hold_and_what_was_not_done() -> None:
    summary = Summary("python -m chaos", 1, 60.0, 2, 3, 12, 10, {"disk full": "it needs root"})
    findings = [
        Finding("one", holds=True, told="fine"),
        Finding("two", holds=False, told="a | b\nc"),
    ]
    text = page(summary, rows([strike("x", 1.0, OK=1)]), findings)
    assert "| yes | one | fine |" in text
    assert "| **no** | two | a \\| b c |" in text
    assert "| x | 1 | nothing (1 calls) |" in text
    assert "Not done: disk full (it needs root)." in text
