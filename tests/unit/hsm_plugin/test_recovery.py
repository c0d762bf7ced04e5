"""The table of return values says what brings the token back."""

import pytest

from hsm_plugin.recovery import PIN_REFUSED, UNKNOWN, Action, action_of, name_of


@pytest.mark.parametrize(
    ("code", "name", "action"),
    [
        (0x005, "CKR_GENERAL_ERROR", Action.NEW_SESSION),
        (0x030, "CKR_DEVICE_ERROR", Action.HSM_DOWN),
        (0x032, "CKR_DEVICE_REMOVED", Action.HSM_DOWN),
        (0x060, "CKR_KEY_HANDLE_INVALID", Action.NEW_SESSION),
        (0x070, "CKR_MECHANISM_INVALID", Action.FATAL),
        (0x090, "CKR_OPERATION_ACTIVE", Action.NEW_SESSION),
        (0x0B1, "CKR_SESSION_COUNT", Action.RETRY),
        (0x0B3, "CKR_SESSION_HANDLE_INVALID", Action.NEW_SESSION),
        (0x0E0, "CKR_TOKEN_NOT_PRESENT", Action.HSM_DOWN),
        (0x101, "CKR_USER_NOT_LOGGED_IN", Action.REINITIALISE),
        (0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", Action.REINITIALISE),
    ],
)
def test_a_known_value_has_its_name_and_its_action(code: int, name: str, action: Action) -> None:
    assert name_of(code) == name
    assert action_of(code) is action


@pytest.mark.parametrize(
    ("code", "name"),
    [(0x80001234, "vendor code 0x80001234"), (0x7FFF, "unknown code 0x00007fff")],
)
def test_an_unknown_value_is_named_by_its_number(code: int, name: str) -> None:
    assert name_of(code) == name
    assert action_of(code) is UNKNOWN


def test_a_refused_pin_is_never_tried_again_by_the_table() -> None:
    assert {action_of(code) for code in PIN_REFUSED} == {Action.FATAL}
