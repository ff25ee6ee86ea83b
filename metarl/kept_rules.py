"""The rules that a run keeps, each with what has to be known of its origin.

Host code beside `train.py`: `rule/` always holds the newest rule, `initial_rule/` the
one before any meta-step. `validation.py` chooses the one in `rule_best/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from pydantic import JsonValue

from metarl import rule_files
from metarl.config import CustomConfig, TrainConfig
from metarl.config_families import settings_of
from metarl.envs.tasks import resolve_environment
from metarl.rule_files import LoadedRule, Manifest
from metarl.rule_files import folder as rule_folder
from metarl.run_folder import RunFolder
from metarl.types import Params


class KeptRules:
    """Writes the rules of one run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        *,
        games: Sequence[str],
        parent: LoadedRule | None,
    ) -> None:
        """Say where they come from.

        Args:
          config: of the run.
          folder: of the run.
          games: task ids that the rule is meta-trained on.
          parent: the rule that it began as, if one was given.

        Raises:
          UserError: the run was begun with another text of the user's own class.
        """
        is_custom = isinstance(config.update_rule, CustomConfig)
        if is_custom and rule_folder.holds_rule(folder.rule):
            rule_files.load_rule(folder.rule)  # which compares the texts
        self._config, self._folder = config, folder
        self._games, self._parent = tuple(games), parent

    def write_initial(self, params: Params) -> None:
        """Store what there was before any meta-step, to compare with."""
        if self._parent is not None:
            return  # the folder keeps the parent there
        manifest = _new_manifest(self._config)
        rule_files.save_rule(
            self._folder.initial_rule, jax.device_get(params), manifest
        )

    def write(
        self,
        place: Path,
        params: Params,
        *,
        meta_steps: int,
        env_steps: int,
        games_validation: Sequence[str],
    ) -> None:
        """Store the rule as it is now in ``place``; see `manifest_of`."""
        manifest = manifest_of(
            self._config,
            games=self._games,
            parent=self._parent,
            meta_steps=meta_steps,
            env_steps=env_steps,
            games_validation=games_validation,
        )
        rule_files.save_rule(place, jax.device_get(params), manifest)


def manifest_of(
    config: TrainConfig,
    *,
    games: Sequence[str],
    parent: LoadedRule | None,
    meta_steps: int = 0,
    env_steps: int = 0,
    games_validation: Sequence[str] = (),
) -> Manifest:
    """Return what is to be known of a run's rule.

    Args:
      config: of the run.
      games: task ids that it is meta-trained on.
      parent: the rule that it began as, if one was given.
      meta_steps: so far.
      env_steps: so far.
      games_validation: task ids that scored rules of the run, this one included.
    """
    manifest = _new_manifest(
        config,
        games_seen=games,
        games_validation=games_validation,
        meta_steps=meta_steps,
        env_steps=env_steps,
    )
    if parent is None:
        return manifest
    return rule_files.inherit(manifest, [(parent.name, parent.manifest)])


def _new_manifest(
    config: TrainConfig,
    *,
    games_seen: Sequence[str] = (),
    games_validation: Sequence[str] = (),
    meta_steps: int = 0,
    env_steps: int = 0,
) -> Manifest:
    return rule_files.new_manifest(
        config.update_rule,
        games_seen=games_seen,
        games_validation=games_validation,
        meta_steps=meta_steps,
        env_steps=env_steps,
        agent=_agents_of(config),
    )


def _agents_of(config: TrainConfig) -> dict[str, JsonValue]:
    """Return what the agents are: of the first family, and of each if there are more.

    So that an evaluation can take the same for games of a family.
    """
    tasks = resolve_environment(config.environment, same_shapes=False)
    families = list(dict.fromkeys(task.game.family for task in tasks))
    sections: dict[str, JsonValue] = {
        family: _section(settings_of(config, family)) for family in families
    }
    first = _section(settings_of(config, families[0]))
    return first if len(families) == 1 else {**first, "families": sections}


def _section(config: TrainConfig) -> dict[str, JsonValue]:
    section: dict[str, JsonValue] = {
        "agent": config.agent.model_dump(mode="json"),
        "rollout_length": config.population.rollout_length,
        "num_envs": config.environment.num_envs,
        "environment": config.environment.model_dump(mode="json"),
    }
    replay = config.population.replay
    if replay.share > 0:
        # How often a trajectory is learned from, on average.
        ratio = round(1 / (1 - replay.share))
        section["replay"] = {"capacity": replay.capacity, "ratio": ratio}
    return section
