"""The images, built once for all tests of a run."""

import os
from collections.abc import Iterator

import pytest

from tests.images.builder import ImageError, Images, MissingProgramError, open_store

NAMES = ("hsm-plugin", "vault-client", "istiod-ca-bridge", "istio-hsm")


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    """A store that holds every image; a missing tool fails in CI and skips elsewhere."""
    try:
        with open_store() as store:
            for name in NAMES:
                store.build(name)
            yield store
    except MissingProgramError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    except ImageError as error:
        pytest.fail(str(error), pytrace=False)
