"""What the plugin's word on a new set means for its publication."""

from dataclasses import dataclass, field

import pytest

from vault_client.consumer import Answer
from vault_client.delivery import SecretSet
from vault_client.errors import TrialError
from vault_client.logs import Log
from vault_client.secret import Secret
from vault_client.settings import TrialMode
from vault_client.trial import TrialLogin

TAKEN = Answer(given=True, accepted=True)
REFUSED = Answer(given=True, accepted=False, reason="wrong PIN")
SILENT = Answer(given=False, accepted=False, reason="UNAVAILABLE: nobody there")


@dataclass(slots=True)
class Scripted:
    """A plugin that answers as told."""

    answer: Answer
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def reload(self, generation: str) -> Answer:
        raise AssertionError(generation)

    def abandon(self) -> None:
        """Nothing runs here."""

    def try_out(self, generation: str, *, patient: bool) -> Answer:
        self.asked.append((generation, patient))
        return self.answer


def a_set(pin: str = "1111", version: int | None = 1) -> SecretSet:
    return SecretSet({"pin": Secret(pin.encode()), "clientcert.pem": Secret(b"cert")}, version)


def login(plugin: Scripted, mode: TrialMode = TrialMode.AUTO) -> TrialLogin:
    return TrialLogin(plugin, mode, Log())


def test_a_pin_that_the_token_takes_is_published() -> None:
    plugin = Scripted(TAKEN)
    login(plugin).judge("..one", a_set(), first=False)
    assert plugin.asked == [("..one", True)]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("mode", [TrialMode.AUTO, TrialMode.REQUIRED])
def test_a_refused_pin_is_not_published_even_when_nothing_is_in_place(
    mode: TrialMode,
    first: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with pytest.raises(TrialError, match="wrong PIN") as caught:
        login(Scripted(REFUSED), mode).judge("..one", a_set(), first=first)
    assert caught.value.reason == "refused"


def test_a_set_that_was_refused_is_known_until_it_changes() -> None:
    trial = login(Scripted(REFUSED))
    with pytest.raises(TrialError) as refused:
        trial.judge("..one", a_set(), first=False)
    with pytest.raises(TrialError) as known:
        trial.check_known(a_set())
    assert known.value is refused.value
    trial.check_known(a_set("2222"))
    trial.check_known(a_set(version=2))


def test_a_set_that_was_not_refused_is_not_known() -> None:
    trial = login(Scripted(TAKEN))
    trial.check_known(a_set())
    trial.judge("..one", a_set(), first=False)
    trial.check_known(a_set())


@pytest.mark.parametrize(
    ("mode", "first"),
    [(TrialMode.AUTO, True), (TrialMode.AUTO, False), (TrialMode.REQUIRED, True)],
)
def test_a_silent_plugin_does_not_hold_the_set_back(
    mode: TrialMode,
    first: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    plugin = Scripted(SILENT)
    login(plugin, mode).judge("..one", a_set(), first=first)
    assert plugin.asked == [("..one", not first)]


def test_a_silent_plugin_holds_back_what_must_be_tried_and_is_asked_again() -> None:
    plugin = Scripted(SILENT)
    trial = login(plugin, TrialMode.REQUIRED)
    with pytest.raises(TrialError) as caught:
        trial.judge("..one", a_set(), first=False)
    assert caught.value.reason == "untried"
    trial.check_known(a_set())


def test_switched_off_nobody_is_asked() -> None:
    plugin = Scripted(REFUSED)
    login(plugin, TrialMode.OFF).judge("..one", a_set(), first=False)
    assert plugin.asked == []
