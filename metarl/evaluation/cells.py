"""Cells of an evaluation: a rule, a game and a seed, with all their settings.

Host code. Results are not touched here. Planning reads the user's YAML files and
rules, and makes an environment of a game outside our tables to see its shapes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from metarl import config_loader, without_effect
from metarl.config import EnvironmentConfig, EvaluationConfig, RuleConfig
from metarl.envs import suites
from metarl.envs.suites import Family
from metarl.envs.tasks import (
    PoolSpec,
    Task,
    apply_protocol,
    pool_spec,
    resolve_environment,
)
from metarl.errors import UserError
from metarl.evaluation.defaults import rule_for, settings_for, user_tree
from metarl.evaluation.named_rules import named_rules
from metarl.rule_files import MODULE_SHA256, LoadedRule, load_rule

OPEN_ENV_STEPS = 500_000
"""The budget where neither a suite nor a family says one: that of classic control."""
MIN_PICTURE = 36
"""Pixels a side that the torso of the Atari settings needs."""

_RUN_TIME = (
    "rules",
    "seeds",
    "results_dir",
    "exp_name",
    "cells_at_once",
    "tracking",
    "runtime",
    "videos",
    "tuning",
)
"""Settings that say how an evaluation runs, not what a cell's result is."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What chose a rule's learning rate.

    Attributes:
      learning_rates: of the options, as the scored games would have them.
      games: that they were tried on.
      seeds: of each game.
      env_steps: of each game and seed.
      chosen: of the rates.
      score: by which: "normalized_score" or "rank".
      scores: of each rate, mean over games and seeds.
      factors: that made the rates, if they were not given; what was tried had the
        same multiples of its own rates.
    """

    learning_rates: tuple[float, ...]
    games: tuple[str, ...]
    seeds: tuple[int, ...]
    env_steps: int
    chosen: float
    score: str
    scores: tuple[float, ...]
    factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A fresh agent, or a group of them, that learns one game by one rule."""

    rule: LoadedRule
    task: Task
    seed: int
    settings: EvaluationConfig  # resolved for this rule and the game's family
    tuning: Tuned | None = None  # how the learning rate was chosen

    @property
    def game(self) -> str:
        """The game's task id."""
        return self.task.game.task_id

    @property
    def name(self) -> str:
        """Of the cell's file."""
        return cell_name(self.rule.name, self.game, self.seed, self.group_size)

    @property
    def group_size(self) -> int:
        """How many agents learn together."""
        return self.settings.group_size

    @property
    def env_steps(self) -> int:
        """The budget, in total over the group."""
        assert self.settings.env_steps is not None
        return self.settings.env_steps

    @property
    def base_seed(self) -> int:
        """What all randomness of the cell comes from; the same for every rule.

        So that rules are compared on the same initial networks and environments.
        """
        digest = hashlib.sha256(f"{self.seed},{self.game}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    @property
    def spec(self) -> PoolSpec:
        """Shapes of observations and actions."""
        return pool_spec(self.task, self.settings.environment)

    @property
    def frame_skip(self) -> int:
        """Frames of the emulator that an environment step takes; 1 outside Atari."""
        return self.settings.environment.atari.frame_skip if self._is_atari else 1

    @property
    def protocol(self) -> str:
        """The preset by which Atari is played; empty outside it."""
        return self.settings.environment.atari.protocol if self._is_atari else ""

    @property
    def _is_atari(self) -> bool:
        return self.task.game.family == "atari"

    def identity(self) -> dict[str, object]:
        """Return all settings that decide the result, as plain JSON values."""
        manifest = self.rule.manifest
        identity: dict[str, object] = {
            **_settings(self.settings),
            "update_rule": manifest.config.model_dump(mode="json"),
            "rule_sha256": manifest.sha256,
        }
        if module := manifest.source.get(MODULE_SHA256):
            # The hash of a run's rule is of its arrays alone.
            identity["rule_module_sha256"] = module
        environment = identity["environment"]
        assert isinstance(environment, dict)
        environment["options"] = dict(self.task.options)
        if self.tuning is not None:
            tuned = dataclasses.asdict(self.tuning)
            # What they decided is told by `chosen` and `learning_rates`.
            del tuned["scores"], tuned["factors"]
            identity["tuning"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in tuned.items()
            }
        return identity


_RULE = pydantic.TypeAdapter[Any](RuleConfig)


def completed_identity(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored identity with the settings that came after it at their defaults.

    So that results of an earlier version go on to count. One that is not understood
    stays as it is, and differs.
    """
    environment = dict(stored.get("environment", {}))
    options = environment.pop("options", {})
    known = EvaluationConfig.model_fields
    try:
        settings = EvaluationConfig.model_validate(
            {
                **{k: v for k, v in stored.items() if k in known and k != "tuning"},
                "environment": environment,
            }
        )
        rule = _RULE.validate_python(stored["update_rule"])
    except (pydantic.ValidationError, KeyError):
        return dict(stored)
    completed = {
        **stored,
        **_settings(settings),
        "update_rule": rule.model_dump(mode="json"),
    }
    completed["environment"] = {**completed["environment"], "options": options}
    return completed


def _settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that decide a result, whatever the rule and the game."""
    # With what the protocol sets, for whoever reads them.
    played = config.model_copy(
        update={"environment": apply_protocol(config.environment)}
    )
    settings = played.model_dump(mode="json")
    for name in _RUN_TIME:
        settings.pop(name, None)
    for name in ("suite", "games", "num_threads", "epoch_steps"):
        del settings["environment"][name]
    return settings


def cell_name(rule: str, game: str, seed: int, group_size: int = 1) -> str:
    """Return the name of a cell, which is one of a file too."""
    group = f"__group{group_size}" if group_size > 1 else ""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{rule}__{game}{group}__seed{seed}")


def plan(
    rules: Sequence[str | Path | LoadedRule],
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> list[Cell]:
    """Return every cell: rules x games x seeds.

    Args:
      rules: what `load_rule` takes, or loaded ones.
      files: the user's YAML files.
      overrides: the user's `key=value`.

    Raises:
      UserError: a rule, game or setting does not exist or has no effect, or two rules
        or cells share a name.
    """
    user = _user_config(files, overrides)
    without_effect.refuse(user, files, overrides)
    tasks = resolve_environment(user.environment, same_shapes=False)
    own = named_rules(user)
    loaded = [
        r if isinstance(r, LoadedRule) else own.get(str(r)) or load_rule(r)
        for r in rules
    ]
    names = [rule.name for rule in loaded]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"rule: two are called '{name}', which results could not tell apart "
                "(give one of the folders another name)"
            )
    if len(set(user.seeds)) < len(user.seeds) or not user.seeds:
        raise UserError(f"seeds: {list(user.seeds)} (allowed: one or more, each once)")
    cells = []
    for rule in loaded:
        for task in tasks:
            env_steps = default_env_steps(user.environment, task)
            first = new_cell(
                rule, task, user.seeds[0], env_steps, files=files, overrides=overrides
            )
            cells += [dataclasses.replace(first, seed=seed) for seed in user.seeds]
    _require_own_names(cells)
    return cells


def _require_own_names(cells: Sequence[Cell]) -> None:
    """Refuse two cells whose results would be one file."""
    named: dict[str, Cell] = {}
    for cell in cells:
        other = named.setdefault(cell.name, cell)
        if other is not cell:
            pair = (other.rule.name, other.game), (cell.rule.name, cell.game)
            one, two = (f"{rule} on {game}" for rule, game in pair)
            raise UserError(
                f"results_dir: {one} and {two} would both be cells/{cell.name}.json "
                "(evaluate them apart, into two folders)"
            )


def new_cell(
    rule: LoadedRule,
    task: Task,
    seed: int,
    env_steps: int,
    *,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Cell:
    """Return a cell with the settings of its rule and family under the user's.

    Args:
      rule: to learn by.
      task: to learn.
      seed: the user's.
      env_steps: the budget where the user gives none.
      files: the user's YAML files.
      overrides: the user's `key=value`.
    """
    similar = resembles(task, _user_config(files, overrides).environment)
    settings = settings_for(
        rule,
        task.game.family,
        env_steps=env_steps,
        resembles=similar,
        files=files,
        overrides=overrides,
    )
    return Cell(rule_for(rule, similar), task, seed, settings)


def _user_config(files: Sequence[Path], overrides: Sequence[str]) -> EvaluationConfig:
    return config_loader.validate(
        EvaluationConfig,
        config_loader.merge(
            EvaluationConfig().model_dump(mode="json"), user_tree(files, overrides)
        ),
    )


def require_an_update(cell: Cell) -> None:
    """Refuse a budget that ends while the replay fills: a random policy's score.

    Raises:
      UserError: no update would be made.
    """
    settings = cell.settings
    num_envs, replay = settings.environment.num_envs, settings.replay
    batch = min(replay.ratio * num_envs, replay.capacity)
    first = batch * settings.rollout_length * cell.group_size
    if cell.env_steps < first:
        peers = f" of each of {cell.group_size} peers" if cell.group_size > 1 else ""
        raise UserError(
            f"env_steps: {cell.env_steps} is less than what the first update "
            f"of {cell.rule.name} waits for ({first}: {batch} trajectories of "
            f"rollout_length={settings.rollout_length}{peers})"
        )


def default_env_steps(environment: EnvironmentConfig, task: Task) -> int:
    """Return the budget of a game's suite; of one by name, of its family's first."""
    named = [environment.suite, *environment.games]
    for suite in (suites.SUITES[name] for name in named if name in suites.SUITES):
        if task.game.task_id in suite.games and task.options == suite.options:
            return suite.env_steps
    family = task.game.family
    budgets = [s.env_steps for s in suites.list_suites() if s.family == family]
    return budgets[0] if budgets else OPEN_ENV_STEPS


def resembles(task: Task, environment: EnvironmentConfig) -> Family:
    """Return the family whose settings suit a task: mostly its own.

    Pictures that a network of strided convolutions can read are treated like Atari's,
    and short vectors of numbers like classic control's.
    """
    family = task.game.family
    if family not in ("procgen", "gymnasium", "envpool"):
        return family
    spec = pool_spec(task, environment)
    shape = spec.observation_shape
    if len(shape) == 3 and min(shape[:2]) >= MIN_PICTURE:
        return "atari"
    if len(shape) == 1 and spec.observation_dtype == np.float32:
        return "cartpole"
    return family
