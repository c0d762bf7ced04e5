"""`make bench`: the measurements on SoftHSM2, side by side in one run.

Writes results.json and SVG charts. Figures are medians on this machine; compare ratios, not
machines. They say nothing about a Luna.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import ca, ca_steps, client, herd, plugin, plugin_front, target, vault_client

_OBJECTS = (1, 10, 100, 1_000, 10_000)

Section = Callable[[Path], object]

_SECTIONS: dict[str, tuple[str, Section]] = {
    "client": ("what the load client itself can do", lambda _: client.ceiling()),
    "raw": ("the bare token, by threads", plugin.raw),
    "plugin": ("every call beside an empty echo", plugin.rates),
    "seldom": ("the calls that are made seldom", plugin.seldom),
    "concurrency": ("growth with calls at once", plugin.concurrency),
    "sizes": ("growth with the message", plugin.sizes),
    "objects": ("growth with keys in the token", partial(plugin.objects, counts=_OBJECTS)),
    "latency": ("a slower HSM, by sessions", plugin.latency),
    "startup": ("from start to serving", plugin.startup),
    "memory": (f"memory over {plugin.MEMORY_CALLS:,} calls", plugin.memory),
    "front": ("the plugin behind its front, beside one without", plugin_front.cost),
    "ca": ("CreateCertificate by token and by certificate", ca.rates),
    "ca_workers": ("one bridge of one worker and of two, over 8 connections", ca.by_workers),
    "ca_steps": ("the steps of CreateCertificate, each alone", ca_steps.micros),
    "herd": (f"{herd.SIDECARS:,} sidecars at once", herd.rush),
    "vault_client": ("from start to files in place", vault_client.run),
}


def main() -> int:
    """Return the exit code."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.target:
        results: dict[str, object] = {"target": target.rates(options.target, options.kek_id)}
    else:
        results = {"token": "SoftHSM2"}
        for name in options.sections or _SECTIONS:
            what, measure = _SECTIONS[name]
            sys.stderr.write(f"{name}: {what} ...")
            sys.stderr.flush()
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                results[name] = measure(Path(folder))
            _write(results, options.out)  # what is measured is kept, whatever happens to the rest
            sys.stderr.write(f" {time.perf_counter() - started:.0f} s\n")
    document = _write(results, options.out)
    from bench import charts  # noqa: PLC0415 - pygal changes how every later import is looked up

    for path in charts.draw(json.loads(document), options.out):
        sys.stderr.write(f"wrote {path}\n")
    sys.stdout.write(document)
    return 0


def _write(results: dict[str, object], folder: Path) -> str:
    document = json.dumps(results, indent=2) + "\n"
    (folder / "results.json").write_text(document)
    return document


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(_SECTIONS)}"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder to write")
    parser.add_argument(
        "--target", metavar="ADDRESS", help="measure another server of the plugin's reference API"
    )
    parser.add_argument("--kek-id", default="bench", help="a KEK of that server")
    options = parser.parse_args()
    unknown = set(options.sections) - set(_SECTIONS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
