"""The alert rules as promtool judges them: each alert fires when it should, and only then."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
NAMES = ("hsm-plugin", "istiod-ca-bridge")
_FAILED = re.compile(r"alertname: ?(\w+)")

Rule = dict[str, Any]


def rules(name: str) -> list[Rule]:
    groups = yaml.safe_load((MONITORING / f"{name}.rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def judged(promtool: str, what: str, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool, what, "rules", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def failed(promtool: str, name: str, folder: Path, change: Callable[[Rule], None]) -> set[str]:
    """Return the alerts whose tests fail once every rule was changed."""
    document = yaml.safe_load((MONITORING / f"{name}.rules.yaml").read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            change(rule)
    (folder / f"{name}.rules.yaml").write_text(yaml.safe_dump(document))
    tests = shutil.copy(MONITORING / f"{name}.rules-test.yaml", folder)
    done = judged(promtool, "test", Path(tests))
    assert done.returncode == 1
    return set(_FAILED.findall(done.stdout + done.stderr))


@pytest.mark.parametrize("name", NAMES)
def test_promtool_takes_the_rules(promtool: str, name: str) -> None:
    done = judged(promtool, "check", MONITORING / f"{name}.rules.yaml")

    assert done.returncode == 0, done.stderr
    assert f"{len(rules(name))} rules found" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_does_on_its_figures_what_its_tests_say(promtool: str, name: str) -> None:
    done = judged(promtool, "test", MONITORING / f"{name}.rules-test.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_a_test_that_raises_it_and_one_that_does_not(name: str) -> None:
    tried = yaml.safe_load((MONITORING / f"{name}.rules-test.yaml").read_text())["tests"]
    cases = [case for test in tried for case in test["alert_rule_test"]]
    for rule in rules(name):
        raised = ["exp_alerts" in it for it in cases if it["alertname"] == rule["alert"]]
        assert sorted(raised) == [False, True], rule["alert"]
    assert {it["alertname"] for it in cases} == {rule["alert"] for rule in rules(name)}


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_see_an_alert_that_never_fires_and_one_that_always_does(
    promtool: str, name: str, tmp_path: Path
) -> None:
    def never(rule: Rule) -> None:
        rule["expr"] = "vector(0) == 1"

    def always(rule: Rule) -> None:
        rule["expr"] = "vector(1)"
        rule.pop("for", None)

    alerts = {rule["alert"] for rule in rules(name)}
    assert failed(promtool, name, tmp_path, never) == alerts
    assert failed(promtool, name, tmp_path, always) == alerts


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_cannot_be_read_is_refused(promtool: str, name: str, tmp_path: Path) -> None:
    text = (MONITORING / f"{name}.rules.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(text.replace("expr: ", "expr: )", 1))

    assert judged(promtool, "check", tmp_path / "broken.yaml").returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    found = rules(name)
    assert len({rule["alert"] for rule in found}) == len(found) > 10
    for rule in found:
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
