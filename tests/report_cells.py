"""Cells as an evaluation writes them, without training anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from metarl.envs.suites import SUITES
from metarl.evaluation import amendments, results
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_records import (
    AgentRecords,
    CurveRow,
    PeerRecord,
    Video,
    make_result,
)
from metarl.evaluation.cells import Cell, plan
from metarl.evaluation.robustness_records import Robustness
from metarl.rule_files import load_rule

ABOUT = {
    "commit": "0123456789abcdef",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "device": "cpu",
    "wall_s": 36.0,
}


def make_cell(
    rule: str,
    game: str,
    seed: int,
    *overrides: str,
    builtin: str = "actor_critic",
    **manifest: object,
) -> Cell:
    """Return a cell of a rule that is ``builtin`` by another name and manifest.

    Args:
      rule: its name; `random` is the rule of that name.
      game: one, or a suite of one.
      seed: of the cell.
      *overrides: of its settings.
      builtin: which rule it is.
      **manifest: fields that are another's.
    """
    loaded = load_rule("random" if rule == "random" else builtin)
    changed = loaded.manifest.model_copy(update=manifest)
    loaded = dataclasses.replace(loaded, name=rule, manifest=changed)
    played = f"suite={game}" if game in SUITES else f"games=[{game}]"
    given = [f"environment.{played}", f"seeds=[{seed}]", "env_steps=1000"]
    (cell,) = plan([loaded], overrides=[*given, *overrides])
    return cell


def store(
    folder: Path,
    cell: Cell,
    final: float | None,
    *,
    episodes: int = 100,
    curve: Sequence[float | None] | None = None,
    videos: Sequence[Video] = (),
    about: dict[str, object] | None = None,
    frames: int | None = None,
    peers: Sequence[PeerRecord] = (),
    robustness: Sequence[Robustness] = (),
    agreement: Sequence[AgreementRow] = (),
) -> None:
    """Write a cell that ends at ``final``; its curve climbs there from a tenth."""
    if curve is None:
        curve = [None if final is None else final * part for part in (0.1, 0.5, 1.0)]
    steps = 1000 // len(curve)
    rows = [
        CurveRow(steps * (i + 1), i + 1, 0 if value is None else 10, value)
        for i, value in enumerate(curve)
    ]
    result = make_result(
        cell,
        env_steps=1000,
        episodes=episodes,
        last_returns=[] if final is None else [final] * episodes,
    )
    result = dataclasses.replace(result, wall_s=36.0)
    if frames is not None:
        result = dataclasses.replace(result, frames=frames)
    agents = AgentRecords(tuple(peers), tuple(robustness), tuple(agreement))
    results.write_cell(folder, cell, result, rows, about or ABOUT, agents=agents)
    if videos:
        amendments.add_videos(folder, cell, videos)


def spoil(folder: Path, cell: Cell, bad: float) -> None:
    """Let a stored cell end at what is not finite, as earlier versions wrote it."""
    path = results.cell_path(folder, cell)
    tree = json.loads(path.read_text())
    tree["result"]["mean_return"] = tree["curve"][-1]["mean_return"] = bad
    path.write_text(json.dumps(tree))


def store_all(folder: Path, finals: dict[tuple[str, str], Sequence[float]]) -> None:
    """Write cells with seeds 1, 2, ... by rule and game."""
    for (rule, game), values in finals.items():
        for seed, final in enumerate(values, start=1):
            store(folder, make_cell(rule, game, seed), final)
