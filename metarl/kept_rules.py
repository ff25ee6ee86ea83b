"""The rules that a run keeps, each with what has to be known of its origin.

Host code beside `train.py`: `rule/` always holds the newest rule, `initial_rule/` the
one before any meta-step.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from metarl import rule_files
from metarl.config import TrainConfig
from metarl.rule_files import LoadedRule, Manifest
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
        """
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

    def write_newest(self, params: Params, *, meta_steps: int, env_steps: int) -> None:
        """Store the rule as it is now."""
        manifest = self.manifest(meta_steps=meta_steps, env_steps=env_steps)
        rule_files.save_rule(self._folder.rule, jax.device_get(params), manifest)

    def manifest(self, *, meta_steps: int, env_steps: int) -> Manifest:
        """Return what is to be known of the rule after so many steps."""
        manifest = _new_manifest(
            self._config,
            games_seen=self._games,
            meta_steps=meta_steps,
            env_steps=env_steps,
        )
        if self._parent is None:
            return manifest
        parents = [(self._parent.name, self._parent.manifest)]
        return rule_files.inherit(manifest, parents)


def _new_manifest(
    config: TrainConfig,
    *,
    games_seen: Sequence[str] = (),
    meta_steps: int = 0,
    env_steps: int = 0,
) -> Manifest:
    return rule_files.new_manifest(
        config.update_rule,
        games_seen=games_seen,
        meta_steps=meta_steps,
        env_steps=env_steps,
        agent={
            "agent": config.agent.model_dump(mode="json"),
            "rollout_length": config.population.rollout_length,
            "num_envs": config.environment.num_envs,
            "environment": config.environment.model_dump(mode="json"),
        },
    )
