"""The plans that statements really ran with, those inside of functions included, and what they read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg


@dataclass(frozen=True, slots=True)
class Scan:
    """One way a table was read. `index` is "" for a sequential scan."""

    table: str
    index: str


@dataclass(slots=True)
class Plans:
    """Every plan that ran while recording, outer statements and those inside of functions."""

    trees: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def scans(self) -> set[Scan]:
        """How tables of the schema were read. Rows found by their ctid have the index ""tid""."""
        return {scan for tree in self.trees for scan in _scans(tree["Plan"])}

    def pages(self) -> int:
        """Buffers touched by all statements; calls of functions are counted by what is inside of them."""
        inner = [tree["Plan"] for tree in self.trees if "_1(" not in tree["Query Text"]]
        return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in inner)


@asynccontextmanager
async def recorded_plans(connection: asyncpg.Connection) -> AsyncIterator[Plans]:
    """Record what the connection runs, by auto_explain; the connection's user must be a superuser."""
    plans = Plans()

    def hear(_: object, message: Any) -> None:
        _, found, text = message.message.partition("plan:\n")
        tree = json.loads(text) if found else {}
        if "zart_" in tree.get("Query Text", ""):
            plans.trees.append(tree)

    await connection.execute(
        "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
        " set auto_explain.log_analyze = on; set auto_explain.log_buffers = on; set auto_explain.log_timing = off;"
        " set auto_explain.log_format = json; set auto_explain.log_level = notice"
    )
    connection.add_log_listener(hear)
    yield plans
    await connection.fetchval("select 1")  # the last statement's plan comes when its portal is replaced
    connection.remove_log_listener(hear)
    await connection.execute("set auto_explain.log_min_duration = -1")


def _scans(node: dict[str, Any]) -> Iterator[Scan]:
    match node["Node Type"]:
        case "Seq Scan":
            yield Scan(node["Relation Name"], "")
        case "Tid Scan":
            yield Scan(node["Relation Name"], "tid")
        case "Index Scan" | "Index Only Scan":
            yield Scan(node["Relation Name"], node["Index Name"])
        case "Bitmap Heap Scan":
            yield Scan(node["Relation Name"], "bitmap")
        case _:
            pass
    for child in node.get("Plans", ()):
        yield from _scans(child)
