"""Groups of peers: each one's curve, and who is ahead.

Between `scores.py` and the page. Peers of one group have nothing to tell them apart but
their seeds, so nothing here is a mean of the first peers of several groups.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.report.compare import frames_of
from metarl.report.figures import (
    COLORS,
    MARKERS,
    Figure,
    Words,
    color,
    drawing,
    frames_axis,
    short,
)
from metarl.report.markup import count_of, number
from metarl.report.scores import Evaluation, Task
from metarl.report.tables import Cell, DataTable

MOST_PANELS = 4
"""Groups that a figure shows, one beneath the other."""


def peer_figures(evaluation: Evaluation) -> list[Figure]:
    """Return a figure for each rule and game that was learned in groups."""
    return [_figure(rule, task, cells) for (rule, task), cells in groups_of(evaluation)]


def peer_table(evaluation: Evaluation) -> DataTable:
    """Return a row for every group: its peers' returns, and who was ahead how long."""
    rows: list[tuple[Cell, ...]] = []
    for (rule, task), cells in groups_of(evaluation):
        for cell in cells:
            lead = lead_in(cell)
            returns = [peer.mean_return for peer in cell.peers]
            rows.append(
                (
                    rule,
                    task.name,
                    cell.result.seed,
                    cell.result.mean_return,
                    cell.result.best_return,
                    cell.result.worst_return,
                    ", ".join("–" if x is None else number(x) for x in returns),
                    ", ".join(f"{100 * share:.0f} %" for share in lead.shares) or "–",
                    f"peer {lead.last}" if lead.last else "–",
                    lead.changes if lead.last else None,
                )
            )
    columns = (
        "rule",
        "game",
        "seed",
        "mean return",
        "best peer",
        "worst peer",
        "returns of peers 1, 2, ...",
        "time ahead of peers 1, 2, ...",
        "ahead at the end",
        "changes of who is ahead",
    )
    colors = {rule.name: color(rule) for rule in evaluation.rules}
    return DataTable("peers", columns, tuple(rows), colors)


def groups_of(
    evaluation: Evaluation,
) -> Iterator[tuple[tuple[str, Task], tuple[CellRecord, ...]]]:
    """Yield the groups of each rule and game, in the order of all tables."""
    for rule in evaluation.rules:
        for task in evaluation.tasks:
            cells = evaluation.cells.get((rule.name, task), ())
            if kept := tuple(cell for cell in cells if cell.peers):
                yield (rule.name, task), kept


def _newest(cell: CellRecord) -> list[list[float | None]]:
    """Return each peer's newest return at every row of the curve, carried on."""
    found = []
    for peer in cell.peers:
        values: list[float | None] = []
        for row in peer.curve:
            carried = values[-1] if values else None
            values.append(carried if row.mean_return is None else row.mean_return)
        found.append(values)
    return found


@dataclasses.dataclass(frozen=True)
class Lead:
    """Who was ahead in a group, at the rows of its curve where all have a return.

    Ahead is who has the highest return of the newest episodes; of equals, who was ahead
    before, else the first.

    Attributes:
      leaders: at each of these rows, from 1; empty where there is none.
      peers: how many there are.
    """

    leaders: tuple[int, ...]
    peers: int

    @property
    def shares(self) -> list[float]:
        """Of the rows, of each peer; [] without rows."""
        of_all = len(self.leaders)
        numbers = range(1, self.peers + 1 if of_all else 1)
        return [self.leaders.count(peer) / of_all for peer in numbers]

    @property
    def last(self) -> int | None:
        """Who is ahead at the end; None without rows."""
        return self.leaders[-1] if self.leaders else None

    @property
    def changes(self) -> int:
        """How often it was somebody else at the next row."""
        return sum(a != b for a, b in itertools.pairwise(self.leaders))


def lead_in(cell: CellRecord) -> Lead:
    """Return who was ahead in a group while it learned."""
    leaders: list[int] = []
    for values in zip(*_newest(cell), strict=True):
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        ahead = [i for i, value in enumerate(known, start=1) if value == max(known)]
        before = leaders[-1:]
        leaders.append(before[0] if before and before[0] in ahead else ahead[0])
    return Lead(tuple(leaders), len(cell.peers))


def _longest(lead: Lead) -> str:
    """Return who was ahead at most rows, and at how many of them, as text."""
    if not lead.leaders:
        return "nobody ahead: some have no return"
    share = max(lead.shares)
    peer, rows = lead.shares.index(share) + 1, count_of(len(lead.leaders), "row")
    return f"peer {peer} ahead longest ({lead.leaders.count(peer)} of {rows})"


def _figure(rule: str, task: Task, cells: Sequence[CellRecord]) -> Figure:
    shown = cells[:MOST_PANELS]
    more = "" if len(shown) == len(cells) else f" {len(shown)} of {len(cells)} groups."
    size = cells[0].result.group_size
    words = Words(
        f"peers_{rule}_{task.name}",
        f"{task.name}: peers of {short(rule)}",
        f"Mean return of the newest episodes of each of {size} peers, over the frames "
        f"of the whole group; a panel per seed.{more}",
        "; ".join(
            f"seed {cell.result.seed}: {_longest(lead_in(cell))}" for cell in shown
        ),
        f"{count_of(len(shown), 'seed')}",
    )
    rows = [
        (cell.result.seed, peer, frames, value)
        for cell in cells
        for peer, values in enumerate(_newest(cell), start=1)
        for frames, value in zip(frames_of(cell), values, strict=True)
        if value is not None
    ]
    with drawing(words, height=0.7 + 1.5 * len(shown)) as drawn:
        panels = drawn.canvas.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
        for axes, cell in zip(panels, shown, strict=True):
            for i, values in enumerate(_newest(cell)):
                known = [
                    (x, y)
                    for x, y in zip(frames_of(cell), values, strict=True)
                    if y is not None
                ]
                axes.plot(
                    [x for x, _ in known],
                    [y for _, y in known],
                    color=COLORS[i % len(COLORS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=3,
                    label=f"peer {i + 1}",
                )
            axes.set_ylabel(f"return, seed {cell.result.seed}")
            frames_axis(axes, "frames of the group" if axes is panels[-1] else "")
        handles, _ = panels[0].get_legend_handles_labels()
        drawn.canvas.legend(handles=handles, loc="outside upper left", ncols=4)
        drawn.numbers(("seed", "peer", "frames", "return"), rows)
    assert drawn.figure is not None
    return drawn.figure
