"""Each alert fires when it should, is silent when it should be, and says where to read on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dashboards import ROOT
from tests.support.pages import blocks_of
from tests.support.prometheus import MISSING, promtool

RULES = ROOT / "grafana" / "alerts.yaml"
PAGE = ROOT / "docs" / "monitoring.md"
TESTS = ROOT / "tests" / "monitoring" / "alerts_test.yaml"

needs_promtool = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def _alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def _tests() -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text())["tests"]
    return tests


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(_alerts())} rules found" in promtool("check", "rules", RULES)


@needs_promtool
def test_prometheus_takes_the_configuration_that_the_documentation_shows(tmp_path: Path) -> None:
    [shown] = [block for block in blocks_of(PAGE) if block.language == "yaml"]
    (tmp_path / "prometheus.yml").write_text(shown.text)
    shutil.copy(RULES, tmp_path)
    assert "1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
def test_each_alert_fires_and_stays_silent_as_its_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    fires = {
        (label["alertname"], label["severity"])
        for test in _tests()
        for question in test["promql_expr_test"]
        for sample in question["exp_samples"]
        for label in [dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))]
        if label["alertstate"] == "firing"
    }
    assert fires == {(alert["alert"], alert["labels"]["severity"]) for alert in _alerts()}


def test_each_alert_is_silent_while_a_fleet_is_well() -> None:
    """The test of a fleet that is well has samples of all that the alerts ask for, so that silence says something."""
    well = next(test for test in _tests() if "is well" in test["name"])
    assert all(question["exp_samples"] == [] for question in well["promql_expr_test"])
    given = {series["series"].partition("{")[0] for series in well["input_series"]}
    for alert in _alerts():
        assert set(re.findall(r"\b(zart_\w+|up)\b", alert["expr"])) <= given, alert["alert"]


def test_each_alert_says_what_to_do_and_where_that_is_written() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    page = PAGE.read_text()
    for alert in _alerts():
        named = re.match(r'docs/operations\.md, "([^"]+)": .{40}', alert["annotations"]["runbook"])
        assert named, alert["alert"]
        assert named[1] in sections, alert["alert"]
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert f"| `{alert['alert']}` |" in page, alert["alert"]
