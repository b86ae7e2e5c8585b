"""The dashboards as they are committed, and their expressions as Grafana would send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "grafana" / "dashboards"
FILES = sorted(DIRECTORY.glob("*.json"))

# What Grafana fills in by itself, for rates over a test's few seconds of samples.
_BUILT_IN = {"__rate_interval": "20s"}
_VARIABLE = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a panel, with all choices left at 'All'."""

    dashboard: str
    panel: str
    text: str


def read(path: Path) -> dict[str, Any]:
    """A dashboard's JSON."""
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(path: Path) -> Iterator[Expression]:
    """Every expression of every panel.

    Raises:
        KeyError: an expression names a variable that the dashboard does not have.
    """
    dashboard = read(path)
    values = {each["name"]: each.get("allValue", "") for each in dashboard["templating"]["list"]} | _BUILT_IN
    for panel in panels(dashboard):
        for target in panel["targets"]:
            text = _VARIABLE.sub(lambda found: values[found[1]], target["expr"])
            yield Expression(path.name, panel["title"], text)
