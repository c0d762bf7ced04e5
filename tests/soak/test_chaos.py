"""`python -m chaos` for less than a minute: every invariant holds, and the faults were real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.kube import KubeCluster

_SEED = 8577
_SECONDS = 45
_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(kube: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of one run; `kube` has the programs of a cluster built before."""
    assert kube.pids()
    out = tmp_path_factory.mktemp("chaos")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "chaos", "--minutes", str(_SECONDS / 60)),
            *("--seed", str(_SEED), "--out", str(out)),
        ],
        cwd=_REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert (out / "chaos.md").read_text() == done.stdout
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.timeout(300)
def test_everything_that_must_hold_holds_after_faults_under_load(results: dict[str, Any]) -> None:
    assert [it for it in results["invariants"] if not it["holds"]] == []
    assert len(results["invariants"]) > 10
    assert results["requests"] > 20


def test_the_faults_struck_and_everything_recovered(results: dict[str, Any]) -> None:
    assert len(results["strokes"]) >= 4
    assert all(it["recovery_seconds"] is not None for it in results["strokes"])
    assert any(it["failed"] for it in results["faults"]), "no client ever saw a fault"
