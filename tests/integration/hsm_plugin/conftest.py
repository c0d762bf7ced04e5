"""A real plugin on a real token, shared by the tests that leave it serving."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from istio_hsm_proto import kms_istio_v1_pb2 as kms
from istio_hsm_proto.kms_istio_v1_pb2_grpc import KeyManagementServiceStub
from istio_hsm_proto.signing_v1_pb2_grpc import SigningServiceStub
from tests.support import plugin as plugins
from tests.support import softhsm
from tests.support.plugin import Plugin
from tests.support.softhsm import SoftHsm

KEK_ID = b"kek-of-the-tests"


@pytest.fixture(scope="package")
def shared_hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """The token under the shared plugin."""
    return softhsm.make_token(tmp_path_factory.mktemp("token"))


@pytest.fixture(scope="package")
def plugin(shared_hsm: SoftHsm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """The shared plugin: every test leaves it serving."""
    with plugins.running(shared_hsm, tmp_path_factory.mktemp("run")) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_serving(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test sends to the shared plugin, it serves afterwards."""
    yield
    if "plugin" in request.fixturenames:
        shared: Plugin = request.getfixturevalue("plugin")
        assert shared.health() == plugins.SERVING, shared.text()


@pytest.fixture(scope="package")
def keys(plugin: Plugin) -> Iterator[KeyManagementServiceStub]:
    with plugin.keys() as stub:
        yield stub


@pytest.fixture(scope="package")
def signing(plugin: Plugin) -> Iterator[SigningServiceStub]:
    with plugin.signing() as stub:
        yield stub


@pytest.fixture(scope="package")
def kek_id(keys: KeyManagementServiceStub) -> bytes:
    return keys.GenerateKEK(kms.GenerateKEKRequest(kek_kid=KEK_ID)).kek_kid


@pytest.fixture(scope="package")
def dek_blob(keys: KeyManagementServiceStub, kek_id: bytes) -> bytes:
    return keys.GenerateDEK(kms.GenerateDEKRequest(kek_kid=kek_id)).encrypted_dek_blob


@pytest.fixture
def hsm(tmp_path: Path) -> SoftHsm:
    """A token of the test's own."""
    return softhsm.make_token(tmp_path / "token")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the test's own for socket and log."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"
