"""A real Prometheus on loopback, and promtool: unpacked by scripts/setup.sh, or on the PATH."""

import json
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube_process import Child
from tests.support.ports import free_port

_START_SECONDS = 30.0
_ANSWER_SECONDS = 30.0


class MissingPrometheusError(RuntimeError):
    """Its programs are not on this machine."""


class QueryError(RuntimeError):
    """Prometheus does not answer a question, and says why."""


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MissingPrometheusError(
            f"{name} is missing: run `scripts/setup.sh +prometheus`, as `make test` does"
        )
    return found


@dataclass(frozen=True, slots=True)
class Scraped:
    """A program whose /metrics is collected."""

    job: str
    address: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a result: its labels, and value by time."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    address: str

    def query_range(self, query: str, start: float, end: float, step: float) -> list[Series]:
        """Return what Grafana would get for one query of a panel; QueryError says why nothing."""
        found = self._get("query_range", {"query": query, "start": start, "end": end, "step": step})
        return [
            Series(it["metric"], [(float(at), float(value)) for at, value in it["values"]])
            for it in found["result"]
        ]

    def rule_errors(self) -> dict[str, str]:
        """Return the alerts that could not be evaluated, each with the reason."""
        groups = self._get("rules", {})["groups"]
        return {
            rule["name"]: rule.get("lastError") or rule["health"]
            for group in groups
            for rule in group["rules"]
            if rule["health"] != "ok"
        }

    def unreachable(self) -> list[str]:
        """Return those of its targets whose last scrape failed, or that had none yet."""
        targets = self._get("targets", {"state": "active"})["activeTargets"]
        return [it["labels"]["instance"] for it in targets if it["health"] != "up"]

    def _get(self, path: str, arguments: Mapping[str, Any]) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            told = json.loads(error.read())
            raise QueryError(f"{told.get('errorType')}: {told.get('error')}") from None


@contextmanager
def running(
    folder: Path, targets: Sequence[Scraped] = (), rules: Sequence[Path] = (), *, every: str = "1s"
) -> Iterator[Prometheus]:
    """Yield a server that scrapes the targets; it ends, with its data, when the block does."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(targets, rules, every)))
    server = Prometheus(f"127.0.0.1:{free_port()}")
    child = Child(
        "prometheus",
        [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={server.address}",
        ],
        folder / "prometheus.log",
    )
    child.start()
    try:
        _await_ready(child, server)
        yield server
    finally:
        child.kill()


def _configuration(
    targets: Sequence[Scraped], rules: Sequence[Path], every: str
) -> dict[str, object]:
    jobs: dict[str, list[object]] = {}
    for target in targets:
        entry = {"targets": [target.address], "labels": dict(target.labels)}
        jobs.setdefault(target.job, []).append(entry)
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": entries} for job, entries in jobs.items()
        ],
    }


def _await_ready(child: Child, server: Prometheus) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        child.check()
        try:
            with urllib.request.urlopen(f"http://{server.address}/-/ready", timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise QueryError(f"it does not get ready\n{child.log_tail()}") from None
        time.sleep(0.05)
