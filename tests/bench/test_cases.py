"""Every case prepared in this process: what it computes, and that its loops agree.

With the rule of two meta-parameters, which compiles in seconds.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_run

from metarl import config_loader
from metarl import experiment as experiments
from metarl.agents.agent import AgentState
from metarl.bench import acting, learning, parts, whole_step
from metarl.bench.measure import Prepare
from metarl.config import BenchConfig
from metarl.errors import UserError
from metarl.meta import trainer
from metarl.rule_files import loading

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> BenchConfig:
    monkeypatch.setattr(experiments, "make_rule", lambda _: tiny.Scaled())
    return load()


def load() -> BenchConfig:
    overrides = [*tiny_run.OVERRIDES, "population.num_agents=3"]
    return config_loader.load(BenchConfig, [], overrides)


def test_a_loop_over_agents_makes_the_same_updates(config: BenchConfig) -> None:
    before = parts.build(config).population.agents
    with learning.agent_update(config) as subject:
        together = subject.call()
        assert subject.env_steps == 3 * 4 * 5
        assert subject.compiled is not None
        assert subject.facts["agents"] == 3
        assert min(subject.compiled.trace_s, subject.compiled.xla_s) > 0
    with learning.agent_update_loop(config) as subject:
        tiny.assert_close(together, tiny.stack(subject.call()), 1e-5)
    np.testing.assert_array_equal(together.agent_updates, 1)
    assert moved(before, together) > 1e-3


def test_a_hand_written_rule_acts_and_updates_but_is_not_differentiated() -> None:
    # One that takes several steps per batch, which no estimator by default takes.
    overrides = [*tiny_run.OVERRIDES, "update_rule={kind: ppo}"]
    config = config_loader.load(BenchConfig, [], overrides)
    before = parts.build(config).population.agents
    with learning.agent_update(config) as subject:
        after = subject.call()
        assert subject.facts["meta_parameters"] == 0
    np.testing.assert_array_equal(after.agent_updates, 1)
    assert moved(before, after) > 1e-3
    for prepare in (learning.meta_step, learning.meta_step_loop, whole_step.train_step):
        with (
            pytest.raises(UserError, match=r"^update_rule\.kind=ppo: a hand-written"),
            prepare(config),
        ):
            pass


def moved(before: AgentState, after: AgentState) -> float:
    """Return by how much a parameter moved at most."""
    moves = jax.tree.map(lambda a, b: abs(a - b).max(), after.params, before.params)
    return float(max(jax.tree.leaves(moves)))


@pytest.mark.parametrize("prepare", [learning.meta_step_plain, learning.meta_step_loop])
def test_a_meta_step_is_the_same_in_all_forms(
    prepare: Prepare, config: BenchConfig, meta_step: trainer.MetaState
) -> None:
    with prepare(config) as subject:
        tiny.assert_close(subject.call(), meta_step, 1e-4)
        assert subject.facts["remat"] == (prepare != learning.meta_step_plain)


@pytest.fixture(scope="module")
def meta_step() -> trainer.MetaState:
    """The rule after the one step of `meta-step`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "make_rule", lambda _: tiny.Scaled())
        with learning.meta_step(load()) as subject:
            # Two updates and one validation rollout, of three agents.
            assert subject.env_steps == 3 * 4 * 5 * 3
            assert subject.facts["inner_updates"] == 2
            return subject.call()


def test_a_meta_step_moves_the_rule(meta_step: trainer.MetaState) -> None:
    gain = tiny.Scaled().init_params(jax.random.key(0))["gain"]
    # Adam's first step is as long as the learning rate.
    rate = load().meta.optimizer.learning_rate
    step = abs(float(meta_step.params["gain"] - gain))
    assert 0.1 * rate < step < 1.01 * rate
    np.testing.assert_array_equal(meta_step.optimizers.count, [1, 1, 1])


