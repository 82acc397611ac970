"""The dashboard and the alert rules ask for metrics that exist, and promtool finds nothing wrong with either."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
ALERT_TESTS = ROOT / "tests" / "prometheus-alerts-test.yml"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DOCS = (ROOT / "docs" / "metrics.md").read_text()
# name, type, labels; tests/blackbox/test_scrapes.py compares them with what a daemon tells
ROWS = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| *([^|]*?) *\|", DOCS, re.MULTILINE)

METRIC = re.compile(r"\b((?:modeld|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
OF_TARGETS = {"instance", "job"}  # which Prometheus adds


def known() -> dict[str, set[str]]:
    """Labels by series name."""
    found = {"up": OF_TARGETS}
    for name, kind, labels in ROWS:
        told = set(re.findall(r"`([a-z_]+)`", labels)) | OF_TARGETS
        if kind == "histogram":
            found |= {f"{name}_bucket": told | {"le"}, f"{name}_sum": told, f"{name}_count": told}
        else:
            found[name] = told
    return found


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    of_variables = [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    of_annotations = [one["expr"] for one in DASHBOARD["annotations"]["list"]]
    return [*of_panels, *of_variables, *of_annotations, *(rule["expr"] for rule in RULES)]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_what_exists(expression: str) -> None:
    series = known()
    asked = METRIC.findall(expression)
    assert asked or "up{" in expression
    for name, selectors in asked:
        assert name in series, f"there is no {name}"
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors)) <= series[name]
    all_labels = set().union(*(series[name] for name, _ in asked)) if asked else OF_TARGETS
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", grouping)) <= all_labels


def test_the_search_for_metrics_finds_them() -> None:
    """It could not fail if it found nothing."""
    asked = {name for expression in expressions() for name, _ in METRIC.findall(expression)}
    assert len(asked) > 40
    assert METRIC.findall("rate(modeld_nothing_total{a='b'}[5m])") == [("modeld_nothing_total", "a='b'")]


def test_every_metric_has_a_panel() -> None:
    asked = {name for expression in expressions() for name, _ in METRIC.findall(expression)}
    for name, kind, _ in ROWS:
        assert asked & ({f"{name}_bucket", f"{name}_sum"} if kind == "histogram" else {name}), f"no panel shows {name}"


def test_every_legend_names_labels_that_its_series_has() -> None:
    series = known()
    for panel in panels():
        for target in panel["targets"]:
            labels = set().union(*(series[name] for name, _ in METRIC.findall(target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


def test_panels_have_names_places_and_ids_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not places & cells, f"{panel['title']} lies on another panel"
        places |= cells
    assert all(panel["title"] and panel["description"] for panel in panels())
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "State and switches",
        "Requests and latency",
        "Tokens",
        "Queue, slots and engine",
        "Process",
    ]


def test_promtool_understands_the_expressions_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    """As recording rules, with Grafana's variables filled in."""
    filled = [
        target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$job", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]
    assert not [expression for expression in filled if "$" in expression]
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(filled)]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(filled)} rules found" in done.stdout


def test_promtool_accepts_the_rules(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_each_alert_fires_when_it_should_and_only_then(promtool: str) -> None:
    done = subprocess.run([promtool, "test", "rules", str(ALERT_TESTS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    rests: set[str] = set()
    for case in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for test in case["alert_rule_test"]:
            (fires if test["exp_alerts"] else rests).add(test["alertname"])
    assert fires == rests == {rule["alert"] for rule in RULES}


def test_each_alert_is_documented() -> None:
    described = re.findall(r"^\| `(\w+)` \|", DOCS.partition("## Alerts")[2], re.MULTILINE)
    assert sorted(described) == sorted(rule["alert"] for rule in RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_points_to_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    found = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##)", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert found
    assert re.search(r"^1\. ", found[1], re.MULTILINE), "no step"
    assert {name for name, _ in METRIC.findall(found[1])} <= {name for name, _, _ in ROWS}


def test_the_guide_names_metrics_that_exist() -> None:
    named = set(re.findall(r"`((?:modeld|process)_[a-z_]+)`", OPERATIONS))
    assert len(named) > 15
    assert named <= {name for name, _, _ in ROWS}


def test_no_alert_is_described_that_is_no_rule() -> None:
    described = re.findall(r"^### (\w+)$", OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0], re.MULTILINE)
    assert described == [rule["alert"] for rule in RULES]


def test_each_alert_says_how_grave_it_is_and_what_is_wrong() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
