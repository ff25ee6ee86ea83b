"""`metarl train`: a run from its start, or from where it stopped, to its end.

Host code: it owns the run's folder, checkpoints, signals and what is said. One
meta-step is in `meta_training.py`, the rules that stay in `kept_rules.py`, rows of
metrics in `meta_log.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from metarl import experiment as experiments
from metarl import meta_log
from metarl.checkpoint import CheckpointStore
from metarl.config import TrainConfig
from metarl.console import Progress, heartbeat, say
from metarl.disk_space import told_if_full
from metarl.kept_rules import KeptRules, manifest_of
from metarl.meta_training import MetaTraining
from metarl.provenance import git_commit
from metarl.run_folder import RunFolder, describe_machine, load_parent
from metarl.runtime import release_memory
from metarl.stop_signals import stop_signals
from metarl.tracking import Position, RunLabels, Tracker
from metarl.validation import Validation
from metarl.validation_plan import check_validation

ToldToStop = Callable[[], bool]
EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED = 0, 1, 75


def main(config: TrainConfig, *, resume: Path | None = None) -> int:
    """Meta-train a rule as `metarl train` does; return the exit code.

    Args:
      config: resolved.
      resume: the run to go on with; `config` is then its own, with overrides.
    """
    if resume is None:
        folder = new_run(config)
    else:
        folder = RunFolder(resume)
        games = experiments.build(config).games
        manifest = manifest_of(config, games=games, parent=folder.parent(config))
        check_validation(config, manifest)
        folder.accept_changes(config)
    return go_on(config, folder)


def go_on(config: TrainConfig, folder: RunFolder) -> int:
    """Take up the run in ``folder`` where it stands; return the exit code."""
    resume = f"metarl train --resume {folder.path}"
    with (
        told_if_full(f"what was saved before is kept; make room and go on: {resume}"),
        folder.locked(),
        stop_signals() as told_to_stop,
        contextlib.ExitStack() as stack,
    ):
        with heartbeat("preparing agents and environments"):
            run = stack.enter_context(TrainingRun(config, folder))
            run.begin()
        return run.run(told_to_stop)


def new_run(config: TrainConfig) -> RunFolder:
    """Return the folder of a new run, made once its parts are known to fit together.

    Raises:
      UserError: they do not, or there is a run in the folder.
    """
    experiment = experiments.build(config)
    experiments.check_networks(experiment, config)
    parent = None
    if config.initial_rule is not None:
        parent = load_parent(config.initial_rule, config)
    manifest = manifest_of(config, games=experiment.games, parent=parent)
    check_validation(config, manifest)
    return RunFolder.create(config)


class TrainingRun:
    """One run in its folder."""

    def __init__(self, config: TrainConfig, folder: RunFolder) -> None:
        """Build the parts; `begin` must come next."""
        self.config, self.folder = config, folder
        self.parent = parent = folder.parent(config)
        self.training = MetaTraining(
            config, initial_params=None if parent is None else parent.meta_params
        )
        self.validation = Validation(config, folder)
        self.checkpoints = CheckpointStore(
            folder.checkpoints, keep=config.checkpoint.keep
        )
        self.rules = KeptRules(
            config, folder, games=self.training.experiment.games, parent=parent
        )

    def __enter__(self) -> TrainingRun:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the environments and finish the last save."""
        self.training.close()
        self.checkpoints.close()

    # --- The loop -----------------------------------------------------------------

    def run(self, told_to_stop: ToldToStop = lambda: False) -> int:
        """Take meta-steps until they are done or ``told_to_stop``."""
        training = self.training
        if self._is_finished:
            say(
                f"{self.folder.path}: finished already, after {training.meta_steps} "
                "meta-steps (extend it with meta_steps=...)"
            )
            return EXIT_DONE
        self._announce()
        training.log.start(training.env_steps)
        with self._tracker() as tracker:
            # One that a stop left undone.
            self._validate_if_due(tracker, told_to_stop)
            if not self._is_over(told_to_stop):
                self._take_meta_steps(tracker, told_to_stop)
            tracker.log_artifact(self.folder.rule)
            if self.validation.best is not None:
                tracker.log_artifact(self.folder.best_rule)
            if training.failure is not None:
                tracker.close(exit_code=EXIT_FAILED)
        if training.failure is not None:
            say(f"meta_step={training.meta_steps}: {training.failure}")
            return EXIT_FAILED
        return self._farewell()

    def _take_meta_steps(self, tracker: Tracker, told_to_stop: ToldToStop) -> None:
        training = self.training
        # The first meta-step compiles, and says so in lines of its own.
        with heartbeat("compiling and taking the first meta-step"):
            self._step_and_log(tracker)
        release_memory()
        with Progress(
            self.config.meta_steps,
            "meta-training",
            "meta_step",
            done=training.meta_steps,
        ) as progress:
            progress.update(training.meta_steps, self._shown())
            while True:
                if self._is_validation_due:
                    self.save()  # validations take long, and may be stopped
                    with progress.suspended():
                        self._validate_if_due(tracker, told_to_stop)
                if self._is_over(told_to_stop):
                    break
                if training.meta_steps % self.config.checkpoint.every == 0:
                    self.save()
                self._step_and_log(tracker)
                progress.update(training.meta_steps, self._shown())
        self.save()

    def _is_over(self, told_to_stop: ToldToStop) -> bool:
        training = self.training
        is_done = training.meta_steps >= self.config.meta_steps
        return is_done or told_to_stop() or training.failure is not None

    @property
    def _is_validation_due(self) -> bool:
        training = self.training
        return training.failure is None and self.validation.is_due(training.meta_steps)

    @property
    def _is_finished(self) -> bool:
        is_done = self.training.meta_steps >= self.config.meta_steps
        return is_done and not self._is_validation_due

    def _validate_if_due(self, tracker: Tracker, told_to_stop: ToldToStop) -> None:
        """Let fresh agents say how good the rule is; nothing of the training moves."""
        training = self.training
        if told_to_stop() or not self._is_validation_due:
            return
        start = time.perf_counter()
        with training.log.paused():
            score = self.validation.run(
                self._write_rule,
                meta_steps=training.meta_steps,
                told_to_stop=told_to_stop,
            )
            release_memory()
        if score is None:
            return
        self.validation.take(score)
        self._write_rule(self.folder.rule)  # which the games have scored from now on
        seconds = {"stats/validation_time": time.perf_counter() - start}
        tracker.log(
            {**score.metrics, **seconds},
            global_step=training.env_steps,
            meta_step=training.meta_steps,
        )
        self.validation.store(score)
        say(self.validation.summary(score))

    def _step_and_log(self, tracker: Tracker) -> None:
        training = self.training
        metrics = training.meta_step()
        if training.is_logged:
            tracker.log(
                training.row(metrics),
                global_step=training.env_steps,
                meta_step=training.meta_steps,
            )

    # --- What is kept -------------------------------------------------------------

    def begin(self) -> None:
        """Take up the newest checkpoint, or start anew where there is none."""
        step = self.checkpoints.latest_step()
        self.validation.begin(step or 0)
        if step is None:
            self.training.start()
            self.rules.write_initial(self.training.initial_params)
            self._write_rule(self.folder.rule)
            return
        saved = self.checkpoints.metadata(step)
        if (machine := describe_machine()) != saved["machine"]:
            say(
                f"warning: the run was saved on {saved['machine']}, and goes on on "
                f"{machine}: results will differ in their last bits from there on"
            )
        with_replays = saved["replays"] is True
        if self.training.keeps_batches and not with_replays:
            say(
                f"warning: checkpoint {step} was saved with checkpoint.replay=false: "
                "replays and sliding windows begin empty, and from there on the run is "
                "not the same as one that was never stopped"
            )
        tree = self.checkpoints.restore(step, self.training.like(replays=with_replays))
        self.training.restore(
            tree, meta_steps=step, env_steps=int(str(saved["env_steps"]))
        )

    def save(self) -> None:
        """Store everything that is needed to go on, and the rule."""
        training = self.training
        replays = self.config.checkpoint.replay
        metadata = {
            "env_steps": training.env_steps,
            "machine": describe_machine(),
            "replays": replays,
        }
        tree = training.tree(replays=replays)
        self.checkpoints.save(training.meta_steps, tree, metadata)
        self._write_rule(self.folder.rule)

    def _write_rule(self, place: Path, scored_by: Sequence[str] = ()) -> None:
        """Store the rule, which ``scored_by`` games are about to score too."""
        self.rules.write(
            place,
            self.training.meta.params,
            meta_steps=self.training.meta_steps,
            env_steps=self.training.env_steps,
            games_validation=[*self.validation.games_used, *scored_by],
        )

    # --- What is said -------------------------------------------------------------

    def _announce(self) -> None:
        training = self.training
        say(f"run: {self.folder.path}")
        lines = meta_log.announcement(training.experiment, training.meta.params)
        games, steps = training.experiment.games, training.meta_steps
        manifest = manifest_of(self.config, games=games, parent=self.parent)
        for line in [*lines, *self.validation.announcement(steps, manifest)]:
            say(line)

    def _shown(self) -> dict[str, float | None]:
        row = self.training.log.newest
        skip = meta_log.frames_per_step(self.training.experiment)
        return meta_log.shown(row, frames_per_step=skip) if row else {}

    def _farewell(self) -> int:
        training, path = self.training, self.folder.path
        say(
            f"{path}: {training.meta_steps} meta-steps, {training.env_steps:,} "
            "environment steps; the meta-parameters moved by "
            f"{float(training.distance):.3%} of their norm"
        )
        say(f"rule: {self.folder.rule}")
        if (best := self.validation.best) is not None:
            say(
                f"best rule in validation: {self.folder.best_rule} (of meta-step "
                f"{best.meta_step}, iqm={best.iqm:.4g}); evaluate it with: "
                f"metarl evaluate {self.folder.best_rule} --suite SUITE"
            )
        if self._is_finished:
            return EXIT_DONE
        say(f"stopped and saved; go on with: metarl train --resume {path}")
        return EXIT_PREEMPTED

    def _tracker(self) -> Tracker:
        training, position = self.training, None
        if training.meta_steps > 0:
            redone = ("eval",) if self._is_validation_due else ()
            position = Position(training.env_steps, training.meta_steps, redone)
        commit = git_commit()
        labels = RunLabels(
            name=self.folder.path.name,
            group=self.config.exp_name,
            tags=() if commit is None else (commit,),
        )
        return Tracker(
            self.folder.path,
            self.config.tracking,
            self.config.model_dump(mode="json"),
            labels,
            resume=position,
        )
