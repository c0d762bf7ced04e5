"""The figures as SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pygal
from pygal.style import CleanStyle

_STYLE = CleanStyle(font_family="sans-serif", background="white", plot_background="white")
Series = Mapping[str, Mapping[Any, float]]


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write one SVG for each kind of figure that is there, and return their paths."""
    drawn = []
    if "plugin" in results:
        rates = {name: figure["per_second"] for name, figure in results["plugin"].items()}
        drawn.append(_bars(rates, folder / "calls.svg", "calls a second, 16 at once"))
    if "concurrency" in results:
        path = folder / "concurrency.svg"
        drawn.append(_lines(results["concurrency"], path, "calls a second by calls at once"))
    if "latency" in results:
        series = {
            f"{name}, {delay} added": {
                sessions: figures[delay][name] for sessions, figures in results["latency"].items()
            }
            for delay, rates in next(iter(results["latency"].values())).items()
            for name in rates
            if delay != "0 ms" and name != "LoadSKey"
        }
        path = folder / "sessions.svg"
        drawn.append(_lines(series, path, "signatures a second by sessions"))
    if "ca" in results:
        rates = {
            f"{algorithm}, by {way}, {many} at once": figures["per_second"]
            for algorithm, ways in results["ca"].items()
            for way, loads in ways.items()
            for many, figures in loads.items()
        }
        drawn.append(_bars(rates, folder / "certificates.svg", "certificates a second"))
    return drawn


def _bars(rates: Mapping[str, float], path: Path, title: str) -> Path:
    chart = pygal.HorizontalBar(
        style=_STYLE, title=title, show_legend=False, print_values=True, js=[], height=360
    )
    chart.x_labels = list(rates)
    chart.add("", list(rates.values()))
    return _write(chart, path)


def _lines(series: Series, path: Path, title: str) -> Path:
    chart = pygal.Line(style=_STYLE, title=title, js=[], height=420, legend_at_bottom=True)
    chart.x_labels = [str(key) for key in next(iter(series.values()))]
    for name, values in series.items():
        chart.add(name, list(values.values()))
    return _write(chart, path)


def _write(chart: Any, path: Path) -> Path:
    path.write_text(chart.render(disable_xml_declaration=True))
    return path
