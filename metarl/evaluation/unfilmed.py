"""Agents that wait to be filmed, on disk, so that a kill loses no video.

Host code beside `videos.py`. A file is written before its cell is stored and removed
once the cell has its videos; whoever evaluates the cell next films what is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from metarl.agents.agent import Agent, AgentState
from metarl.atomic_files import write_file
from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    Stage,
)
from metarl.evaluation.cells import Cell
from metarl.rule_files import folder as rule_folder

FOLDER = ".unfilmed"
"""Within the results."""

_CELL, _STEPS = "cell", "env_steps"


@dataclasses.dataclass(frozen=True)
class Filmed:
    """An agent that is to be filmed.

    Attributes:
      stage: how far it had learned.
      state: of it alone, but for what it does not act with; see `acting`.
      env_steps: that it had learned from.
    """

    stage: Stage
    state: AgentState
    env_steps: int


def acting(state: AgentState) -> AgentState:
    """Return an agent's state without what only updates read."""
    return dataclasses.replace(
        state,
        target_params={},
        optimizer=dataclasses.replace(state.optimizer, mu={}, nu={}),
        rule_state={},
    )


def store(results_dir: Path, cell: Cell, agents: Sequence[Filmed]) -> None:
    """Keep the agents of a cell until they are filmed."""
    arrays = {_CELL: _digest(cell)}
    for agent in agents:
        arrays[f"{agent.stage}/{_STEPS}"] = np.array(agent.env_steps)
        leaves = jax.device_get(jax.tree.leaves(agent.state))
        for i, leaf in enumerate(leaves):
            arrays[f"{agent.stage}/{i}"] = np.asarray(leaf)
    write_file(_path(results_dir, cell), rule_folder.pack(arrays))


def is_waiting(results_dir: Path, cell: Cell) -> bool:
    """Return whether there are agents of a cell to be filmed."""
    return _path(results_dir, cell).is_file()


def load(results_dir: Path, cell: Cell, agent: Agent) -> list[Filmed] | None:
    """Return the agents of a cell that wait.

    Args:
      results_dir: of the evaluation.
      cell: that was stored.
      agent: what its agents have in common.

    Returns:
      None where they are not this cell's, as those of other settings under its name.
    """
    spec = cell.spec
    example = jax.ShapeDtypeStruct((1, *spec.observation_shape), spec.observation_dtype)
    shapes = jax.eval_shape(agent.init, jax.random.key(0), example)
    expected, tree = jax.tree.flatten(acting(shapes))
    path = _path(results_dir, cell)
    try:
        arrays = rule_folder.unpack(path.read_bytes(), where=path)
    except (OSError, UserError):
        return None
    if not np.array_equal(arrays.get(_CELL, ()), _digest(cell)):
        return None
    stages: tuple[Stage, ...] = ("early", "final")
    found = []
    for stage in stages:
        if f"{stage}/{_STEPS}" not in arrays:
            continue
        leaves = [arrays.get(f"{stage}/{i}") for i in range(len(expected))]
        for leaf, like in zip(leaves, expected, strict=True):
            if leaf is None or (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
                return None
        state: AgentState = jax.tree.unflatten(tree, jax.device_put(leaves))
        found.append(Filmed(stage, state, int(arrays[f"{stage}/{_STEPS}"])))
    return found


def forget(results_dir: Path, cell: Cell) -> None:
    """Remove the agents of a cell."""
    path = _path(results_dir, cell)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others wait
        path.parent.rmdir()


def _path(results_dir: Path, cell: Cell) -> Path:
    return results_dir / FOLDER / f"{cell.name}.npz"


def _digest(cell: Cell) -> np.ndarray:
    """Return what tells a cell from others of its name."""
    text = json.dumps(cell.identity(), sort_keys=True)
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
