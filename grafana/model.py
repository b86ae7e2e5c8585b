"""Panels and dashboards in the words of an operator, and what Grafana's JSON model calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Steps = Sequence[tuple[float | None, str]]
"""Colours and the values from which they hold; None is for what is below all others."""

COUNT, SECONDS, SHARE, BYTES, RATE, BYTE_RATE = "short", "s", "percentunit", "bytes", "si:/s", "Bps"
BAD_ABOVE_ZERO: Steps = ((None, "green"), (1, "red"))
PLAIN: Steps = ((None, "blue"),)

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One expression: its legend in a drawing, its column's title in a table; its unit, where it is not the panel's."""

    expression: str
    legend: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing.

    Args:
        description: what it shows, what a bad value means, what to do about it.
        unit: of the values, as Grafana names units.
        thresholds: colours of a stat and of bars.
        stacked: areas on top of each other, for parts of a whole.
        keys: labels that make a table's row, in the order of its columns.
    """

    kind: Literal["stat", "timeseries", "table", "bargauge"]
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    thresholds: Steps = PLAIN
    stacked: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, side by side as their widths allow."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice on top of the dashboard: the values of a label."""

    name: str
    title: str
    values: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def stat(title: str, description: str, unit: str, expression: str, thresholds: Steps) -> Panel:
    """A figure with its course behind it."""
    return Panel("stat", title, description, unit, (Query(expression, title),), 4, 5, thresholds)


def series(title: str, description: str, unit: str, *queries: tuple[str, str], width: int = 8, **more: Any) -> Panel:
    """Lines over time: pairs of an expression and its legend."""
    return Panel("timeseries", title, description, unit, tuple(Query(*query) for query in queries), width, **more)


def rate(counter: str, where: str) -> str:
    """How fast a counter grows, each second."""
    return f"rate({counter}{{{where}}}[$__rate_interval])"


def quantile(q: float, histogram: str, where: str, *by: str) -> str:
    """The value that a share `q` of a histogram's observations does not exceed."""
    return f"histogram_quantile({q}, sum by ({', '.join(('le', *by))}) ({rate(f'{histogram}_bucket', where)}))"


def mean(histogram: str, where: str, *by: str) -> str:
    """The mean of a histogram's observations."""
    sums = (f"sum by ({', '.join(by)}) ({rate(f'{histogram}_{part}', where)})" for part in ("sum", "count"))
    return " / ".join(sums)


def rendered(dashboard: Dashboard) -> Json:
    """The dashboard as Grafana reads it from a file."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["zart"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_links()],
        "annotations": {"list": []},
        "templating": {"list": [_source_variable(), *(_variable(each) for each in dashboard.variables)]},
        "panels": _panels(dashboard.rows),
    }


def _links() -> Json:
    return {
        "type": "dashboards", "title": "zart", "tags": ["zart"], "asDropdown": False, "icon": "external link",
        "includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "", "url": "",
    }  # fmt: skip


def _source_variable() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1}


def _variable(variable: Variable) -> Json:
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.title,
        "datasource": _SOURCE,
        "query": {"query": variable.values, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: Sequence[Row]) -> list[Json]:
    made: list[Json] = []
    top = 0
    for row in rows:
        made.append({
            "id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
        })  # fmt: skip
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            made.append({"id": len(made) + 1, "gridPos": place, **_panel(panel)})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return made


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        **_OPTIONS[panel.kind](panel),
    }


def _target(panel: Panel, index: int) -> Json:
    target: Json = {
        "refId": _ref(index),
        "datasource": _SOURCE,
        "expr": panel.queries[index].expression,
        "legendFormat": panel.queries[index].legend,
        "editorMode": "code",
    }
    if panel.kind in ("table", "bargauge"):
        target |= {"instant": True, "range": False}
    else:
        target |= {"instant": False, "range": True}
    return target | ({"format": "table"} if panel.kind == "table" else {})


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _defaults(panel: Panel) -> Json:
    by_value = panel.kind in ("stat", "bargauge")
    steps = [{"value": value, "color": color} for value, color in panel.thresholds]
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if by_value else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": _lines(panel)}
    if panel.kind == "table":
        defaults["decimals"] = 0
    if panel.kind == "bargauge":
        defaults |= {"min": 0} | ({"max": 1} if panel.unit == SHARE else {})
    return defaults


def _lines(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName" if panel.kind == "table" else "byFrameRefID", "options": _name(panel, index)},
            "properties": [{"id": "unit", "value": query.unit}, {"id": "decimals", "value": 1}],
        }
        for index, query in enumerate(panel.queries)
        if query.unit is not None
    ]


def _name(panel: Panel, index: int) -> str:
    return panel.queries[index].legend if panel.kind == "table" else _ref(index)


def _stat(panel: Panel) -> Json:
    return {
        "options": {
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto",
            "textMode": "value", "reduceOptions": _LAST,
        }
    }  # fmt: skip


def _timeseries(panel: Panel) -> Json:
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
    return {"options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}}


def _bars(panel: Panel) -> Json:
    return {
        "options": {
            "displayMode": "gradient", "orientation": "horizontal", "showUnfilled": True, "valueMode": "color",
            "reduceOptions": _LAST,
        }
    }  # fmt: skip


def _table(panel: Panel) -> Json:
    """Answers that have the same labels become one row; the labels come first."""
    columns = {f"Value #{_ref(index)}": query.legend for index, query in enumerate(panel.queries)}
    order = {name: place for place, name in enumerate((*panel.keys, *columns))}
    names = {"excludeByName": {"Time": True}, "renameByName": columns, "indexByName": order}
    return {
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": names}],
    }


_LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS = {"stat": _stat, "timeseries": _timeseries, "bargauge": _bars, "table": _table}
