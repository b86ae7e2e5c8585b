"""What the documentation shows can be done as it is shown."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import zart
from tests.support.database import Database
from tests.support.pages import Program, blocks_of, pages
from tests.support.shell import ROOT

EVERY_PAGE = [ROOT / "README.md", *pages()]

_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def _name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", pages(), ids=_name)
async def test_the_code_of_a_page_runs(
    page: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    program = Program(page, database, tmp_path)
    try:
        for block in blocks_of(page):
            await program.run(block)
    finally:
        program.close()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=_name)
def test_a_page_names_only_what_zart_has(page: Path) -> None:
    names: set[str] = set()
    for block in blocks_of(page):
        for node in ast.walk(ast.parse(block.text)) if block.language == "python" else ():
            match node:
                case ast.Attribute(value=ast.Name(id="zart"), attr=attribute):
                    names.add(attribute)
                case ast.ImportFrom(module="zart"):
                    names |= {alias.name for alias in node.names}
                case _:
                    pass
    assert {name for name in names if not hasattr(zart, name)} == set()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=_name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    assert {page.name for page in pages()} - set(_LINK.findall(index.read_text())) == {index.name}
