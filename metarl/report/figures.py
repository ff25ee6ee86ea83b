"""How figures look, and how they are stored: PNG, the numbers as CSV, a caption.

Host code of `metarl/report/`; the only place that knows matplotlib's state. Figures are
narrow, so that their text is legible on a phone; wide screens show them side by side.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator

from metarl.atomic_files import write_file
from metarl.evaluation.results_tables import disarmed
from metarl.report.markup import slug
from metarl.report.scores import Rule

# Chosen by search for the largest smallest difference (31 in CIE Lab) under normal
# sight and full protanopia, deuteranopia and tritanopia (Machado et al. 2009), with a
# contrast of 3.5 or more on white. Markers and dashes differ too.
COLORS = ("#0072B2", "#D55E00", "#A300F5", "#43300A", "#14148F", "#701050")
RANDOM_COLOR = "#8A8A8A"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
TEXT, LINE, FAINT = "#1a1a1a", "#5f6670", "#d9dce1"
WIDTH, CARD_WIDTH = 4.4, 3.5  # inches
DPI = 200
FOLDER = "report_figures"

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": TEXT,
    "text.parse_math": False,  # a rule may be called $x$
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "axes.unicode_minus": True,
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
      name: of its files, without extension.
      title: above it.
      caption: below it: what it shows, of how many seeds and games, what bands are.
      alt: what it says, in words, for those who do not see it.
      png: the picture.
      width: in inches.
      height: in inches.
      columns: of its numbers.
      rows: its numbers.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    width: float
    height: float
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """What is said of a figure; see `Figure`.

    Attributes:
      footer: in the picture itself, for where it is shown alone: how many seeds, and
        what the intervals are.
    """

    name: str
    title: str
    caption: str
    alt: str
    footer: str = ""


class Drawing:
    """A figure while it is drawn; `figure` is there when the block has ended."""

    def __init__(self, words: Words, canvas: Canvas) -> None:
        """Begin with an empty canvas."""
        self.canvas = canvas
        self._words = words
        self._columns: tuple[str, ...] = ()
        self._rows: tuple[tuple[object, ...], ...] = ()
        self.figure: Figure | None = None

    def numbers(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Give the numbers of the CSV."""
        self._columns = tuple(columns)
        self._rows = tuple(tuple(row) for row in rows)

    def finish(self) -> None:
        """Draw."""
        buffer = io.BytesIO()
        if self._words.footer:
            self.canvas.supxlabel(
                self._words.footer, x=0.01, ha="left", fontsize=7.5, color=LINE
            )
        # Without dates and versions: equal results give equal files.
        self.canvas.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        width, height = self.canvas.get_size_inches()
        words = self._words
        self.figure = Figure(
            slug(words.name),
            words.title,
            words.caption,
            words.alt,
            buffer.getvalue(),
            float(width),
            float(height),
            self._columns,
            self._rows,
        )


@contextlib.contextmanager
def drawing(words: Words, *, width: float = WIDTH, height: float) -> Iterator[Drawing]:
    """Draw a figure in metarl's style; matplotlib's global state stays as it is.

    Args:
      words: that go with it.
      width: in inches.
      height: in inches.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas = Canvas(figsize=(width, height))
        FigureCanvasAgg(canvas)
        drawn = Drawing(words, canvas)
        yield drawn
        drawn.finish()


def color(rule: Rule) -> str:
    """Return the colour of a rule: the same in every figure and table."""
    if rule.color_index < 0:
        return RANDOM_COLOR
    return COLORS[rule.color_index % len(COLORS)]


def marker(rule: Rule) -> str:
    """Return the marker of a rule."""
    return MARKERS[rule.color_index % len(MARKERS)]


def dashes(rule: Rule) -> str | tuple[int, tuple[float, ...]]:
    """Return the line style of a rule; random is dotted."""
    if rule.color_index < 0:
        return ":"
    # Colours repeat after six rules; dashes tell those apart too.
    index = rule.color_index
    return DASHES[(index + index // len(COLORS)) % len(DASHES)]


def short(name: str, length: int = 26) -> str:
    """Return a name that fits beside an axis."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def frames_axis(axes: Axes, label: str = "frames") -> None:
    """Make the x-axis one of frames, from 0."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(left=0)
    axes.grid(axis="y")


def write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    """Write each figure's PNG and CSV, and remove those of an earlier report.

    Args:
      folder: the page's; figures go to `report_figures/` in it.
      figures: with different names.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    wanted = set()
    for figure in figures:
        files = {
            f"{figure.name}.png": figure.png,
            f"{figure.name}.csv": to_csv(figure.columns, figure.rows).encode(),
        }
        for name, data in files.items():
            write_file(target / name, data)
        wanted |= set(files)
    for path in target.iterdir():
        if path.suffix in (".png", ".csv") and path.name not in wanted:
            path.unlink()


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return CSV in which no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([disarmed(cell) for cell in columns])
    writer.writerows([disarmed(cell) for cell in row] for row in rows)
    return text.getvalue()
