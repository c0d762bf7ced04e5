"""One token and one open store for each implementation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from hsm_plugin.keys import KeyStore
from tests.contract.key_stores import OPENERS, Opener
from tests.support import softhsm, vectors
from tests.support.softhsm import SoftHsm


class Session:
    """A store that can be closed and opened again on the same token."""

    def __init__(self, opener: Opener, hsm: SoftHsm) -> None:
        self.hsm = hsm
        self._opener = opener
        self._stack = ExitStack()
        self.store: KeyStore = self._stack.enter_context(opener(hsm))

    def reopen(self) -> KeyStore:
        """Return the store of what would be the next process."""
        self.close()
        self.store = self._stack.enter_context(self._opener(self.hsm))
        return self.store

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module", params=sorted(OPENERS))
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    session = Session(OPENERS[request.param], softhsm.make_token(tmp_path_factory.mktemp("token")))
    yield session
    session.close()


@pytest.fixture
def store(session: Session) -> KeyStore:
    return session.store


@pytest.fixture(scope="module", params=sorted(OPENERS))
def reference_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeyStore]:
    """The store on a copy of the reference's token."""
    opener: Callable[[SoftHsm], AbstractContextManager[KeyStore]] = OPENERS[request.param]
    with opener(vectors.reference_token(tmp_path_factory.mktemp("reference"))) as store:
        yield store
