"""The dashboards say what Grafana understands and what an operator needs to know."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.build import DASHBOARDS, text_of
from tests.support.dashboards import DIRECTORY, FILES, ROOT, expressions, panels, read
from tests.support.prometheus import MISSING, promtool

_FIRST = {
    "fleet.json": ("Alerts", "Backlog is done in", "Oldest work waiting"),
    "executions.json": ("Failing", "Backlog is done in", "Oldest work waiting"),
    "postgresql.json": ("Exporter reaches it", "Commits", "Longest transaction"),
}
"""What tells in the first row whether all is well, whether it keeps up, and what is oldest."""

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_committed_files_are_what_the_program_writes() -> None:
    assert {path.name: path.read_text() for path in FILES} == {
        name: text_of(dashboard) for name, dashboard in DASHBOARDS.items()
    }, "run python -m grafana.build"


@each_file
def test_grafana_knows_every_field(path: Path) -> None:
    """Grafana's own model of a dashboard reads it and loses nothing."""
    register_default_plugins()
    written = read(path)
    understood = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert list(_lost(written, understood)) == []


@each_file
def test_each_panel_says_what_it_shows_and_what_to_do(path: Path) -> None:
    dashboard = read(path)
    for panel in panels(dashboard):
        assert panel["type"] in ("timeseries", "stat", "table", "bargauge")
        assert panel["title"], panel
        assert len(panel["description"]) > 60, panel["title"]
        assert panel["description"].endswith((".", "`.")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    assert [each["name"] for each in dashboard["templating"]["list"]][:3] == ["datasource", "job", "instance"]


@each_file
def test_the_first_row_answers_the_first_questions(path: Path) -> None:
    shown = panels(read(path))
    first = [panel["title"] for panel in shown if panel["gridPos"]["y"] == 1]
    assert [panel["type"] for panel in shown[: len(first)]] == ["stat"] * len(first)
    assert set(_FIRST[path.name]) <= set(first)


@each_file
def test_panels_have_ids_and_places_of_their_own(path: Path) -> None:
    every = read(path)["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        assert 0 <= panel["gridPos"]["x"] < panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in every], 2):
        assert not (
            one["x"] < other["x"] + other["w"]
            and other["x"] < one["x"] + one["w"]
            and one["y"] < other["y"] + other["h"]
            and other["y"] < one["y"] + one["h"]
        ), (one, other)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_prometheus_can_parse_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.text}
        for number, expression in enumerate(itertools.chain(*map(expressions, FILES)))
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_grafana_is_told_of_every_dashboard() -> None:
    provisioning = ROOT / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "zart.yaml").read_text())["providers"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (provider["type"], Path(provider["options"]["path"]).name) == ("file", DIRECTORY.name)
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    uids = [read(path)["uid"] for path in FILES]
    assert len(set(uids)) == len(uids) == len(DASHBOARDS)


def _lost(written: Any, understood: Any, where: str = "") -> Iterator[str]:
    """Where something written is not there, or is something else."""
    if isinstance(written, dict):
        for key, value in written.items():
            if key not in understood:
                yield f"{where}.{key}"
            else:
                yield from _lost(value, understood[key], f"{where}.{key}")
    elif isinstance(written, list) and len(written) == len(understood):
        for number, (one, other) in enumerate(zip(written, understood, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")
    elif written != understood:
        yield f"{where}: {written!r} became {understood!r}"
