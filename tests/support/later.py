"""A copy of zart as a later version of it would be: with one migration more."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.fleet import ROOT
from zart.store.migrate import migrations

KNOWN = migrations("zart")[-1].version


def make_later_zart(directory: Path, *, serves_from: int, text: str) -> Path:
    """A folder from which Python imports the later version. Its ticks call `zart_tick_2`, which does what 1 does.

    Args:
        serves_from: the oldest version that its migration says it serves.
        text: what the migration does besides making that function.
    """
    shutil.copytree(ROOT / "zart", directory / "zart", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests").symlink_to(ROOT / "tests")
    sql = directory / "zart" / "store" / "sql"
    for old, new in (("zart_tick_1", "zart_tick_2"), ("tick", "tick")):
        (sql / f"{new}.sql").write_text((sql / f"{old}.sql").read_text().replace("zart_tick_1", "zart_tick_2"))
    (sql.parent / "migrations" / f"{KNOWN + 1:04}_later.sql").write_text(
        f"-- serves_from: {serves_from}\n{text}\n:include zart_tick_2\n"
    )
    return directory
