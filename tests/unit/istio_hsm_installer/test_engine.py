import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from istio_hsm_installer import engine, plan
from istio_hsm_installer.engine import Outcome, Result
from istio_hsm_installer.errors import (
    InputError,
    InstallerError,
    ManyErrors,
    StateError,
    ToolMissingError,
    VaultError,
)
from istio_hsm_installer.state import State, only_one
from istio_hsm_installer.steps.step import Action, Area, Change, World
from istio_hsm_installer.wiring import Target, make_world
from tests.unit.istio_hsm_installer.sample import UPSTREAM, options

INSTALLATION = {"suffix": "c1", "server": "https://one"}


class KilledError(BaseException):
    """What ends a process at once, whatever it is doing."""


@dataclass
class Thing:
    """A step whose world is a set of names."""

    name: str
    there: set[str]
    title: str = "a thing"
    area: Area = Area.VAULT
    hint: str = "the step's hint"
    error: BaseException | None = None
    dies_after: bool = False
    missing: str = ""

    def check(self, world: World) -> None:
        del world
        if self.missing:
            raise InputError(self.missing)

    def plan(self, world: World) -> Sequence[Change]:
        del world
        return [] if self.name in self.there else [Change(Action.CREATE, self.name)]

    def apply(self, world: World) -> None:
        del world
        if self.error and not self.dies_after:
            raise self.error
        self.there.add(self.name)
        if self.error:
            raise self.error

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        del world
        if self.name not in created:
            return [f"{self.name} was there before"]
        self.there.discard(self.name)
        return []


@pytest.fixture
def world() -> World:
    return make_world(options(), Target(), None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def apply(
    steps: Sequence[Thing], world: World, path: Path, *, resume: bool = False
) -> dict[str, Outcome]:
    results = engine.apply(steps, world, State(path, INSTALLATION), ignore, resume=resume)
    return {result.step: result.outcome for result in results}


def undo(steps: Sequence[Thing], world: World, path: Path) -> dict[str, Outcome]:
    results = engine.undo(steps, world, State(path, INSTALLATION), ignore)
    return {result.step: result.outcome for result in results}


def ignore(result: Result) -> None:
    del result


def test_a_second_apply_changes_nothing(world: World, path: Path) -> None:
    there: set[str] = set()
    steps = [Thing("one", there), Thing("two", there)]
    assert apply(steps, world, path) == {"one": Outcome.CHANGED, "two": Outcome.CHANGED}
    assert apply(steps, world, path) == {"one": Outcome.UNCHANGED, "two": Outcome.UNCHANGED}


@pytest.mark.parametrize("dies_after", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_kill_before_or_after_a_change_is_resumed_and_undone_whole(
    world: World, path: Path, at: int, *, dies_after: bool
) -> None:
    there: set[str] = set()
    steps = [Thing(name, there) for name in ("one", "two", "three")]
    steps[at].error, steps[at].dies_after = KilledError(), dies_after
    with pytest.raises(KilledError):
        apply(steps, world, path)
    steps[at].error = None
    with pytest.raises(StateError, match=f"stopped in the step {steps[at].name}"):
        apply(steps, world, path)
    apply(steps, world, path, resume=True)
    assert there == {"one", "two", "three"}
    undo(steps, world, path)
    assert not there
    assert not path.exists()


def test_what_was_there_before_is_kept(world: World, path: Path) -> None:
    there = {"one"}
    steps = [Thing("one", there), Thing("two", there)]
    apply(steps, world, path)
    assert undo(steps, world, path) == {"two": Outcome.UNDONE, "one": Outcome.KEPT}
    assert there == {"one"}


def test_what_the_operator_must_bring_is_told_at_once_before_any_change(
    world: World, path: Path
) -> None:
    there: set[str] = set()
    steps = [
        Thing("one", there),
        Thing("two", there, missing="no file"),
        Thing("three", there, missing="no root"),
    ]
    with pytest.raises(ManyErrors) as caught:
        apply(steps, world, path)
    assert [(str(e), e.hint) for e in caught.value.errors] == [
        ("no file", "the step's hint"),
        ("no root", "the step's hint"),
    ]
    assert not there
    assert not path.exists()


def test_an_error_without_a_hint_gets_the_step_s(world: World, path: Path) -> None:
    with pytest.raises(VaultError) as caught:
        apply([Thing("one", set(), error=VaultError("refused"))], world, path)
    assert caught.value.hint == "the step's hint"


def test_a_missing_program_is_left_to_a_person_and_the_rest_goes_on(
    world: World, path: Path
) -> None:
    there: set[str] = set()
    error = ToolMissingError("istioctl is not installed", hint="install it")
    steps = [Thing("one", there, error=error), Thing("two", there)]
    assert apply(steps, world, path) == {"one": Outcome.MANUAL, "two": Outcome.CHANGED}
    assert State(path, INSTALLATION).interrupted is None


def test_a_change_that_does_not_stay_is_an_error(world: World, path: Path) -> None:
    class Vanishing(Thing):
        def apply(self, world: World) -> None:
            del world

    with pytest.raises(InstallerError, match="applied, and yet one is not"):
        apply([Vanishing("one", set())], world, path)


def test_the_state_of_another_installation_is_refused(world: World, path: Path) -> None:
    apply([Thing("one", set())], world, path)
    with pytest.raises(StateError, match="its server is https://one"):
        State(path, {**INSTALLATION, "server": "https://two"})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_damaged_state_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(StateError, match="not a state file"):
        State(path, INSTALLATION)


def test_the_state_is_for_its_owner_alone(world: World, path: Path) -> None:
    apply([Thing("one", set())], world, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["steps"] == {"one": {"at": "done", "created": ["one"]}}


def test_only_one_works_with_a_configuration_at_a_time(tmp_path: Path) -> None:
    config = tmp_path / "istio-hsm.yaml"
    config.touch()
    with only_one(config), pytest.raises(StateError, match="another istio-hsm"), only_one(config):
        pass
    with only_one(config):
        pass


def test_the_steps_are_in_the_guide_s_order() -> None:
    names = [step.name for step in plan.steps(options())]
    assert names[0] == "hsm-kek"
    assert names.index("reviewer-token") < names.index("auth-config") < names.index("istio")
    assert names[-1] == "istiod-service"
    assert len(set(names)) == len(names)


def test_a_release_is_verified_before_all_else() -> None:
    release = {"archive": "istio.tar.gz", "signature": "istio.tar.gz.1.sig"}
    assert plan.steps(options(release=release))[0].name == "release-signature"


def test_upstream_gets_the_bridge_s_service_and_a_default_revision_no_other() -> None:
    names = [step.name for step in plan.steps(options(istio={**UPSTREAM, "revision": ""}))]
    assert "bridge-service" in names
    assert "istiod-service" not in names


def test_an_area_is_done_apart() -> None:
    names = [step.name for step in plan.steps(options(), [Area.HSM])]
    assert names == ["hsm-kek", "hsm-root"]
