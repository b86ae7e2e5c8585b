"""Figures: what they show, that the same numbers give the same bytes, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots, report
from bench.__main__ import app
from zart.cli.command import code_of
from zart.cli.course import Course, Moment, draw
from zart.cli.main import answer
from zart.runner.board import Board

RESULT = next(report.RESULTS.glob("five-step-*.json"))

_DRAW = "import sys; from pathlib import Path; from bench import plots; plots.draw(Path(sys.argv[1]))"
_LOADED = "import sys, zart.cli.main, bench.__main__; print('matplotlib' in sys.modules)"


def texts(figure: Path) -> list[str]:
    """The text in a figure."""
    assert ElementTree.parse(figure).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    return [(each.text or "").strip() for each in ElementTree.parse(figure).iter("{http://www.w3.org/2000/svg}text")]


def drained() -> Course:
    """A drain of 60 executions in 0.3 s, with a worker killed in the middle."""
    course = Course(Board(1))
    nobody = (0,) * len(course.moments[0].claims)
    course.moments = [
        Moment(100 + n / 10, done, (done, *nobody[1:])) for n, done in enumerate((0, 10, 30, 60))
    ]  # fmt: skip
    course.killed_at, course.held = 100.15, 7
    return course


def test_the_demo_s_figure_has_titles_units_and_the_kill(tmp_path: Path) -> None:
    draw(drained(), 60, tmp_path / "demo.svg")
    found = texts(tmp_path / "demo.svg")
    assert "zart demo: 60 executions of five steps" in found
    assert "throughput, executions per second" in found
    assert "claim latency, seconds: from when an execution could run to its claim" in found
    assert "worker killed, holding 7" in found
    assert "300" in found  # 30 executions in the last tenth of a second


def test_the_demo_s_figure_is_drawn_without_a_kill_and_without_a_claim(tmp_path: Path) -> None:
    course = Course(Board(1))
    course.note(at_once=True)
    draw(course, 1, tmp_path / "demo.svg")
    assert not [text for text in texts(tmp_path / "demo.svg") if "killed" in text]


def test_a_long_course_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    course = drained()
    first = course.moments[0]
    course.moments = [Moment(first.at + n / 10, n, first.claims) for n in range(100_000)]
    draw(course, 100_000, tmp_path / "demo.svg")
    assert (tmp_path / "demo.svg").stat().st_size < 100_000


def test_the_figure_of_a_result_shows_what_the_result_says(tmp_path: Path) -> None:
    figure = plots.draw(Path(shutil.copy(RESULT, tmp_path)))
    found = texts(figure)
    assert {"executions per second", "processor time per execution, microseconds", "19,130", "engine"} <= set(found)


def test_the_same_numbers_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = (Path(shutil.copy(RESULT, tmp_path / f"{name}.json")) for name in ("here", "there"))
    plots.draw(here)
    (tmp_path / "matplotlibrc").write_text("font.size: 30\n")  # a user's own settings
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", _DRAW, str(there)], env=environment, check=True)
    assert here.with_suffix(".svg").read_bytes() == there.with_suffix(".svg").read_bytes()


def test_a_figure_is_readable_on_a_light_and_on_a_dark_ground(tmp_path: Path) -> None:
    text = plots.draw(Path(shutil.copy(RESULT, tmp_path))).read_text()
    assert "prefers-color-scheme:dark" in text
    assert "fill: currentColor" in text
    assert "#000000" not in text  # matplotlib's own ink, which a dark ground swallows


def test_matplotlib_is_not_loaded_before_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_matplotlib_the_demo_says_so_in_one_line_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert answer(["demo", "--plot", str(tmp_path / "demo.svg")]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == (
        "", "zart: --plot needs matplotlib: pip install 'matplotlib>=3.9', or zart's extra `plots`\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("demo.png", "must be a file whose name ends in .svg"),
        ("nowhere/demo.svg", "cannot be written"),
        ("directory.svg", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_demo_begins(
    name: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "directory.svg").mkdir()
    assert answer(["demo", "--plot", str(tmp_path / name)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert line in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "line"), [("{}", "is no result"), ("[", "is no JSON"), (None, "cannot be read: No such file")]
)
def test_what_is_no_result_is_one_line(
    text: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.json"
    if text is not None:
        file.write_text(text)
    assert code_of(app, "python -m bench", ["plot", str(file)]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1
