"""The Vault client's page run: the three ways to start it, against an OpenBao."""

import json
from pathlib import Path

import pytest

from tests.docs.pages import blocks_of
from tests.docs.sandbox import Sandbox
from tests.integration.vault_client.conftest import make_mesh
from tests.support import plugin as plugins
from tests.support.openbao import OpenBao
from tests.support.ports import free_port
from tests.support.vault_client import memory_folder

_PAGE = "docs/vault-client.md"


@pytest.mark.timeout(120)
def test_it_delivers_as_an_init_container_and_as_a_sidecar_that_a_probe_asks(
    sandbox: Sandbox, bao: OpenBao, tmp_path: Path
) -> None:
    log = tmp_path / "sidecar.log"
    with memory_folder() as output:
        mesh = make_mesh(bao, tmp_path, output)
        sandbox.environment |= mesh.environment(HEALTH_ADDR=f"127.0.0.1:{free_port()}")
        sandbox.program("vault-client", as_containers(plugins.program("vault-client"), log))

        sandbox.run(blocks_of(_PAGE, "run"))

        assert json.loads((output / "manifest.json").read_text())["kv_version"] == 1
        assert "http.listening" in log.read_text()


def as_containers(program: str, log: Path) -> str:
    """Return a script: the program; the one that goes on, the sidecar, beside those after it."""
    return f"""#!/bin/bash
[ $# = 0 ] || exec {program} "$@"
{program} >{log} 2>&1 &
until {program} healthcheck; do sleep 0.1; done
"""
