"""Writes the dashboards' JSON files, which are kept beside it: `python -m grafana.build` after a change."""

from __future__ import annotations

import json
from pathlib import Path

from grafana import executions, fleet, postgresql
from grafana.model import Dashboard, rendered

DIRECTORY = Path(__file__).parent / "dashboards"
DASHBOARDS = {
    "fleet.json": fleet.DASHBOARD,
    "executions.json": executions.DASHBOARD,
    "postgresql.json": postgresql.DASHBOARD,
}


def text_of(dashboard: Dashboard) -> str:
    """The file's text."""
    return json.dumps(rendered(dashboard), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    for name, dashboard in DASHBOARDS.items():
        (DIRECTORY / name).write_text(text_of(dashboard))


if __name__ == "__main__":
    main()
