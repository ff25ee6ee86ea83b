"""Settings of a rule's agents where the user gives none, by rule and family of games.

They lie under the user's files and overrides, which always win. A rule of one of our
runs brings what it was meta-trained with; another DiscoRL rule gets that
paper's evaluation settings; LPG and hand-written rules learn on-policy, PPO with the
settings of its reference implementations, Q-learning from replay; a mutual rule's
agents get what those of its base would. No arrays here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue, ValidationError

from metarl import config_loader
from metarl.config import (
    AtariOptions,
    DiscoConfig,
    EnvironmentConfig,
    EvaluationConfig,
    LPGConfig,
    LPGCriticConfig,
    PPOConfig,
    QLearningConfig,
    base_of,
)
from metarl.envs.suites import Family
from metarl.envs.tasks import STATE_SIZE, resolve_environment
from metarl.errors import UserError
from metarl.rule_files import LoadedRule, Manifest
from metarl.rules import make_rule

Tree = config_loader.Tree

# Half of the widths of Mnih et al. (2015) and a convolution less, on the same frames:
# what two CPU cores can start. The published sizes are a few overrides away.
_SMALL_TORSO: Tree = {
    "kind": "nature",
    "channels": [16, 32],
    "kernels": [8, 4],
    "strides": [4, 2],
    "dense": 256,
}

_ON_POLICY_TOY: Tree = {
    "rollout_length": 20,
    "replay": {"capacity": 0},
    "environment": {"num_envs": 32},
    "agent": {
        "network": {"torso": {"hidden": [128, 128], "activate_final": True}},
        # With twice as much the policy settles before sparse rewards are found.
        "optimizer": {"learning_rate": 1e-3},
    },
}

_ON_POLICY_ATARI: Tree = {
    "rollout_length": 20,
    "replay": {"capacity": 0},
    "environment": {"num_envs": 32},
    "agent": {
        "network": {"torso": _SMALL_TORSO},
        "optimizer": {"learning_rate": 5e-4},
    },
}

_LPG_ATARI: Tree = config_loader.merge(
    _ON_POLICY_ATARI,
    # Its LSTM sees rewards as they are, and a game's scale would be new to it.
    {"environment": {"clip_rewards": True}},
)

_LPG_CRITIC_TOY: Tree = {
    "rollout_length": 16,
    "replay": {"capacity": 0},
    "environment": {"num_envs": 16},
    "agent": {
        # Without a common torso, as such rules are discovered (docs/rules.md).
        "network": {"torso": {"hidden": []}, "head_hidden": [64, 64]},
        "optimizer": {"learning_rate": 3e-3},
    },
}

# Few environments and three quarters replayed, as configs/general.yaml discovers such
# rules: on-policy batches of 640 steps would leave 156 updates in 100,000 steps.
_LPG_CRITIC_ATARI: Tree = config_loader.merge(
    _ON_POLICY_ATARI,
    {
        "rollout_length": 16,
        "replay": {"capacity": 256, "ratio": 4},
        "environment": {"num_envs": 4},
    },
)

# PPO as CleanRL runs it (Huang et al., JMLR 2022: ppo.py and ppo_atari.py), after the
# authors' own code; Huang et al., "The 37 implementation details of PPO" (2022),
# gives the reason of each.
_PPO_OPTIMIZER: Tree = {
    "learning_rate": 2.5e-4,
    "schedule": "linear",
    "end_learning_rate": 0.0,
    "eps": 1e-5,
    "max_grad_norm": 0.5,
    # Never reached: with these decays Adam's step is at most 0.1 / sqrt(0.001) = 3.2.
    "max_abs_update": 10.0,
}

PPO_ATARI_CLIP = 0.1

PIXELS: tuple[Family, ...] = ("atari", "procgen")
"""Families whose observations are pictures, for convolutional networks."""

_PPO_CONTROL: Tree = {
    "rollout_length": 128,
    "replay": {"capacity": 0},
    "environment": {"num_envs": 4},
    "agent": {
        "network": {
            # Networks of their own for policy and values.
            "torso": {"kind": "mlp", "hidden": []},
            "head_hidden": [64, 64],
            "activation": "tanh",
            "initialization": "orthogonal",
        },
        "optimizer": _PPO_OPTIMIZER,
    },
}

# The torso of the other hand-written rules. Four times the environments and the rate of
# classic control learned FrozenLake twice as fast, and Catch as fast.
_PPO_TOY: Tree = {
    "rollout_length": 128,
    "replay": {"capacity": 0},
    "environment": {"num_envs": 16},
    "agent": {
        "network": {
            "torso": {"hidden": [128, 128], "activate_final": True},
            "initialization": "orthogonal",
        },
        "optimizer": {**_PPO_OPTIMIZER, "learning_rate": 1e-3},
    },
}

_PPO_ATARI: Tree = {
    "rollout_length": 128,
    "replay": {"capacity": 0},
    # Its values are plain numbers, which rewards of any scale would not suit.
    "environment": {"num_envs": 8, "clip_rewards": True},
    "agent": {
        "network": {"torso": _SMALL_TORSO, "initialization": "orthogonal"},
        "optimizer": _PPO_OPTIMIZER,
    },
}

# The learner of "Mutual Q-learning" (C. Reid, blog post of 2020, and code): an update
# per environment step, on 32 transitions of the last 1,000; Adam as it is.
_Q_CONTROL: Tree = {
    "rollout_length": 1,
    "replay": {"capacity": 1000, "ratio": 32},
    "environment": {"num_envs": 1},
    "agent": {
        "network": {
            "torso": {"kind": "mlp", "hidden": [8, 8], "activate_final": True},
            "activation": "leaky_relu",
        },
        "optimizer": {"learning_rate": 1e-2, "max_abs_update": 10.0},
    },
}

# As many transitions learned from per step acted as in Mnih et al. (2015), 32 per 4.
_Q_TOY: Tree = {
    "rollout_length": 1,
    "replay": {"capacity": 20_000, "ratio": 8},
    "environment": {"num_envs": 8},
    "agent": {
        "network": {"torso": {"hidden": [128, 128], "activate_final": True}},
        "optimizer": {"learning_rate": 1e-3, "max_abs_update": 10.0},
    },
}

_Q_ATARI: Tree = {
    # The replay handles every observation of a trajectory, and so each one 9 / 8 times.
    "rollout_length": 8,
    "replay": {"capacity": 4096, "ratio": 8},
    # Its values are plain numbers, which rewards of any scale would not suit.
    "environment": {"num_envs": 4, "clip_rewards": True},
    "agent": {
        "network": {"torso": _SMALL_TORSO},
        # CleanRL's dqn_atari.py.
        "optimizer": {"learning_rate": 1e-4, "max_abs_update": 10.0},
    },
}

# The released evaluation notebook (google-deepmind/disco_rl, colabs/eval.ipynb).
_DISCO_TOY: Tree = {
    "rollout_length": 29,
    "replay": {"capacity": 1024, "ratio": 32},
    "environment": {"num_envs": 2},
    "agent": {
        "network": {
            "torso": {"hidden": [512, 512]},
            "action_model": {"lstm": 128, "head_hidden": [128]},
        },
        "optimizer": {"learning_rate": 1e-2},
    },
}


def _disco_atari(env_steps: int) -> Tree:
    """Return Oh et al. (2025), Extended Data Table 6, Atari, with a small network.

    Its replay holds 1.76 million steps and 5 % of each batch are new; ours holds 1,024
    trajectories, for memory, and 1 / 24 of each batch are new on average.
    """
    return {
        "rollout_length": 29,
        "replay": {"capacity": 1024, "ratio": 24},
        "environment": {"num_envs": 4},
        "agent": {
            "network": {
                "torso": _SMALL_TORSO,
                "action_model": {"lstm": 128, "head_hidden": [128]},
            },
            "optimizer": {
                "learning_rate": 3e-4,
                "schedule": "cosine",
                "end_learning_rate": 0.0,
                # 5e6 of 2e8 steps.
                "warmup_env_steps": env_steps // 40,
                "weight_decay": 0.1,
            },
        },
    }


def rule_for(rule: LoadedRule, family: Family) -> LoadedRule:
    """Return the rule with the options it is run with on one family of games.

    A rule's options are its own, but for the built-in PPO: its authors bound the ratio
    more tightly on Atari (Schulman et al. 2017, Tables 3 and 5).
    """
    config = rule.manifest.config
    if family != "atari" or base_of(config) != PPOConfig():
        return rule
    tight = PPOConfig(clip=PPO_ATARI_CLIP)
    is_base = isinstance(config, PPOConfig)
    config = tight if is_base else config.model_copy(update={"base": tight})
    manifest = rule.manifest.model_copy(update={"config": config})
    return dataclasses.replace(rule, rule=make_rule(config), manifest=manifest)


def settings_for(
    rule: LoadedRule,
    family: Family,
    *,
    env_steps: int,
    resembles: Family | None = None,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> EvaluationConfig:
    """Return the settings of one rule's agents on one family of games.

    Args:
      rule: whose defaults lie underneath.
      family: of the games.
      resembles: the family whose settings suit it; None: its own.
      env_steps: the budget where the user gives none.
      files: the user's YAML files.
      overrides: the user's `key=value`.

    Raises:
      UserError: a file or an override does not fit the schema.
    """
    given = user_tree(files, overrides)
    budget = given.get("env_steps")
    total = budget if isinstance(budget, int | float) else env_steps
    tree = config_loader.merge(
        EvaluationConfig().model_dump(mode="json"),
        {"env_steps": env_steps, **_defaults(rule, family, resembles, int(total))},
    )
    settings = config_loader.validate(
        EvaluationConfig, config_loader.merge(tree, given)
    )
    if family == "atari":
        return settings
    # No protocol is in force, and none is to stand in the result's settings.
    environment = settings.environment.model_copy(update={"atari": AtariOptions()})
    return settings.model_copy(update={"environment": environment})


def user_tree(files: Sequence[Path], overrides: Sequence[str]) -> Tree:
    """Return what the user set, and nothing else."""
    tree: Tree = {}
    for file in files:
        tree = config_loader.merge(tree, config_loader.read_yaml(file))
    together: Tree = {}
    for override in overrides:
        parsed = config_loader.parse_override(override)
        together = config_loader.merge(together, parsed, layers=False)
    tree = config_loader.merge(tree, together)
    # `env_steps=null` asks for the default.
    return {key: value for key, value in tree.items() if value is not None}


def _defaults(
    rule: LoadedRule, family: Family, resembles: Family | None, env_steps: int
) -> Tree:
    trained_with = _trained_with(rule.manifest, family)
    if trained_with is not None:
        return trained_with
    family, config = resembles or family, base_of(rule.manifest.config)
    if isinstance(config, PPOConfig):
        if family == "atari":
            return _PPO_ATARI
        return _PPO_CONTROL if family in STATE_SIZE else _PPO_TOY
    if isinstance(config, QLearningConfig):
        if family == "atari":
            return _Q_ATARI
        return _Q_CONTROL if family in STATE_SIZE else _Q_TOY
    if isinstance(config, DiscoConfig):
        return _disco_atari(env_steps) if family == "atari" else _DISCO_TOY
    if isinstance(config, LPGCriticConfig):
        return _LPG_CRITIC_ATARI if family == "atari" else _LPG_CRITIC_TOY
    if isinstance(config, LPGConfig) and family == "atari":
        return _LPG_ATARI
    return _ON_POLICY_ATARI if family == "atari" else _ON_POLICY_TOY


def _trained_with(manifest: Manifest, family: Family) -> Tree | None:
    """Return the settings that the rule was meta-trained with, if they suit a family.

    The manifest's `agent` section is `{"agent", "rollout_length", "num_envs",
    "environment", "replay", "families"}`, as `metarl train` writes it: without `replay`
    agents learn on-policy; `families` has such a section for each of several families.
    Settings of one family say nothing of another; what several share that are no
    pictures suits a further one of that sort.
    """
    section = manifest.agent
    if not section:
        return None
    families = section.get("families")
    of_family = None
    if isinstance(families, dict):
        of_family = families.get(family, _shared(families, family))
    if isinstance(of_family, dict):
        section = of_family
    environment = section.get("environment")
    agent = section.get("agent")
    if not isinstance(environment, dict) or not isinstance(agent, dict):
        return None
    if of_family is None and _family_of(environment) != family:
        return None
    kept = ["atari", "clip_rewards", "num_envs"]
    # A network of convolutions cannot read the board as numbers.
    kept += ["catch_pixels"] if family == "catch" else []
    tree: Tree = {
        "agent": agent,
        "replay": section.get("replay", {"capacity": 0}),
        "environment": {key: environment[key] for key in kept if key in environment},
    }
    if "rollout_length" in section:
        tree["rollout_length"] = section["rollout_length"]
    return tree


def _shared(families: Mapping[str, JsonValue], family: Family) -> JsonValue:
    """Return the section that all families without pictures have, if ``family`` is."""
    if family in PIXELS:
        return None
    sections = [x for other, x in families.items() if other not in PIXELS]
    # One family alone says nothing of another, whether or not pictures are beside it.
    agreed = len(sections) > 1 and all(x == sections[0] for x in sections)
    return sections[0] if agreed else None


def _family_of(environment: Mapping[str, object]) -> Family | None:
    """Return the family of the games in a dumped environment section."""
    try:
        config = EnvironmentConfig.model_validate(environment)
        return resolve_environment(config, same_shapes=False)[0].game.family
    except (ValidationError, UserError):
        return None  # of another version of metarl
