"""One real Kubernetes API for all tests that want one, and how much is tried at random."""

import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import kube_binaries
from tests.support.kube import KubeCluster
from tests.support.kube_binaries import KubeBinaries, KubeBinariesError, MissingProgramError

_ON_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", _ON_ANY_MACHINE, max_examples=30, derandomize=True)
settings.register_profile("round", _ON_ANY_MACHINE, max_examples=300)
settings.register_profile("long", _ON_ANY_MACHINE, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_IMAGES = "images"
_BINARIES = pytest.StashKey[KubeBinaries | KubeBinariesError]()
_CLUSTER = pytest.StashKey[KubeCluster]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the images, for they take longest."""
    items.sort(key=lambda item: _IMAGES not in Path(item.path).parts)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Find or build the programs before any test's own time limit runs."""
    wanted = any("kube" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        _find_binaries(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the control plane's last log lines to a failed test's report."""
    report = yield
    cluster = item.config.stash.get(_CLUSTER, None)
    if call.when == "call" and report.failed and cluster is not None:
        report.sections.append(("Kubernetes control plane", cluster.logs()))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how long the control plane took to start."""
    if cluster := config.stash.get(_CLUSTER, None):
        terminalreporter.write_line(f"kube: control plane ready in {cluster.start_seconds:.1f} s")


@pytest.fixture(scope="session")
def kube(pytestconfig: pytest.Config) -> Iterator[KubeCluster]:
    """A running cluster, shared: a test works in namespaces of its own."""
    found = _find_binaries(pytestconfig)
    if isinstance(found, MissingProgramError) and not os.environ.get("CI"):
        pytest.skip(str(found))
    if isinstance(found, KubeBinariesError):
        pytest.fail(str(found), pytrace=False)
    with KubeCluster(found) as cluster:
        pytestconfig.stash[_CLUSTER] = cluster
        yield cluster


@pytest.fixture
def namespace(kube: KubeCluster) -> str:
    """A new namespace of the test's own."""
    name = f"test-{secrets.token_hex(4)}"
    kube.create_namespace(name)
    return name


def _find_binaries(config: pytest.Config) -> KubeBinaries | KubeBinariesError:
    """Return the programs, or why there are none, looked for once a run."""
    if _BINARIES not in config.stash:
        try:
            config.stash[_BINARIES] = kube_binaries.resolve()
        except KubeBinariesError as error:
            config.stash[_BINARIES] = error
    return config.stash[_BINARIES]