def test_experience_may_come_from_the_environments(config: BenchConfig) -> None:
    options = config.bench.model_copy(update={"rollouts": "environment"})
    window = parts.window(parts.build(config.model_copy(update={"bench": options})))
    # Catch shows a ball and a paddle in every frame, and pays when an episode ends.
    frames = np.asarray(window.rollouts.observations)
    assert frames.shape == (3, 2, 1, 6, 4, 5, 5)
    np.testing.assert_array_equal(np.unique(frames), [0, 1])
    t = jax.device_get(window.validation.transitions)
    np.testing.assert_array_equal(t.rewards != 0, t.is_terminal)


@pytest.mark.parametrize("rollouts", ["synthetic", "environment"])
def test_updates_are_as_large_as_replay_makes_them(
    rollouts: str, config: BenchConfig
) -> None:
    overrides = [*tiny_run.OVERRIDES, f"bench.rollouts={rollouts}"]
    replay = "population.replay={share: 0.75, capacity: 8}"
    replayed = config_loader.load(BenchConfig, [], [*overrides, replay])
    found = parts.build(replayed)
    assert (found.facts()["trajectories"], found.facts()["num_envs"]) == (16, 4)
    assert parts.build(config).facts()["trajectories"] == 4
    batch, _ = parts.update_inputs(found)
    assert batch.observations.shape == (2, 1, 6, 16, 5, 5)
    window = jax.device_get(parts.window(found))
    assert window.rollouts.observations.shape == (2, 2, 1, 6, 16, 5, 5)
    assert window.validation.observations.shape == (2, 1, 6, 4, 5, 5)
    if rollouts == "synthetic":
        return
    # Each agent replays what it has acted itself.
    for group in range(2):
        of_agent = window.rollouts.observations[group, :, 0]
        acted = {x[:, b].tobytes() for x in of_agent for b in range(4)}
        drawn = [of_agent[1][:, b].tobytes() for b in range(4, 16)]
        assert set(drawn) <= acted
        assert len(set(drawn)) > 1


@pytest.mark.parametrize("name", acting.CASES)
def test_acting_is_timed_by_the_step_of_all_environments(
    name: str, config: BenchConfig
) -> None:
    with acting.CASES[name](config) as subject:
        subject.call()
        assert (subject.env_steps, subject.steps) == (3 * 4, 5)
        assert subject.facts["games"] == "Catch-v0"
        assert subject.facts["num_threads"] == config.environment.num_threads
        assert subject.compiles == (name in ("act", "forward"))


def test_a_train_step_is_a_meta_step_of_a_run_that_leaves_nothing(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "make_rule", experiments.make_rule)
    monkeypatch.chdir(tmp_path)
    with whole_step.train_step(config) as subject:
        metrics = subject.call()
        assert np.isfinite(metrics["loss"]).all()
        assert subject.env_steps == 3 * 4 * 5 * 3
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    [
        # Two agents, N = 2, T = 16, B = 32 and twice as long a validation rollout.
        ("bench_catch_notebook", 1_489_679, (2, 2, 16, 2, 32)),
        ("bench_catch_eval", 943_375, (1, 2, 29, 2, 64)),
    ],
)
def test_benchmarks_are_those_of_the_notebooks(
    name: str, parameters: int, shape: tuple[int, ...]
) -> None:
    config = config_loader.load(BenchConfig, [ROOT / "configs" / f"{name}.yaml"])
    experiment = experiments.build(config).only
    spec = experiment.pool_spec
    example = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
    agent = jax.eval_shape(experiment.agent.init, jax.random.key(0), example)
    assert parts.count(agent.params) == parameters
    assert spec.num_actions == 3
    assert shape == (
        len(experiment.tasks),
        config.meta.inner_updates,
        config.population.rollout_length,
        config.meta.validation_rollouts,
        config.environment.num_envs,
    )
    meta_params = jax.eval_shape(experiment.agent.rule.init_params, jax.random.key(0))
    assert parts.count(meta_params) == 754_778  # as published
