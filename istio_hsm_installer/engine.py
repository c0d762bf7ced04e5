"""Runs steps: plan, apply, undo. Each is started, proved and remembered one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from istio_hsm_installer.errors import (
    InstallerError,
    ManyErrors,
    StateError,
    ToolMissingError,
)
from istio_hsm_installer.state import State
from istio_hsm_installer.steps.step import Action, Area, Change, Step, World


class Outcome(StrEnum):
    """What became of a step."""

    UNCHANGED = "unchanged"
    PENDING = "pending"
    CHANGED = "changed"
    MANUAL = "manual"
    """A program is missing here: a person must do it."""

    UNDONE = "undone"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Result:
    """A step, and what became of it."""

    step: str
    title: str
    outcome: Outcome
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


Results: TypeAlias = Sequence[Result]
Report = Callable[[Result], None]


def plan(steps: Sequence[Step], world: World, report: Report) -> Sequence[Result]:
    """Return what `apply` would do. Changes nothing."""
    results = []
    for step in steps:
        with _hinting(step):
            changes = tuple(step.plan(world))
        outcome = Outcome.PENDING if changes else Outcome.UNCHANGED
        results.append(Result(step.name, step.title, outcome, changes))
        report(results[-1])
    return results


def apply(
    steps: Sequence[Step], world: World, state: State, report: Report, *, resume: bool
) -> Sequence[Result]:
    """Return what was done; every step is planned again afterwards, to prove it."""
    if state.interrupted and not resume:
        raise StateError(
            f"an earlier apply stopped in the step {state.interrupted}",
            hint="see what is left with plan, then finish with: apply --resume",
        )
    _check_all(steps, world)
    results = []
    for step in steps:
        with _hinting(step):
            results.append(_apply_one(step, world, state))
        report(results[-1])
    return results


def undo(steps: Sequence[Step], world: World, state: State, report: Report) -> Sequence[Result]:
    """Return what was taken away, last step first, and what was kept and why.

    What went into the HSM stays there for good, so that is not remembered any longer either.
    """
    results = []
    for step in reversed(steps):
        with _hinting(step):
            kept = tuple(step.undo(world, state.created(step.name)))
        outcome = Outcome.KEPT if kept else Outcome.UNDONE
        if not kept or step.area is Area.HSM or not state.created(step.name):
            state.forget(step.name)
        results.append(Result(step.name, step.title, outcome, notes=kept))
        report(results[-1])
    state.close()
    return results


def _apply_one(step: Step, world: World, state: State) -> Result:
    changes = tuple(step.plan(world))
    if not changes:
        state.finish(step.name)
        return Result(step.name, step.title, Outcome.UNCHANGED)
    before = state.created(step.name)
    state.start(step.name, [entry.what for entry in changes if entry.action is Action.CREATE])
    try:
        step.apply(world)
    except ToolMissingError as error:
        if not before:
            state.forget(step.name)
        notes = (str(error), *filter(None, (entry.note for entry in changes)))
        return Result(step.name, step.title, Outcome.MANUAL, changes, notes)
    if left := step.plan(world):
        raise InstallerError(
            f"{step.title}: it was applied, and yet {left[0].what} is not as it should be",
            hint="something else changes it: see `plan`",
        )
    state.finish(step.name)
    return Result(step.name, step.title, Outcome.CHANGED, changes)


def _check_all(steps: Sequence[Step], world: World) -> None:
    """Return when every step has what it needs; ManyErrors tells all that is missing at once."""
    errors: list[InstallerError] = []
    for step in steps:
        try:
            with _hinting(step):
                step.check(world)
        except InstallerError as error:
            errors.append(error)
    if errors:
        raise ManyErrors(errors)


@contextmanager
def _hinting(step: Step) -> Iterator[None]:
    """Give errors that have no hint the step's own."""
    try:
        yield
    except InstallerError as error:
        error.hint = error.hint or step.hint
        raise
