"""A dashboard as one SVG: each panel in its place of the grid, with title, unit and legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from demo.panels import DashboardError, Line, Panel
from demo.quantities import ticks, written

_COLUMN, _ROW, _GAP, _MARGIN = 60, 38, 8, 12
_HEAD = 84
_COLUMNS = 24
_LETTER = 6.4
"""About the width of a letter of the legend."""
_BACKGROUND, _PANEL, _EDGE, _GRID = "#111217", "#181b1f", "#2a2d33", "#26292f"
_TEXT, _DIM = "#ccccdc", "#8e8ea0"
_LINES = (
    *("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#5195ce", "#ba43a9", "#9a86c9"),
    *("#3f6833", "#cca300", "#447ebc", "#c15c17", "#890f02", "#b7dbab", "#f4d598", "#70dbed"),
)
_STEPS = {"red": "#c4162a", "orange": "#d9730d", "green": "#37872d"}

Shown = tuple[Panel, Sequence[Line]]


@dataclass(frozen=True, slots=True)
class Span:
    """The time that is shown, in seconds since the epoch."""

    start: float
    end: float
    step: float
    """Between one point and the next."""


def draw(title: str, below: Sequence[str], shown: Sequence[Shown], span: Span) -> str:
    """Return the picture; DashboardError for a kind of panel that it does not know."""
    width = _COLUMNS * _COLUMN + 2 * _MARGIN
    height = _HEAD + max(it.y + it.height for it, _ in shown) * _ROW + _MARGIN
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "font-family": "Inter, Helvetica, Arial, sans-serif",
            "font-size": "11",
            "role": "img",
        },
    )
    ET.SubElement(svg, "title").text = title
    _rectangle(svg, 0, 0, width, height, _BACKGROUND)
    _text(svg, _MARGIN, 28, title, size=20)
    for number, line in enumerate(below):
        _text(svg, _MARGIN, 48 + 16 * number, line, fill=_DIM, size=12)
    for panel, lines in shown:
        group = ET.SubElement(
            svg,
            "g",
            {"transform": f"translate({_MARGIN + panel.x * _COLUMN} {_HEAD + panel.y * _ROW})"},
        )
        _Frame(group, panel).fill(lines, span)
    ET.indent(svg, " ")
    return ET.tostring(svg, encoding="unicode") + "\n"


class _Frame:
    def __init__(self, group: ET.Element, panel: Panel) -> None:
        self._group = group
        self._panel = panel
        self._width = panel.width * _COLUMN - _GAP
        self._height = panel.height * _ROW - _GAP

    def fill(self, lines: Sequence[Line], span: Span) -> None:
        """Draw what the panel shows."""
        match self._panel.kind:
            case "row":
                _text(self._group, 0, 20, self._panel.title, size=14)
            case "stat":
                self._box()
                self._stat(lines)
            case "timeseries":
                self._box()
                self._graph(lines, span)
            case other:
                raise DashboardError(f"{self._panel.title}: panels of type {other} are not drawn")

    def _box(self) -> None:
        _rectangle(self._group, 0, 0, self._width, self._height, _PANEL, edge=_EDGE)
        wide = 8 * self._panel.width - 2
        _text(self._group, 10, 20, _cut(self._panel.title, wide), size=13)

    def _stat(self, lines: Sequence[Line]) -> None:
        top, each = 32, self._width / len(lines)
        if self._panel.steps:
            value = lines[0].last
            colour = [name for least, name in self._panel.steps if value >= least][-1]
            _rectangle(
                self._group, 6, top, self._width - 12, self._height - top - 6, _STEPS[colour]
            )
        middle = top + (self._height - top) / 2
        size = 34 if len(lines) == 1 else 20
        for number, line in enumerate(lines):
            across = each * (number + 0.5)
            told = written(line.last, self._panel.unit)
            _text(self._group, across, middle + size / 4, told, size=size, anchor="middle")
            if len(lines) > 1:
                _text(
                    self._group, across, middle + 28, line.label, fill=_DIM, size=9, anchor="middle"
                )

    def _graph(self, lines: Sequence[Line], span: Span) -> None:
        seconds = span.end - span.start
        legend = self._legend(lines)
        left, right, top = 74, self._width - 12, 34
        bottom = self._height - 24 - 16 * len(legend)
        values = [value for line in lines for _, value in line.points]
        marks = ticks(max(*values, 0.0) or 1.0, self._panel.unit)

        def place(at: float, value: float) -> str:
            across = left + (at - span.start) / seconds * (right - left)
            return f"{across:.1f},{bottom - value / marks[-1] * (bottom - top):.1f}"

        for mark in marks:
            y = bottom - mark / marks[-1] * (bottom - top)
            _stroke(self._group, f"{left},{y:.1f} {right},{y:.1f}", _GRID)
            told = written(mark, self._panel.unit)
            _text(self._group, left - 6, y + 4, told, fill=_DIM, size=10, anchor="end")
        for part in range(4):
            at = seconds * part / 3
            anchor = "end" if part == 3 else "middle"  # noqa: PLR2004 - the last one
            across = left + (right - left) * part / 3
            _text(
                self._group, across, bottom + 14, f"{at:.0f} s", fill=_DIM, size=10, anchor=anchor
            )
        for number, line in enumerate(lines):
            for run in _runs(line.points, 2.5 * span.step):
                path = " ".join(place(at, max(value, 0.0)) for at, value in run)
                _stroke(self._group, path, _LINES[number % len(_LINES)], wide="1.5")
        for row, entries in enumerate(legend):
            self._write_legend(entries, self._height - 16 * (len(legend) - row) + 6)

    def _legend(self, lines: Sequence[Line]) -> list[list[tuple[int, str]]]:
        """Return the entries row by row: number of the line, and label."""
        rows: list[list[tuple[int, str]]] = [[]]
        used = 0.0
        for number, line in enumerate(lines):
            needed = 24 + _LETTER * len(line.label)
            if rows[-1] and used + needed > self._width - 20:
                rows.append([])
                used = 0.0
            rows[-1].append((number, line.label))
            used += needed
        return rows

    def _write_legend(self, entries: Sequence[tuple[int, str]], y: float) -> None:
        across = 10.0
        for number, label in entries:
            _stroke(
                self._group,
                f"{across:.0f},{y - 4:.0f} {across + 12:.0f},{y - 4:.0f}",
                _LINES[number % len(_LINES)],
                wide="3",
            )
            _text(self._group, across + 16, y, label, size=10)
            across += 24 + _LETTER * len(label)


def _runs(points: Sequence[tuple[float, float]], widest: float) -> list[list[tuple[float, float]]]:
    """Return the points in groups, parted where there was no number for so long."""
    runs: list[list[tuple[float, float]]] = []
    for point in points:
        if not runs or point[0] - runs[-1][-1][0] > widest:
            runs.append([])
        runs[-1].append(point)
    return runs


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _rectangle(
    parent: ET.Element, x: float, y: float, width: float, height: float, fill: str, edge: str = ""
) -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"}
    look = {"fill": fill, "rx": "2"} | ({"stroke": edge} if edge else {})
    ET.SubElement(parent, "rect", place | look)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    fill: str = _TEXT,
    size: int = 11,
    anchor: str = "start",
) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "fill": fill, "font-size": str(size)}
    written_here = ET.SubElement(parent, "text", place | {"text-anchor": anchor})
    written_here.text = text


def _stroke(parent: ET.Element, points: str, colour: str, *, wide: str = "1") -> None:
    look = {"fill": "none", "stroke": colour, "stroke-width": wide}
    ET.SubElement(parent, "polyline", {"points": points} | look)
