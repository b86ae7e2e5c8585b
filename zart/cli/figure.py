"""Figures as SVG: the same bytes for the same numbers, and readable on a light and on a dark ground."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from zart.errors import InvalidArgument

# Distinct in themselves, to most of those who do not see all colours, and on both grounds.
BLUE, ORANGE, RED, GREEN = "#2f81f7", "#d9730d", "#e5484d", "#2da44e"

# Stands for the ground's own colour of text, which is not known when the file is written.
_INK: Final = "#010203"
_GROUNDS: Final = (
    "<style>svg{color:#1f2328;background:#ffffff}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;background:#0d1117}}</style>"
)
_LOOK: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zart",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.titlesize": 12,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def check_can_write(path: Path, option: str) -> None:
    """Refuse at once what would be found out when the numbers are there.

    Raises:
        InvalidArgument: the package that draws is missing, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidArgument(f"{option} needs matplotlib: pip install 'matplotlib>=3.9', or zart's extra `plots`")
    if path.suffix != ".svg":
        raise InvalidArgument(f"{option} must be a file whose name ends in .svg, got {str(path)!r}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidArgument(f"{option} names {str(path)!r}, which cannot be written")


@contextmanager
def drawn(path: Path, title: str, panels: int, *, beside: bool = False) -> Generator[list[Any], None, None]:
    """The panels of a figure, one under the other or `beside` each other. It is written when the block has drawn it."""
    from matplotlib import style
    from matplotlib.figure import Figure

    rows, columns = (1, panels) if beside else (panels, 1)
    with style.context(_LOOK, after_reset=True):  # a user's own settings do not change the file
        figure: Any = Figure(figsize=(8, 1.2 + 2.4 * rows), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        path.write_text(_svg_of(figure))


def _svg_of(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    head, defs, rest = file.getvalue().partition(" <defs>")
    return (head + " " + _GROUNDS + "\n" + defs + rest).replace(_INK, "currentColor")
