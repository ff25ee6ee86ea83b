"""Sliding windows in a run: which updates they hold, births within, and stops."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from metarl import experiment as experiments
from metarl import stack_agents, train
from metarl.agents.agent import AgentState
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.meta.inner_loop import Window
from metarl.meta_training import MetaTraining
from metarl.run_folder import RunFolder
from metarl.stack_training import StackTraining


def config(folder: Path, *overrides: str) -> TrainConfig:
    return tiny_run.config(
        folder,
        tiny_run.SCALED,
        "population={num_agents: 3, lifetime_env_steps: 230}",
        # By the agents' age, which the updates of a window must get right too.
        "agent.optimizer.schedule=linear",
        "meta={window: sliding, inner_updates: 5, slide: 2}",
        *overrides,
    )


class Recorded(StackTraining):
    """Keeps what the agents of every group have gone through."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.windows: list[Window] = []
        # Of each group, since its agents' birth: batches, and the agents before them.
        self.lived: list[list[tuple[object, AgentState]]] = [[] for _ in self.lives]

    def play(self, meta_params, population, key):
        result = super().play(meta_params, population, key)
        self.windows.append(jax.device_get(dataclasses.replace(result[2], keys=None)))
        return result


def at(tree: object, *index: int) -> object:
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


@pytest.mark.parametrize(("updates", "slide"), [(5, 2), (4, 1)])
def test_a_window_holds_the_newest_updates_of_the_present_agents(
    updates: int, slide: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tmp_path, f"meta={{inner_updates: {updates}, slide: {slide}}}")
    stack = Recorded(experiments.build(given).only, given)
    real = stack_agents._update

    def noting(agent: object, chunk: int, inputs: tuple) -> AgentState:
        _, agents, batch, _ = inputs
        for group, lived in enumerate(stack.lived):
            lived.append((at(batch, group), at(agents, group)))
        return real(agent, chunk, inputs)

    monkeypatch.setattr(stack_agents, "_update", noting)
    loop = stack.stack.estimator.inner_loop
    unroll = jax.jit(
        lambda params, window: jax.vmap(lambda w: loop.unroll(params, w))(window)
    )
    params = {"gain": jax.device_put(1.5), "bias": jax.device_put(-0.25)}
    stack.start()
    crossed = 0
    for n in range(9):
        window = keep(stack, params, n)
        end, _ = jax.device_get(unroll(params, window))
        for group, lived in enumerate(stack.lived):
            made = min(len(lived), updates)
            expected = [False] * (updates - made) + [True] * made
            assert window.valid[group].tolist() == expected
            crossed += 0 < made < updates
            same(at(window.agents, group), lived[-made][1])
            for i in range(1, made + 1):
                batch, window_batch = lived[-i][0], at(window.rollouts, group, -i)
                same(window_batch.transitions, batch.transitions)
                same(window_batch.observations, batch.observations)
            # The rule stood still, so the updates lead where they have led: ages too.
            agents = at(stack.population.agents, group)
            for x, y in zip(
                *map(jax.tree.leaves, (at(end.agents, group), agents)), strict=True
            ):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
            # Value functions are as old as the agents that the next window begins with.
            count = at(stack.population.values, group).optimizer.count
            np.testing.assert_array_equal(count, max(0, len(lived) - updates + slide))
        for group in np.flatnonzero(stack.end_lifetimes(n + 1)):
            stack.lived[group].clear()
    stack.close()
    assert stack.lives.min() >= 1
    assert crossed > 3


def keep(stack: Recorded, params: dict, meta_step: int) -> Window:
    """Take a meta-step's gradient; return its window."""
    stack.meta_gradient(params, meta_step)
    window = stack.windows[-1]
    keys = stack._sliding.window(None, None).keys
    return dataclasses.replace(window, keys=keys)


def same(left: object, right: object) -> None:
    for x, y in zip(*map(jax.tree.leaves, (left, right)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_window_that_slides_by_all_of_it_is_a_block(tmp_path: Path) -> None:
    states = []
    for window in ("{window: block, inner_updates: 2}", "{inner_updates: 2, slide: 2}"):
        with MetaTraining(config(tmp_path, f"meta={window}")) as training:
            training.start()
            metrics = [jax.device_get(training.meta_step()) for _ in range(3)]
            populations = [stack.population for stack in training.stacks]
            states.append((metrics, training.meta, populations))
    same(*states)


@pytest.mark.parametrize("replay", ["0", "0.5"])
def test_resuming_with_sliding_windows_changes_nothing(
    replay: str, tmp_path: Path
) -> None:
    overrides = [f"population.replay={{share: {replay}, capacity: 20}}"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(config(whole, "meta_steps=5", *overrides)) == 0
    assert train.main(config(stopped, "meta_steps=3", *overrides)) == 0
    longer = tiny_run.resumed(stopped, "meta_steps=5")
    assert train.main(longer, resume=stopped) == 0
    states = []
    for folder in (whole, stopped):
        with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
            run.begin()
            (stack,) = run.training.stacks
            assert stack.lives.sum() > 0
            states.append((run.training.meta, stack.population, stack._sliding.tree()))
    same(*states)


def test_windows_that_are_not_saved_begin_empty(tmp_path: Path) -> None:
    life = "population.lifetime_env_steps=100000"
    given = config(tmp_path, "meta_steps=3", "checkpoint.replay=false", life)
    assert train.main(given) == 0
    with train.TrainingRun(tiny_run.resumed(tmp_path), RunFolder(tmp_path)) as run:
        run.begin()
    longer = tiny_run.resumed(tmp_path, "meta_steps=4", "checkpoint.replay=true")
    assert train.main(longer, resume=tmp_path) == 0
    with train.TrainingRun(tiny_run.resumed(tmp_path), RunFolder(tmp_path)) as run:
        run.begin()
        (stack,) = run.training.stacks
        kept = jax.device_get(stack._sliding.tree())
    # The two updates of the last meta-step, and the agents that went into them.
    assert kept["valid"].tolist() == [[False] * 3 + [True] * 2] * 3
    np.testing.assert_array_equal(kept["starts"][0].agent_updates, 6)


def test_nothing_is_compiled_after_the_first_meta_step(tmp_path: Path) -> None:
    compiled: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    with MetaTraining(config(tmp_path)) as training:
        training.start()
        training.meta_step()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            with tiny_run.no_unasked_transfers():
                for _ in range(4):
                    training.meta_step()
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert training.lives.sum() > 0


def test_a_slide_beyond_the_window_is_refused(tmp_path: Path) -> None:
    said = r"slide=6 is more than the window's inner_updates=5"
    with pytest.raises(UserError, match=said):
        config(tmp_path, "meta.slide=6")
