"""Update rules: the interface, and one module per rule."""

from __future__ import annotations

from metarl.config import (
    ActorCriticConfig,
    CustomConfig,
    DiscoConfig,
    LPGConfig,
    LPGCriticConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    RandomConfig,
    RuleConfig,
)
from metarl.rules.base import UpdateRule


def make_rule(config: RuleConfig) -> UpdateRule:
    """Return the update rule that ``config`` describes."""
    match config:
        case DiscoConfig():
            from metarl.rules.disco import Disco

            return Disco(config)
        case LPGCriticConfig():
            from metarl.rules.lpg_critic import LPGCritic

            return LPGCritic(config)
        case LPGConfig():
            from metarl.rules.lpg import LPG

            return LPG(config)
        case ActorCriticConfig():
            from metarl.rules.actor_critic import ActorCritic

            return ActorCritic(config)
        case PolicyGradientConfig():
            from metarl.rules.policy_gradient import PolicyGradient

            return PolicyGradient(config)
        case PPOConfig():
            from metarl.rules.ppo import PPO

            return PPO(config)
        case QLearningConfig():
            from metarl.rules.q_learning import QLearning

            return QLearning(config)
        case RandomConfig():
            from metarl.rules.random import Random

            return Random(config)
        case CustomConfig():
            from metarl.rules.custom import make_custom

            return make_custom(config.rule)
        case _:
            from metarl.rules.mutual import make_mutual

            return make_mutual(config, make_rule(config.base))
