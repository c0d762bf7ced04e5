"""The dashboard's queries against a real Prometheus, and its picture in the docs."""

import html
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from chaos.waiting import wait_until
from demo.panel_picture import Span, draw
from demo.panels import DashboardError, Line, Panel, Query, fill, lines, read
from tests.support import prometheus
from tests.support.kube import KubeCluster
from tests.support.prometheus import Prometheus, Scraped, Series

REPOSITORY = Path(__file__).parents[3]
DASHBOARD = REPOSITORY / "deploy" / "monitoring" / "dashboard.json"
PICTURE = REPOSITORY / "docs" / "screens" / "dashboard.svg"
PANEL = Panel("timeseries", "Up", 0, 0, 8, 7, "short", (), (Query("up", "{{instance}}"),))


@pytest.fixture(scope="module")
def server(
    prometheus_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """One that scrapes a port where nobody listens: `up` is 0."""
    assert prometheus_program
    nobody = Scraped("nobody", "127.0.0.1:9", {"instance": "nobody"})
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus.running(folder, [nobody], every="100ms") as server:
        wait_until(lambda: bool(asked(server, "up")), lambda: "a scrape", seconds=30)
        yield server


def asked(server: Prometheus, query: str) -> Sequence[Series]:
    now = time.time()
    return server.query_range(query, now - 5, now, 1)


def texts(picture: str) -> set[str]:
    return {html.unescape(it) for it in re.findall(r">([^<]+)</(?:text|title)>", picture)}


def places(picture: str) -> list[str]:
    """Return the texts that name a path or an address of some machine."""
    return [it for it in texts(picture) if re.search(r"(?<!\w)/\w+/|\d+\.\d+\.\d+\.\d+", it)]


def shows(picture: str) -> list[str]:
    """Return the titles of the dashboard's panels that the picture lacks."""
    return [it.title for it in read(DASHBOARD)[1] if it.title not in texts(picture)]


def documented() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def test_what_a_query_brings_is_what_its_panel_shows(server: Prometheus) -> None:
    [line] = lines(PANEL, partial(asked, server), {})

    assert line.label == "nobody"
    assert line.last == 0


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("up{", "bad_data: "),
        ("nobody_exports_this", "nothing comes of"),
        ("up / up", "nothing comes of"),  # 0 / 0 is no number
        ("up{instance=~'$other'}", r"nobody sets \$other"),
    ],
)
def test_a_query_that_fails_or_brings_no_number_is_an_error(
    server: Prometheus, query: str, reason: str
) -> None:
    with pytest.raises(DashboardError, match=reason):
        lines(replace(PANEL, queries=(Query(query, ""),)), partial(asked, server), {})


def test_rules_that_cannot_be_evaluated_are_told(prometheus_program: str, tmp_path: Path) -> None:
    assert prometheus_program
    sound = {"alert": "Sound", "expr": "vector(1)"}
    torn = {"alert": "Torn", "expr": "up + on () group_left () up"}
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": [sound, torn]}]}))
    two = [Scraped("nobody", f"127.0.0.1:{port}", {}) for port in (9, 10)]
    with prometheus.running(tmp_path / "server", two, [file], every="100ms") as server:
        wait_until(
            lambda: list(server.rule_errors()) == ["Torn"], lambda: "an evaluation", seconds=30
        )

        assert "many-to-many matching not allowed" in server.rule_errors()["Torn"]


def test_the_panels_lie_in_the_grid_and_none_on_another() -> None:
    found = read(DASHBOARD)[1]
    assert len(found) > 25
    for panel in found:
        assert panel.x >= 0
        assert panel.x + panel.width <= 24, panel.title
    for one, other in combinations(found, 2):
        apart = (
            one.x + one.width <= other.x
            or other.x + other.width <= one.x
            or one.y + one.height <= other.y
            or other.y + other.height <= one.y
        )
        assert apart, (one.title, other.title)


def test_each_panel_and_each_query_of_a_panel_has_a_name_of_its_own() -> None:
    panels = documented()["panels"]
    for key in ("id", "title"):
        assert len({it[key] for it in panels}) == len(panels)
    for panel in panels:
        names = [it["refId"] for it in panel.get("targets", [])]
        assert len(set(names)) == len(names), panel["title"]


def test_each_label_that_a_legend_names_is_one_that_its_query_keeps() -> None:
    for panel in read(DASHBOARD)[1]:
        for query in panel.queries:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            kept = re.search(r"\bby \(([^)]*)\)", query.expression)
            if kept:
                assert wanted <= set(kept[1].split(", ")), query
            elif re.match(r"(sum|min|max)\b", query.expression):
                assert not wanted, query


def test_every_variable_of_the_queries_is_set() -> None:
    _, panels, variables = read(DASHBOARD)
    for panel in panels:
        for query in panel.queries:
            assert "$" not in fill(query.expression, variables | {"__rate_interval": "4s"})


def test_the_picture_of_the_docs_shows_every_panel_and_says_what_it_is() -> None:
    picture = PICTURE.read_text()

    assert shows(picture) == []
    assert any("no screenshot of Grafana" in text for text in texts(picture))
    assert places(picture) == []


def test_a_picture_without_a_panel_or_with_an_address_is_seen() -> None:
    picture = PICTURE.read_text().replace(">Leaders<", ">wait 127.0.0.1:9<")

    assert shows(picture) == ["Leaders"]
    assert places(picture) == ["wait 127.0.0.1:9"]


def test_a_picture_holds_what_was_measured_and_breaks_where_there_was_nothing() -> None:
    line = Line("a & b", ((0, 1), (1, 2), (8, 1), (9, 3)))
    stat = replace(PANEL, kind="stat", title="Now", y=7, steps=((0, "red"), (3, "green")))

    picture = draw("D", ("what",), [(PANEL, [line]), (stat, [line])], Span(0, 10, 1))

    assert {"D", "what", "Up", "Now", "a & b", "3"} <= texts(picture)
    assert picture.count('stroke-width="1.5"') == 2
    assert "#37872d" in picture
    assert "#c4162a" not in picture


def test_a_panel_that_cannot_be_drawn_is_an_error() -> None:
    pie = replace(PANEL, kind="piechart")

    with pytest.raises(DashboardError, match="of type piechart are not drawn"):
        draw("D", (), [(pie, [Line("a", ((0, 1),))])], Span(0, 1, 1))


def test_a_unit_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    document = documented()
    document["panels"][0]["fieldConfig"]["defaults"]["unit"] = "furlongs"
    (tmp_path / "dashboard.json").write_text(json.dumps(document))

    with pytest.raises(DashboardError, match="unit furlongs is not drawn"):
        read(tmp_path / "dashboard.json")


@pytest.mark.timeout(300)
def test_every_query_of_the_dashboard_brings_figures_of_the_whole_system(
    kube: KubeCluster, prometheus_program: str, tmp_path: Path
) -> None:
    """`kube` has the programs of a cluster built before."""
    assert kube.pids()
    assert prometheus_program
    done = subprocess.run(
        [
            *(sys.executable, "-m", "demo.dashboard", "--seconds", "15"),
            *("--out", str(tmp_path / "dashboard.svg")),
        ],
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "dashboard.svg").read_text()
    assert (shows(picture), places(picture)) == ([], [])
