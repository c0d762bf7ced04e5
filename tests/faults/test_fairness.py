"""A client that floods the token delays the others by a turn each, not by its whole queue."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.clients import ARGUMENTS, make_key, sign
from tests.support import plugin as plugins
from tests.support.faults import FaultyHsm
from tests.support.kube_process import dying_with_parent
from tests.support.plugin import Plugin

FLOOD = 150
"""Calls that the flood keeps under way."""
CALLS = 6
AT_THE_TOKEN = 8
"""4 sessions, and 4 requests that lie ready for them."""


@contextmanager
def flooded(plugin: Plugin, hsm: FaultyHsm) -> Iterator[None]:
    """Another process that has the queue for the token full of its calls."""
    process = subprocess.Popen(
        dying_with_parent(
            [sys.executable, "-m", "tests.faults.flood", str(plugin.socket), str(FLOOD)]
        )
    )
    try:
        begun = hsm.calls("C_Sign")
        plugin.wait_until(lambda: hsm.calls("C_Sign") > begun + FLOOD, "the flood")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "is_fair"),
    [(("--allow-uid", "any"), True), ((), False)],
    ids=["clients known", "clients unknown"],
)
def test_a_client_waits_for_a_turn_and_not_for_the_flood(
    hsm: FaultyHsm,
    tmp_path: Path,
    arguments: tuple[str, ...],
    is_fair: bool,  # noqa: FBT001 - a case of the table
) -> None:
    """Both sign with the same key; where nobody knows who calls, they share one queue."""
    with (
        plugins.running(
            hsm.hsm,
            tmp_path / "run",
            arguments=(*ARGUMENTS, *arguments),
            environment=hsm.environment(),
        ) as plugin,
        plugin.signing() as stub,
    ):
        make_key(stub)
        sign(stub)
        hsm.delay(8_000, "C_Sign")
        with flooded(plugin, hsm):
            before = hsm.calls("C_Sign")
            for _ in range(CALLS):
                sign(stub, 20)
            signed_meanwhile = (hsm.calls("C_Sign") - before) / CALLS
        hsm.delay(0, "C_Sign")
    if is_fair:
        assert signed_meanwhile < 4 * AT_THE_TOKEN
    else:
        assert signed_meanwhile > FLOOD / 2
