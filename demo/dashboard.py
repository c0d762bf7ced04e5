"""`make dashboard`: docs/screens/dashboard.svg, what deploy/monitoring/dashboard.json shows.

The whole system runs small, on SoftHSM2, and a real Prometheus collects its figures. Every query
of every panel is asked of that Prometheus as Grafana asks it, and this program draws the answers
in the dashboard's own grid. It is no screenshot of Grafana, and the figures are of this machine.

Exit code 1, and no picture, when a query fails or brings nothing, or an alert rule cannot be
evaluated.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from chaos import assembly, site
from chaos.waiting import ChaosError, wait_until
from demo import panels
from demo.busy_minute import SIDECARS, busy
from demo.panel_picture import Span, draw
from demo.panels import DashboardError
from demo.processes import DemoError
from tests.support import prometheus
from tests.support.kube_binaries import KubeBinariesError
from tests.support.kube_process import ChildError
from tests.support.prometheus import MissingPrometheusError, Prometheus, QueryError, Scraped

_ROOT = Path(__file__).parents[1]
_MONITORING = _ROOT / "deploy" / "monitoring"
_RULES = ("hsm-plugin", "istiod-ca-bridge")
_PICTURE = _ROOT / "docs" / "screens" / "dashboard.svg"
_REPLICAS = 2
_SCRAPE_SECONDS = 1
_LEAST_SECONDS = 15
_VARIABLES = {"__rate_interval": f"{4 * _SCRAPE_SECONDS}s"}
"""As Grafana has it where a point is drawn for each scrape."""


def main() -> int:
    """Return the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _folders() as (folder, memory):
            picture = _record(folder, memory, options.seconds)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; all processes were ended and all files removed\n")
        return 130
    except (
        *(DashboardError, QueryError, MissingPrometheusError),
        *(ChaosError, DemoError, ChildError, KubeBinariesError),
    ) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    options.out.write_text(picture)
    sys.stderr.write(f"wrote {options.out}\n")
    return 0


def _record(folder: Path, memory: Path, seconds: float) -> str:
    """Run the system for so long, and return the picture of its dashboard."""
    ledgers = folder / "ledgers"
    ledgers.mkdir()
    rules = [_MONITORING / f"{name}.rules.yaml" for name in _RULES]
    with assembly.running(folder, memory, ledgers, _REPLICAS) as mesh:
        targets = [
            Scraped(
                job="hsm-plugin" if name == "plugin" else "istiod-ca-bridge",
                address=address,
                labels={"instance": name, "namespace": site.NAMESPACE},
            )
            for name, address in mesh.metrics.items()
        ]
        every = f"{_SCRAPE_SECONDS}s"
        with (
            prometheus.running(folder / "prometheus", targets, rules, every=every) as server,
            busy(mesh) as minute,
        ):
            wait_until(lambda: not server.unreachable(), lambda: f"{server.unreachable()}")
            start = time.time()
            minute.pass_by(seconds)
            end = time.time()
            if wrong := server.rule_errors():
                raise DashboardError(f"alert rules that cannot be evaluated: {wrong}")
            return _picture(server, start, end)


def _picture(server: Prometheus, start: float, end: float) -> str:
    title, found, variables = panels.read(_MONITORING / "dashboard.json")
    ask = partial(server.query_range, start=start, end=end, step=_SCRAPE_SECONDS)
    shown = [(it, panels.lines(it, ask, variables | _VARIABLES)) for it in found]
    what = (
        "The queries of deploy/monitoring/dashboard.json, answered by a real Prometheus and drawn "
        "by `python -m demo.dashboard`: no screenshot of Grafana."
    )
    when = (
        f"{end - start:.0f} s of a small system on SoftHSM2: {_REPLICAS} replicas, {SIDECARS} "
        "sidecars and wrong callers. First a herd meets a slow HSM, later the HSM is away."
    )
    return draw(title, (what, when), shown, Span(start, end, _SCRAPE_SECONDS))


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """Yield a folder on the disk and one in memory, both gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="istio-hsm-dashboard-"))
    memory = Path(tempfile.mkdtemp(prefix="istio-hsm-dashboard-", dir="/dev/shm"))
    try:
        yield folder, memory
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.dashboard", description=__doc__)
    parser.add_argument("--seconds", type=_seconds, default=90.0, help="how long to watch (90)")
    parser.add_argument("--out", type=Path, default=_PICTURE, help="the file to write")
    return parser.parse_args()


def _seconds(text: str) -> float:
    value = float(text)
    if not _LEAST_SECONDS <= value <= 3600:  # noqa: PLR2004 - one hour
        raise argparse.ArgumentTypeError(f"{_LEAST_SECONDS} to 3600")
    return value


if __name__ == "__main__":
    sys.exit(main())
