"""What meta-steps ask of host and device, where agents act meanwhile too."""

from __future__ import annotations

import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from compared_runs import assert_same_run, run

from metarl import train
from metarl.meta_training import MetaTraining
from metarl.rollout.actor import Actor
from metarl.run_folder import RunFolder
from metarl.types import Rollout


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
