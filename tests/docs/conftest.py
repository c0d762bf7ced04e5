"""An operator's folder and token; kubectl, found or built before any test's own time limit runs."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.docs.sandbox import SOCKET, Sandbox
from tests.support import kubectl
from tests.support.kubectl import KubectlError, MissingProgramError
from tests.support.openbao import OpenBao
from tests.support.softhsm import SoftHsm, make_token

_PROGRAM = pytest.StashKey[Path | KubectlError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = any("with_kubectl" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            session.config.stash[_PROGRAM] = kubectl.program()
        except KubectlError as error:
            session.config.stash[_PROGRAM] = error


@pytest.fixture(scope="session")
def with_kubectl(pytestconfig: pytest.Config) -> Path:
    """The program; only outside of CI, and without Go, is it no failure to have none."""
    found = pytestconfig.stash[_PROGRAM]
    if isinstance(found, MissingProgramError) and not os.environ.get("CI"):
        pytest.skip(str(found))
    if isinstance(found, KubectlError):
        pytest.fail(str(found), pytrace=False)
    return found


@pytest.fixture
def hsm(tmp_path: Path) -> SoftHsm:
    return make_token(tmp_path / "token")


@pytest.fixture
def sandbox(tmp_path: Path, hsm: SoftHsm) -> Sandbox:
    """Where blocks are run, with a token of the test's own."""
    made = Sandbox(tmp_path / "operator", {"SOFTHSM2_CONF": str(hsm.config)})
    made.replaced["/usr/lib/softhsm/libsofthsm2.so"] = hsm.module
    made.replaced[SOCKET] = str(tmp_path / ".hsm-sock")
    return made


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path / "bao")
    server.start()
    yield server
    server.stop()
