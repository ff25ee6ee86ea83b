from __future__ import annotations

import jax
import numpy as np
import pytest

from metarl.evaluation import memory
from metarl.evaluation.batches import batches
from metarl.evaluation.cells import Cell, plan
from metarl.rollout.replay import Replay
from metarl.types import Rollout, Transitions

MIB = 2**20


def cells(*overrides: str, game: str = "Pong") -> list[Cell]:
    return plan(["actor_critic"], overrides=[f"environment.games=[{game}]", *overrides])


def filled_replay(cell: Cell) -> Replay:
    """Return a replay that is full of frames, each of which is another."""
    settings, spec = cell.settings, cell.spec
    length, stack = settings.rollout_length, spec.frame_stack
    replay = Replay(settings.replay.capacity, seed=0, frame_stack=stack)
    rng = np.random.default_rng(0)
    for _ in range(settings.replay.capacity):
        frames = rng.integers(
            0, 255, (length + stack, *spec.observation_shape[:2]), np.uint8
        )
        windows = [frames[t : t + stack] for t in range(length + 1)]
        flags = np.zeros((length, 1), bool)
        replay.add(
            Rollout(
                observations=np.moveaxis(np.stack(windows), 1, -1)[:, None],
                transitions=Transitions(
                    actions=np.zeros((length, 1), np.int32),
                    behaviour_logits=np.zeros((length, 1, spec.num_actions), "f4"),
                    rewards=np.zeros((length, 1), np.float32),
                    is_terminal=flags,
                    cut=flags,
                    valid=flags,
                    learn=np.zeros((length, 1), np.float32),
                    own=flags,
                ),
                returns=np.zeros(1, np.float32),
                success=np.zeros(1, bool),
                env_steps=np.int32(length),
            )
        )
    return replay


def test_the_replay_takes_what_is_estimated():
    settings = ["replay.capacity=40", "rollout_length=29", "environment.num_envs=1"]
    (cell,) = cells(*settings, "seeds=[1]")
    measured = filled_replay(cell).nbytes
    assert memory._replay_bytes(cell) == pytest.approx(measured, rel=0.2)


def test_parameters_count_as_often_as_they_are_kept():
    (cell,) = cells("agent.network.torso={kind: mlp, hidden: [10]}", "seeds=[1]")
    inputs = 84 * 84 * 4
    # A hidden layer of 10, 18 logits and 101 bins of the value.
    expected = 4 * (inputs * 10 + 10 + 10 * 18 + 18 + 10 * 101 + 101)
    assert memory._parameter_bytes(cell) == expected


@pytest.mark.parametrize(
    ("free", "expected"), [(0.5, 1), (2.2, 1), (4.2, 2), (6.2, 3), (100, 4), (None, 4)]
)
def test_as_many_cells_as_half_of_the_free_memory_holds(monkeypatch, free, expected):
    estimate = memory.Estimate(cell_bytes=100 * MIB, update_bytes=5 * MIB)
    monkeypatch.setattr(memory, "estimate", lambda _: estimate)
    monkeypatch.setattr(
        memory,
        "available_bytes",
        lambda: None if free is None else int(free * 100) * MIB,
    )
    planned = cells("seeds=[1, 2, 3, 4, 5, 6]")
    assert memory.cells_at_once(planned) == expected
    assert len(next(batches(planned))) == expected


def test_a_number_that_is_given_wins(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert memory.cells_at_once(cells("cells_at_once=9")) == 9
    assert memory.cells_at_once(cells()) == 1


def test_more_cells_share_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**12)
    monkeypatch.setattr(memory, "_device_bytes", lambda: 10**12)
    assert memory.cells_at_once(cells()) == memory.MOST_ELSEWHERE
    monkeypatch.setattr(memory, "_device_bytes", lambda: 10**8)
    assert memory.cells_at_once(cells()) < memory.MOST_ELSEWHERE


def test_the_limit_of_a_control_group_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(memory, "_control_group_folders", lambda: [tmp_path])
    assert memory.available_bytes() == 600
    (tmp_path / "memory.max").write_text("max\n")
    free = memory.available_bytes()
    assert free is None or free > 10**6
