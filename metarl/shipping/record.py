"""What a run has on record of a rule that is to ship, and nothing that it has not.

Host code: reads the run's folder; `card.py` tells it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from metarl import config_loader
from metarl.checkpoint import newest_metadata
from metarl.config import EnvironmentConfig, TrackingConfig, TrainConfig
from metarl.envs.tasks import resolve_environment
from metarl.errors import UserError
from metarl.report.inputs import (
    BEST_RULE,
    CONFIG,
    INITIAL_RULE,
    METRICS,
    TrainingRun,
    is_run,
    read_run,
)
from metarl.report.scores import Task
from metarl.rule_files import LoadedRule, Manifest, load_rule
from metarl.rule_files import folder as rule_folder

Choice = Literal["best", "newest", "named"]
"""Why this rule of the run: the best in validation, the newest of a run that did not
validate, or the one whose folder was given."""


@dataclasses.dataclass(frozen=True)
class MachineTime:
    """What meta-training took by its metrics.

    Attributes:
      training_s: between rows of metrics, over all sittings of the run.
      validation_s: of validations, which come on top.
    """

    training_s: float
    validation_s: float


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A rule and its run.

    Attributes:
      name: that the rule ships by.
      run: that made it.
      config: of the run.
      rule: as it was loaded and checked.
      arrays: the bytes of its `rule.npz`.
      manifest_json: the text of its `manifest.json`.
      choice: why it is this one.
      tasks: that it was meta-trained on, with their options.
      time: what the run took.
      saved_on: the device of the newest checkpoint; empty where there is none.
    """

    name: str
    run: TrainingRun
    config: TrainConfig
    rule: LoadedRule
    arrays: bytes
    manifest_json: str
    choice: Choice
    tasks: tuple[Task, ...]
    time: MachineTime
    saved_on: Mapping[str, object]

    @property
    def manifest(self) -> Manifest:
        """What the rule says of itself."""
        return self.rule.manifest

    @property
    def initial_sha256(self) -> str:
        """Of the rule before any meta-step; empty where it is not kept."""
        try:
            arrays, _ = rule_folder.read(self.run.path / INITIAL_RULE)
        except OSError:
            return ""
        return rule_folder.sha256(arrays)

    def config_yaml(self) -> str:
        """Return the run's configuration for others: without its folder and W&B."""
        tracking = TrackingConfig(log_every=self.config.tracking.log_every)
        config = self.config.model_copy(update={"run_dir": None, "tracking": tracking})
        return (
            f"# The run that discovered {self.name}, in full:\n"
            f"#   metarl train checkpoints/{self.name}/config.yaml\n"
            + config_loader.dump(config)
        )


def read_record(path: Path, name: str) -> Record:
    """Return what is on record of the rule that a run ships.

    Args:
      path: a run, or one of the rules in it.
      name: that the rule will have.

    Raises:
      UserError: it is neither, or its files are not what they should be.
    """
    run_path, place, choice = _choose(path)
    run = read_run(run_path)
    rule = load_rule(place)
    arrays, text = rule_folder.read(place)
    if text is None or rule_folder.sha256(arrays) != rule.manifest.sha256:
        raise UserError(f"{place} was written anew in the meantime; repeat the command")
    config = config_loader.load(TrainConfig, [run_path / CONFIG])
    return Record(
        name=name,
        run=run,
        config=config,
        rule=dataclasses.replace(rule, name=name),
        arrays=arrays,
        manifest_json=text,
        choice=choice,
        tasks=tasks_in(config.environment),
        time=machine_time(run.rows),
        saved_on=_saved_on(run_path),
    )


def machine_time(rows: Sequence[Mapping[str, float | None]]) -> MachineTime:
    """Return what a run took by the clock, from its rows of metrics.

    `charts/SPS` is the steps since the row before by the seconds since then, saving
    included and validating not (docs/metrics.md). The first row after a resume is
    timed from the checkpoint on; what came between the row before and the checkpoint
    is taken at that row's speed.
    """
    training_s = validation_s = done = 0.0
    for row in rows:
        steps, speed = row.get("global_step"), row.get("charts/SPS")
        if steps is not None and speed:
            training_s += (steps - done) / speed
            done = steps
        validation_s += row.get("stats/validation_time") or 0.0
    return MachineTime(training_s, validation_s)


def tasks_in(environment: EnvironmentConfig) -> tuple[Task, ...]:
    """Return the games of an environment with their options."""
    return tuple(
        Task(task.game.task_id, tuple(sorted((k, str(v)) for k, v in task.options)))
        for task in resolve_environment(environment, same_shapes=False)
    )


def _choose(path: Path) -> tuple[Path, Path, Choice]:
    """Return the run, the folder of its rule that ships, and why this one."""
    if is_run(path):
        if rule_folder.holds_rule(path / BEST_RULE):
            return path, path / BEST_RULE, "best"
        if rule_folder.holds_rule(path / "rule"):
            return path, path / "rule", "newest"
        raise UserError(f"{path} is a run that has not saved a rule yet")
    parent = path.resolve().parent
    of_run = rule_folder.holds_rule(path) and is_run(parent)
    if of_run and path.name != INITIAL_RULE:
        return parent, path, "named"
    if not path.exists():
        what = "there is no such folder"
    elif of_run and path.name == INITIAL_RULE:
        what = "what the run began with, of which nothing is discovered"
    elif (path / CONFIG).is_file():
        what = f"a run without {METRICS}, which its card needs"
    else:
        what = "not a run"
    raise UserError(
        f"rules ship: {path}: {what} (allowed: the folder of a run of `metarl train`, "
        "or of a rule in one)"
    )


def _saved_on(run: Path) -> Mapping[str, object]:
    metadata = newest_metadata(run / "checkpoints") or {}
    saved_on = metadata.get("machine")
    return saved_on if isinstance(saved_on, dict) else {}
