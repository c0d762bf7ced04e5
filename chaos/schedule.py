"""Which faults strike, in which order and for how long: all of it follows from the seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.faults import Fault

_REST_SECONDS = (0.5, 2.0)
_PAIRS = 0.25
"""How often two strike at once, after each has struck alone."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault that is done once."""

    fault: Fault
    seconds: float
    """Until chaos ends it; 0 when it does not."""
    replica: int
    """Whom it strikes, where there are several."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """What is done at one moment, and the rest that the system gets once it has recovered."""

    blows: tuple[Blow, ...]
    rest: float

    @property
    def seconds(self) -> float:
        """Until the last of it is ended."""
        return max(blow.seconds for blow in self.blows)


def schedule(seed: int, faults: Sequence[Fault], replicas: int) -> Iterator[Stroke]:
    """Yield strokes for ever: every fault once in a random order, then all again, some in pairs."""
    dice = random.Random(seed)  # noqa: S311 - it is to be repeatable
    is_first = True
    while True:
        deck = list(faults)
        dice.shuffle(deck)
        while deck:
            dealt = [deck.pop()]
            wants_pair = dice.random() < _PAIRS
            if wants_pair and not is_first and deck and deck[-1].part is not dealt[0].part:
                dealt.append(deck.pop())
            yield Stroke(
                tuple(_blow(dice, fault, replicas) for fault in dealt),
                round(dice.uniform(*_REST_SECONDS), 1),
            )
        is_first = False


def _blow(dice: random.Random, fault: Fault, replicas: int) -> Blow:
    seconds = dice.uniform(fault.value.shortest, fault.value.longest)
    return Blow(fault, round(seconds, 1), dice.randrange(replicas))
