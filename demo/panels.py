"""A Grafana dashboard's panels: where each lies, what it asks for, and what came of it."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.quantities import UNITS
from tests.support.prometheus import QueryError, Series

Ask = Callable[[str], Sequence[Series]]
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class DashboardError(Exception):
    """The dashboard is not one that can be drawn, and why."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, as it is written, and how its lines are called."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; a row is a heading without queries."""

    kind: str
    title: str
    x: int
    y: int
    width: int
    height: int
    unit: str
    steps: tuple[tuple[float, str], ...]
    """From which value on it has which colour, where its background tells it."""
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """What a panel shows of one series."""

    label: str
    points: tuple[tuple[float, float], ...]
    """Value by time; without what is no number."""

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]


def read(file: Path) -> tuple[str, tuple[Panel, ...], dict[str, str]]:
    """Return a dashboard's title, its panels, and its variables as they are at first: all."""
    document = json.loads(file.read_text())
    variables = {
        entry["name"]: entry["allValue"]
        for entry in document["templating"]["list"]
        if entry.get("includeAll")
    }
    return document["title"], tuple(_panel(it) for it in document["panels"]), variables


def fill(expression: str, variables: Mapping[str, str]) -> str:
    """Return a query with its variables replaced; DashboardError when one is not known."""

    def value(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if name not in variables:
            raise DashboardError(f"nobody sets ${name} in `{expression}`")
        return variables[name]

    return _VARIABLE.sub(value, expression)


def lines(panel: Panel, ask: Ask, variables: Mapping[str, str]) -> list[Line]:
    """Return what a panel shows; DashboardError for a query that fails or brings no number."""
    shown: list[Line] = []
    for query in panel.queries:
        expression = fill(query.expression, variables)
        try:
            answer = ask(expression)
        except QueryError as error:
            raise DashboardError(f"{panel.title}: {error}: `{expression}`") from error
        found = [Line(_label(query.legend, it.labels), _numbers(it.points)) for it in answer]
        found = [line for line in found if line.points]
        if not found:
            raise DashboardError(f"{panel.title}: nothing comes of `{expression}`")
        shown += sorted(found, key=lambda line: line.label)
    return shown


def _panel(entry: Mapping[str, Any]) -> Panel:
    place, title = entry["gridPos"], entry["title"]
    defaults = entry.get("fieldConfig", {}).get("defaults", {})
    unit = defaults.get("unit", "short")
    if unit not in UNITS:
        raise DashboardError(f"{title}: the unit {unit} is not drawn")
    is_coloured = entry.get("options", {}).get("colorMode") == "background"
    steps = defaults.get("thresholds", {}).get("steps", []) if is_coloured else []
    return Panel(
        kind=entry["type"],
        title=title,
        x=place["x"],
        y=place["y"],
        width=place["w"],
        height=place["h"],
        unit=unit,
        steps=tuple(
            (-math.inf if it["value"] is None else it["value"], it["color"]) for it in steps
        ),
        queries=tuple(Query(it["expr"], it["legendFormat"]) for it in entry.get("targets", [])),
    )


def _label(legend: str, labels: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: labels.get(found[1], ""), legend).strip()


def _numbers(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((at, value) for at, value in points if math.isfinite(value))
