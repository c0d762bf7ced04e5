"""The programs of Prometheus: without them these tests are left out, except in CI."""

import os

import pytest

from tests.support.prometheus import MissingPrometheusError, program


@pytest.fixture(scope="session")
def promtool() -> str:
    return _found("promtool")


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    return _found("prometheus")


def _found(name: str) -> str:
    try:
        return program(name)
    except MissingPrometheusError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
