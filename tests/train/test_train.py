"""Meta-training runs: what they write, and that a stop changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import metarl
from metarl import config_loader, rule_files, train
from metarl import experiment as experiments
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.meta.inner_loop import Window
from metarl.meta_training import MetaTraining
from metarl.rollout.actor import Actor
from metarl.run_folder import RunFolder
from metarl.stack_training import StackTraining
from metarl.types import Rollout, Transitions

TIMES = ("stats/", "charts/SPS")
"""Metrics that no two runs share."""


def run(config: TrainConfig, *, resume: Path | None = None) -> int:
    return train.main(config, resume=resume)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "rule" / "rule.npz") as file:
        return dict(file)


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)}
        for line in lines
    ]


def checkpoint(folder: Path) -> list[np.ndarray]:
    """Return every leaf of the newest checkpoint, environments included."""
    config = config_loader.load(TrainConfig, [folder / "config.yaml"])
    with train.TrainingRun(config, RunFolder(folder)) as taken_up:
        taken_up.begin()
        training = taken_up.training
        # The environments of a finished run are not replayed; their actions are in
        # the checkpoint, and `test_pool_state` says what follows from them.
        populations = [stack.population for stack in training.stacks]
        state = (training.meta, populations, training.env_steps, training.lives)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    for left, right in zip(checkpoint(one), checkpoint(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 meta-steps that nothing interrupted, saved at its end alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_run.config(folder, "meta_steps=6", "checkpoint.every=100")
    assert run(config) == 0
    return folder


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


def test_checkpoints_change_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "often"
    assert run(tiny_run.config(folder, "meta_steps=6", "checkpoint.every=1")) == 0
    assert_same_run(whole, folder)


def test_extended_run_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "extended"
    assert run(tiny_run.config(folder, "meta_steps=3", "checkpoint.every=2")) == 0
    assert len(list((folder / "checkpoints").iterdir())) == 2
    # How often it is saved, and how many are kept, changes no result.
    longer = tiny_run.resumed(
        folder, "meta_steps=6", "checkpoint.every=1", "checkpoint.keep=1"
    )
    assert run(longer, resume=folder) == 0
    assert_same_run(whole, folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["6"]


def test_killed_run_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(folder, "checkpoint.every=2")
    wait_for_rows(folder, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (before,) = {row["meta_step"] for row in rows(folder)[-1:]}
    assert before < 1000
    shortened = (folder / "config.yaml").read_text()
    assert "meta_steps: 1000" in shortened
    (folder / "config.yaml").write_text(
        shortened.replace("meta_steps: 1000", "meta_steps: 6")
    )
    if before < 6:
        assert run(tiny_run.resumed(folder), resume=folder) == 0
        assert_same_run(whole, folder)
    else:
        # It was faster than the signal; its first rows are the same all the same.
        assert rows(folder)[:6] == rows(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "preempted"
    process = start(folder, "checkpoint.every=1000")
    wait_for_rows(folder, 2, process)
    config = tiny_run.resumed(folder)
    with pytest.raises(UserError, match="another process is at work"):
        run(config, resume=folder)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out
    assert f"metarl train --resume {folder}" in out
    done = rows(folder)[-1]["meta_step"]
    assert metarl.load_rule(folder).manifest.meta_steps == done


def test_killed_before_its_first_checkpoint_starts_anew(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "early"
    config = tiny_run.config(folder, "meta_steps=6")
    RunFolder.create(config)
    (folder / "metrics.jsonl").write_text('{"meta_step": 1, "left": "over"}\n{"met')
    assert run(tiny_run.resumed(folder), resume=folder) == 0
    assert_same_run(whole, folder)


def test_finished_run_says_so(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = arrays(whole)
    assert run(tiny_run.resumed(whole), resume=whole) == 0
    assert "finished already" in capsys.readouterr().out
    for name, value in arrays(whole).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=7", "seed: 7 differs from the run's 1"),
        ("agent.optimizer.learning_rate=0.5", "agent.optimizer.learning_rate: 0.5"),
        ("tracking.log_every=2", "tracking.log_every: 2 differs"),
        ("runtime.platform=cpu", "runtime.platform: cpu differs"),
        ("meta_steps=2", "meta_steps: 2 is less than the run's 6"),
    ],
)
def test_resume_refuses_other_changes(whole: Path, override: str, said: str) -> None:
    config = tiny_run.resumed(whole, override)
    with pytest.raises(UserError, match=said):
        run(config, resume=whole)


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        run(tiny_run.config(tmp_path / "x"), resume=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["update_rule={kind: actor_critic}"], "update_rule.kind=actor_critic: a hand"),
        (["agent.network.torso={kind: nature}"], "'nature' takes frames"),
        (["initial_rule=nowhere"], "rule 'nowhere' is neither"),
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
    assert "not finite in 2 meta-steps in a row" in capsys.readouterr().out
    assert rows(folder)[-1]["meta/skipped"] == 4
    assert rows(folder)[-1]["meta/distance"] == 0


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(config_loader.dump(tiny_run.config(folder, *overrides)))
    return subprocess.Popen(
        [sys.executable, "-m", "metarl", "train", str(path), "meta_steps=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(3000):
        assert process.poll() is None, process.communicate()[0]
        if metrics.exists() and metrics.read_text().count("\n") >= count:
            return
        time.sleep(0.1)
    raise AssertionError("the run never wrote its metrics")


def test_nothing_recompiles_after_the_first_meta_step(tmp_path: Path) -> None:
    # The first of two lives ends within the second meta-step.
    config = tiny_run.config(
        tmp_path / "run", "meta_steps=4", "population.lifetime_env_steps=150"
    )
    compiled: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    with MetaTraining(config) as training:
        training.start()
        training.meta_step()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            training.meta_step()
            training.meta_step()
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert training.lives.sum() > 0


@pytest.mark.parametrize("overlap", ["never", "always"])
def test_nothing_moves_to_or_from_the_host_unasked(
    overlap: str, tmp_path: Path
) -> None:
    # Within the second and the third meta-step a life ends.
    config = tiny_run.config(
        tmp_path / "run",
        "meta_steps=4",
        "population.lifetime_env_steps=150",
        f"population.overlap={overlap}",
    )
    with train.TrainingRun(config, RunFolder.create(config)) as begun:
        begun.begin()
        with begun._tracker() as tracker:
            begun._step_and_log(tracker)
            with tiny_run.no_unasked_transfers():
                begun._step_and_log(tracker)
                begun._step_and_log(tracker)
    assert begun.training.lives.sum() > 0


@pytest.mark.parametrize("overlap", ["never", "always"])
def test_a_transfer_that_acting_does_unasked_is_noticed(
    overlap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the test before relies on, where acting has a thread of its own above all.
    config = tiny_run.config(tmp_path, "meta_steps=3", f"population.overlap={overlap}")
    collect_on_host, threads = Actor.collect_on_host, []

    def careless(self: Actor, *given: object) -> Rollout:
        threads.append(threading.current_thread())
        rollout = collect_on_host(self, *given)
        jnp.asarray(rollout.returns + 1)
        return rollout

    with MetaTraining(config) as training:
        training.start()
        training.meta_step()
        monkeypatch.setattr(Actor, "collect_on_host", careless)
        with (
            tiny_run.no_unasked_transfers(),
            pytest.raises(Exception, match="Disallowed host-to-device transfer"),
        ):
            training.meta_step()
    is_main = threads[0] is threading.main_thread()
    assert is_main == (overlap == "never")


@pytest.mark.parametrize("acting", ["current", "lagged", "initial"])
def test_acting_ahead_changes_nothing(acting: str, tmp_path: Path) -> None:
    # Lives end, rows and checkpoints are of different meta-steps, and a resume falls
    # between rows.
    overrides = [
        f"meta.acting={acting}",
        "meta.inner_updates=3",
        "population.lifetime_env_steps=300",
        "tracking.log_every=2",
        "checkpoint.every=3",
    ]
    apart, together = tmp_path / "apart", tmp_path / "together"
    off, on = "population.overlap=never", "population.overlap=always"
    assert run(tiny_run.config(apart, "meta_steps=6", off, *overrides)) == 0
    assert run(tiny_run.config(together, "meta_steps=3", on, *overrides)) == 0
    assert run(tiny_run.resumed(together, "meta_steps=6"), resume=together) == 0
    assert_same_run(apart, together)
    config = tiny_run.resumed(together)
    with train.TrainingRun(config, RunFolder(together)) as taken_up:
        taken_up.begin()
        assert taken_up.training.lives.sum() > 0


def test_a_run_that_acts_ahead_is_saved_as_if_it_did_not(tmp_path: Path) -> None:
    pools = []
    for overlap in ("never", "always"):
        config = tiny_run.config(
            tmp_path / overlap, "meta_steps=9", f"population.overlap={overlap}"
        )
        with train.TrainingRun(config, RunFolder.create(config)) as begun:
            begun.begin()
            training = begun.training
            stop = lambda training=training: training.meta_steps >= 3  # noqa: E731
            assert begun.run(stop) == 75
            (stack,) = training.stacks
            pools.append(stack.rollouts.pool_states())
            assert (stack.rollouts._ahead is not None) == (overlap == "always")
    for left, right in zip(*pools, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name], err_msg=name)


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


def test_agents_are_replaced_when_their_lifetime_ends(tmp_path: Path) -> None:
    # 2 agents live about 50 steps per meta-step: the first for 75, then both for 150.
    overrides = ["population.lifetime_env_steps=150", "checkpoint.every=1"]
    config = tiny_run.config(tmp_path / "lives", "meta_steps=8", *overrides)
    ages, births = [], []
    with MetaTraining(config) as training:
        training.start()
        for _ in range(8):
            before = training.stacks[0].population.agents.params
            training.meta_step()
            agents = training.stacks[0].population.agents
            ages.append(np.asarray(agents.env_steps)[:, 0])
            births.append(np.asarray(agents.agent_updates)[:, 0] == 0)
            for group in np.flatnonzero(births[-1]):
                after = jax.tree.map(lambda x, g=group: x[g], agents)
                assert after.optimizer.count == 0
                np.testing.assert_array_equal(after.rule_state.lifetime.hidden, 0)
                np.testing.assert_array_equal(
                    after.params["torso/linear_0"]["w"],
                    after.target_params["torso/linear_0"]["w"],
                )
                assert not np.array_equal(
                    after.params["torso/linear_0"]["w"],
                    before["torso/linear_0"]["w"][group],
                )
    assert np.max(ages) < 150
    first = [int(np.argmax(np.array(births)[:, group])) for group in range(2)]
    assert first == [1, 3]
    np.testing.assert_array_equal(training.lives, np.sum(births, axis=0))
    assert training.lives.sum() >= 4


def test_resuming_through_births_changes_nothing(tmp_path: Path) -> None:
    overrides = ["population.lifetime_env_steps=150", "checkpoint.every=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(tiny_run.config(whole, "meta_steps=6", *overrides)) == 0
    assert run(tiny_run.config(stopped, "meta_steps=2", *overrides)) == 0
    assert run(tiny_run.resumed(stopped, "meta_steps=6"), resume=stopped) == 0
    assert_same_run(whole, stopped)
