"""Meta-training runs: what they write, and what cannot be one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from compared_runs import arrays, assert_same_run, rows, run

import metarl
from metarl import experiment as experiments
from metarl import rule_files
from metarl.errors import UserError
from metarl.meta.inner_loop import Window
from metarl.stack_training import StackTraining
from metarl.types import Rollout, Transitions


def test_a_run_writes_what_it_promises(whole: Path) -> None:
    assert json.loads((whole / "versions.json").read_text())["packages"]["jax"]
    steps = [row["meta_step"] for row in rows(whole)]
    assert steps == [1, 2, 3, 4, 5, 6]
    last = rows(whole)[-1]
    # 2 agents x 4 environments x (2 + 1) rollouts of 5 steps, less the resets.
    assert 6 * 2 * 4 * 3 * 5 * 0.6 < last["global_step"] < 6 * 2 * 4 * 3 * 5
    assert last["meta/distance"] > 0
    assert last["meta/update_norm"] > 0
    assert np.isfinite(last["meta/loss"])
    rule = metarl.load_rule(whole)
    assert rule.manifest.games_seen == ("Catch-v0",)
    assert rule.manifest.meta_steps == 6
    assert rule.manifest.env_steps == last["global_step"]
    assert rule.status("Catch-v0") == "seen"
    assert rule.status("Pong-v5") == "held_out"
    start = metarl.load_rule(whole / "initial_rule")
    assert start.manifest.meta_steps == 0
    assert start.status("Catch-v0") == "held_out"
    before, after = start.meta_params, rule.meta_params
    norms = [
        np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(t)))
        for t in (jax.tree.map(np.subtract, after, before), before)
    ]
    np.testing.assert_allclose(norms[0] / norms[1], last["meta/distance"], rtol=1e-5)


def test_every_logged_key_is_documented(whole: Path) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for key in rows(whole)[-1]:
        if not key.startswith("agents/"):
            assert f"`{key}`" in documented or key.split("/")[-1] in documented, key


def test_rule_moves_but_seed_decides(whole: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert run(tiny_run.config(again, "meta_steps=6", "checkpoint.every=100")) == 0
    assert_same_run(whole, again)
    assert run(tiny_run.config(other, "meta_steps=1", "seed=2")) == 0
    name = "trajectory/y_target/w"
    assert not np.array_equal(arrays(whole)[name], arrays(other)[name])


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        run(tiny_run.config(tmp_path / "x"), resume=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["update_rule={kind: actor_critic}"], "update_rule.kind=actor_critic: a hand"),
        (["agent.network.torso={kind: nature}"], "'nature' takes frames"),
        (["initial_rule=nowhere"], "rule 'nowhere' is neither"),
        (["initial_rule=ppo"], "initial_rule=ppo: a hand-written rule has no"),
    ],
)
def test_what_cannot_be_trained_leaves_no_run(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=said):
        run(tiny_run.config(folder, *overrides))
    assert not folder.exists()


def test_a_run_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run_dir: .*file: File exists"):
        run(tiny_run.config(tmp_path / "file"))


def test_a_run_is_never_overwritten(whole: Path) -> None:
    with pytest.raises(UserError, match="holds a run"):
        run(tiny_run.config(whole))


def test_finetuning_inherits_what_the_parent_saw(whole: Path, tmp_path: Path) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    loaded = metarl.load_rule(whole)
    seen = loaded.manifest.model_copy(update={"games_seen": ("Pong-v5",)})
    rule_files.save_rule(parent, loaded.meta_params, seen)
    config = tiny_run.config(child, "meta_steps=1", f"initial_rule={parent}")
    assert run(config) == 0
    manifest = metarl.load_rule(child).manifest
    assert manifest.games_seen == ("Catch-v0", "Pong-v5")
    assert [p.name for p in manifest.parents] == ["parent"]
    # The first step starts from the parent: it is near it, and not at it.
    name = "trajectory/y_target/w"
    moved = np.abs(arrays(child)[name] - arrays(whole)[name]).max()
    assert 0 < moved < 2e-3
    for file in parent.iterdir():
        file.unlink()
    assert run(tiny_run.resumed(child, "meta_steps=2"), resume=child) == 0
    assert metarl.load_rule(child).manifest.parents == manifest.parents


def test_acting_with_the_initial_parameters_is_another_run(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "initial"
    config = tiny_run.config(folder, "meta_steps=2", "meta.acting=initial")
    assert run(config) == 0
    assert rows(folder)[0] != rows(whole)[0]
    assert np.isfinite(rows(folder)[-1]["meta/loss"])


def test_non_finite_meta_gradients_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nan"
    config = tiny_run.config(folder, "meta_steps=9", "meta.max_skipped=2")
    real = StackTraining.play

    def poisoned(self, meta_params, population, key):
        population, objective, window = real(self, meta_params, population, key)
        bad = jax.tree.map(lambda x: x * np.nan, window.values.params)
        values = dataclasses.replace(window.values, params=bad)
        return population, objective, dataclasses.replace(window, values=values)

    monkeypatch.setattr(StackTraining, "play", poisoned)
    assert run(config) == 1
    # The first tensor that is not finite, which a look at the checkpoint begins with.
    first = jax.tree_util.tree_flatten_with_path(metarl.load_rule(folder).meta_params)
    path = jax.tree_util.keystr(first[0][0][0])
    said = capsys.readouterr().out
    assert f"not finite in 2 meta-steps in a row, in {path} first" in said
    assert rows(folder)[-1]["meta/skipped"] == 4
    assert rows(folder)[-1]["meta/distance"] == 0


def test_programs_grow_neither_with_agents_nor_with_updates(tmp_path: Path) -> None:
    def size(num_agents: int, updates: int) -> int:
        config = tiny_run.config(tmp_path / "x", f"population.num_agents={num_agents}")
        experiment = experiments.build(config)
        params = experiments.initial_meta_params(experiment, config)
        stack = experiment.only
        population = experiments.first_population(stack, config.seed)
        agent, spec = stack.agent, stack.pool_spec
        rollout = synthetic_rollout(num_agents, spec.observation_shape)
        keys = jax.random.split(jax.random.key(0), (num_agents, updates))
        window = Window(
            agents=population.agents,
            values=population.values,
            rollouts=jax.tree.map(lambda x: np.stack([x] * updates, axis=1), rollout),
            keys=keys,
            validation=rollout,
        )
        assert agent.num_actions == 3
        program = jax.jit(lambda *args: stack.estimator.gradient(*args))
        return program.lower(params, window).as_text().count("\n")

    # No other axis of the tiny run has one of these lengths, so that no function of
    # the program happens to serve two of them.
    assert size(11, 23) == size(19, 23) == size(11, 29)


def synthetic_rollout(groups: int, observation_shape: tuple[int, ...]) -> Rollout:
    """Return a rollout ``[G, 1, 5, 4]`` of zeros."""

    def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return np.zeros((groups, 1, *shape), dtype)

    transitions = Transitions(
        actions=zeros(5, 4, dtype=np.int32),
        behaviour_logits=zeros(5, 4, 3),
        rewards=zeros(5, 4),
        is_terminal=zeros(5, 4, dtype=bool),
        cut=zeros(5, 4, dtype=bool),
        valid=~zeros(5, 4, dtype=bool),
        learn=zeros(5, 4) + 1,
        own=~zeros(5, 4, dtype=bool),
    )
    return Rollout(
        observations=zeros(6, 4, *observation_shape),
        transitions=transitions,
        returns=zeros(4),
        success=zeros(4, dtype=bool),
        env_steps=zeros(dtype=np.int32),
    )
