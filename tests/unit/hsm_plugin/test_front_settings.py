"""The front is told its settings whole, and the allow-list admits who is on it."""

from pathlib import Path

import pytest

from hsm_plugin.front_settings import AllowList, FrontLimits, FrontSettings, TlsSettings

TLS = TlsSettings(Path("/ca"), Path("/c"), Path("/k"), ("a", "b"))


@pytest.mark.parametrize("tls", [None, TLS])
def test_settings_are_read_back_as_they_were(tls: TlsSettings | None) -> None:
    settings = FrontSettings(
        tag="t",
        upstream=3,
        allow=AllowList(frozenset({0, 1337}), frozenset({5})),
        unix=4,
        tcp=None,
        tls=tls,
        as_json=True,
        limits=FrontLimits(connections=7),
    )
    line = settings.to_line()
    assert line.count(b"\n") == 1
    assert FrontSettings.from_line(line) == settings


@pytest.mark.parametrize(
    ("allow", "admitted"),
    [
        (AllowList(uids=frozenset({1000})), True),
        (AllowList(uids=frozenset({0})), False),
        (AllowList(gids=frozenset({1337})), True),
        (AllowList(gids=frozenset({0})), False),
        (AllowList(uids=frozenset({0}), gids=frozenset({7})), True),
        (AllowList(), False),
        (AllowList(everyone=True), True),
    ],
)
def test_a_process_is_admitted_by_its_uid_or_by_any_of_its_groups(
    allow: AllowList,
    admitted: bool,  # noqa: FBT001 - a case of the table
) -> None:
    assert allow.admits(1000, frozenset({7, 1337})) is admitted
