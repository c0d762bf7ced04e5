"""A token that fails on command, and a plugin on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.clients import ARGUMENTS, make_key
from tests.support import plugin as plugins
from tests.support.faults import FaultyHsm, make_faulty
from tests.support.plugin import Plugin
from tests.support.softhsm import make_token


@pytest.fixture
def hsm(tmp_path: Path) -> Iterator[FaultyHsm]:
    """A token of the test's own, healed at the end so that nothing hangs on."""
    faulty = make_faulty(make_token(tmp_path / "token"))
    yield faulty
    faulty.heal()


@pytest.fixture
def plugin(hsm: FaultyHsm, tmp_path: Path) -> Iterator[Plugin]:
    """A serving plugin on it, with a key to sign with."""
    with plugins.running(
        hsm.hsm, tmp_path / "run", arguments=ARGUMENTS, environment=hsm.environment()
    ) as running:
        with running.signing() as stub:
            make_key(stub)
        yield running
