"""Evaluations as a report gathers them from folders of cells."""

from __future__ import annotations

from report_cells import make_cell, store

from metarl.report import scores
from metarl.report.inputs import read_inputs
from metarl.report.scores import Evaluation


def read_folders(*folders, baseline=None) -> Evaluation:
    return scores.gather(read_inputs(folders).records, baseline)


def store_two_games(folder, seen: tuple[str, ...], **more) -> None:
    """Two Atari games, each by a discovered and a hand-written rule."""
    for game, scored in (("Pong-v5", [0.0, 5.0]), ("Boxing-v5", [40.0, 60.0])):
        for seed, final in enumerate(scored, start=1):
            mine = make_cell(
                "mine", game, seed, sha256="a" * 64, games_seen=seen, **more
            )
            store(folder, mine, final)
            store(folder, make_cell("actor_critic", game, seed), final - 5)
