"""What a drill showed: how long no certificate was issued, and how soon it was again. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

OK = "OK"
STREAK = 3
"""So many certificates in a row count as served again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request for a certificate; times are seconds of one clock."""

    asked: float
    answered: float
    status: str
    """OK, or the gRPC status of the refusal."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The result."""

    issued: int
    refused: Mapping[str, int]
    seconds_without_issuance: float
    """The longest time between two certificates from the fault on; without an outage it is how
    often one is asked for. 0 when there was none at all."""

    seconds_to_recovery: float | None
    """From the end of the fault to the first certificate after it; None: not within the limit."""


def is_serving(samples: Sequence[Sample], since: float) -> bool:
    """Return whether the last requests made since then were all answered with a certificate."""
    last = [sample for sample in samples if sample.asked >= since][-STREAK:]
    return len(last) == STREAK and all(sample.status == OK for sample in last)


def judge(samples: Sequence[Sample], began: float, ended: float) -> Findings:
    """Return what the samples say of a fault between the two times."""
    during = [sample for sample in samples if sample.answered >= began]
    refused = Counter(sample.status for sample in during if sample.status != OK)
    good = [sample.answered for sample in samples if sample.status == OK]
    last_before = max((time for time in good if time < began), default=began)
    marks = [last_before, *(time for time in good if time >= began)]
    gaps = [later - earlier for earlier, later in pairwise(marks)]
    after = [sample.answered for sample in during if sample.status == OK and sample.asked >= ended]
    return Findings(
        issued=sum(1 for sample in during if sample.status == OK),
        refused=dict(refused),
        seconds_without_issuance=round(max(gaps, default=0.0), 3),
        seconds_to_recovery=round(min(after) - ended, 3) if after else None,
    )
