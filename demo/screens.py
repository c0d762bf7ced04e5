"""`python -m demo.screens`: the pictures of docs/screens, made from the real commands.

A throw-away kube-apiserver, OpenBao and SoftHSM2 run beside a tmux session; what tmux shows after
each command becomes an SVG. istioctl alone is a stand-in, for Istio's images are not run here.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubernetes import client
from rich.console import Console
from rich.text import Text

from tests.e2e.installer_site import Site
from tests.support import plugin as plugins
from tests.support.kube import KubeCluster
from tests.support.openbao import OpenBao
from tests.support.softhsm import make_token

_FOLDER = Path(__file__).parents[1] / "docs" / "screens"
_COLUMNS, _ROWS = 100, 400
_SECONDS = 120.0
_DONE = "screen-done-"
_PICTURES = ("check", "plan", "apply", "status")
_SHOWN_ROWS = 46
_NODES = 4
_EXIT_CODES = ("0", "2", "79")


@dataclass(frozen=True, slots=True)
class Tmux:
    """One session of a tmux server of its own."""

    socket: Path

    def tmux(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Return what tmux writes; the first call's environment is the server's."""
        command = ["tmux", "-S", str(self.socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    def type(self, line: str) -> None:
        """Type a line into the pane, and press Enter."""
        self.tmux("send-keys", "-t", "main", "-l", line)
        self.tmux("send-keys", "-t", "main", "Enter")

    def wait_for(self, file: Path) -> None:
        """Return once the file is there: the command before has ended."""
        ends = time.monotonic() + _SECONDS
        while not file.exists():
            if time.monotonic() > ends:
                raise TimeoutError(self.tmux("capture-pane", "-p", "-t", "main"))
            time.sleep(0.05)

    def shown(self) -> str:
        """Return the pane with its colours, as ANSI text."""
        return self.tmux("capture-pane", "-e", "-p", "-t", "main")


def main() -> int:
    """Write the pictures, and return the exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="screens-") as name,
        _site(Path(name)) as site,
        _session(site) as tmux,
    ):
        _FOLDER.mkdir(exist_ok=True)
        for picture in _PICTURES:
            text = _run(tmux, site.folder, picture)
            (_FOLDER / f"{picture}.svg").write_text(_svg(picture, text))
            sys.stdout.write(f"docs/screens/{picture}.svg\n")
    return 0


@contextmanager
def _site(folder: Path) -> Iterator[Site]:
    """Make an operator's folder with the names of the guide, and nothing applied."""
    bao = OpenBao(folder / "bao")
    bao.start()
    try:
        with (
            KubeCluster() as kube,
            plugins.running(make_token(folder / "token"), folder / "hsm") as plugin,
        ):
            site = Site(folder / "operator", kube, bao, plugin)
            script = site.istioctl.read_text().replace(site.istio_namespace, "istio-system")
            site.istioctl.write_text(script)
            site.suffix, site.kek_id = "c1", "7651a4ea-eeb7-4c1f-927b-8c871c2127aa"
            site.istio_namespace, site.reviewer_namespace = "istio-system", "vault"
            site.configure(istioctl=Path("istioctl"))
            (site.folder / "kubeconfig").symlink_to(kube.kubeconfig())
            _populate(client.CoreV1Api(kube.admin_client()))
            yield site
    finally:
        bao.stop()


def _populate(core: client.CoreV1Api) -> None:
    """Make the nodes that the guide asks for, and one Service that Istio could not read."""
    for number in range(_NODES):
        name = f"node-{number}"
        core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=name)))
        allocatable = {"cpu": "4", "memory": "16Gi", "pods": "110"}
        body = {"status": {"allocatable": allocatable, "capacity": allocatable}}
        core.patch_node_status(name, body)
    port = client.V1ServicePort(port=8080, name="web")
    spec = client.V1ServiceSpec(ports=[port], selector={"app": "shop"})
    core.create_namespaced_service(
        "default", client.V1Service(metadata=client.V1ObjectMeta(name="shop"), spec=spec)
    )


@contextmanager
def _session(site: Site) -> Iterator[Tmux]:
    tmux = Tmux(site.folder / "tmux")
    environment = {
        "PATH": f"{site.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(site.folder),
        "VAULT_TOKEN_FILE": str(site.folder / "vault-token"),
        "COLORTERM": "truecolor",
        "PS1": "$ ",
    }
    size = ("-x", str(_COLUMNS), "-y", str(_ROWS))
    shell = ("bash", "--norc", "--noprofile")
    session = ("new-session", "-d", "-s", "main", *size, "-c", str(site.folder), *shell)
    tmux.tmux(*session, env=environment)
    try:
        yield tmux
    finally:
        tmux.tmux("kill-server")


def _run(tmux: Tmux, folder: Path, command: str) -> str:
    """Return what the pane shows from the command's line on."""
    done = folder / f"{_DONE}{command}"
    tmux.type("clear")
    tmux.type(f"istio-hsm {command} --kubeconfig kubeconfig; echo $? >.code; mv .code {done.name}")
    tmux.wait_for(done)
    if done.read_text().strip() not in _EXIT_CODES:
        raise RuntimeError(tmux.tmux("capture-pane", "-p", "-t", "main").strip())
    time.sleep(0.3)  # the prompt after it
    lines = tmux.shown().rstrip().splitlines()
    first = next(n for n, line in enumerate(lines) if "istio-hsm" in line)
    shown = [f"$ istio-hsm {command}", *lines[first + 1 : -1]]
    if len(shown) > _SHOWN_ROWS:
        left = len(shown) - _SHOWN_ROWS + 1
        shown = [*shown[: _SHOWN_ROWS - 4], f"    ... {left} lines more ...", *shown[-3:]]
    return "\n".join(shown)


def _svg(command: str, ansi: str) -> str:
    console = Console(record=True, width=_COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    console.print(Text.from_ansi(ansi), soft_wrap=False)
    svg = console.export_svg(title=f"istio-hsm {command}", unique_id=f"istio-hsm-{command}")
    without_fonts = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return without_fonts.replace("Fira Code", "ui-monospace, Menlo, Consolas")


if __name__ == "__main__":
    sys.exit(main())
