"""The small table that an evaluation ends with. No files here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metarl.evaluation.cell_records import (
    Result,
)


def summary_table(results_of: Sequence[Result]) -> list[str]:
    """Return the lines of a small table: means over seeds by game and rule."""
    rows = summary(results_of)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            # The three text columns to the left, numbers to the right.
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def summary(results: Iterable[Result]) -> list[list[str]]:
    """Return a small table, head first: means over seeds by game and rule.

    `seeds` is how many have a score, of how many there are where some have none;
    `episodes` how many the score of a seed is of, the fewest there are.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        key = (result.game, result.status, result.label)
        groups.setdefault(key, []).append(result)
    rows = [
        ["game", "status", "rule", "seeds", "episodes", "return", "human-normalized"]
    ]
    for (game, status, rule), members in sorted(groups.items()):
        scored = [m.scored_episodes for m in members if m.mean_return is not None]
        all_scored = len(scored) == len(members)
        rows.append(
            [
                game,
                status,
                rule,
                str(len(scored)) if all_scored else f"{len(scored)} of {len(members)}",
                str(min(scored, default=0)),
                _mean([member.mean_return for member in members]),
                _mean([member.human_normalized_score for member in members]),
            ]
        )
    return rows


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"
