"""What rules have in common whose advantages come from a value function.

Beside `base.UpdateRule`; what others want of such a rule is made of these parts. Must
not import agents, environments or files.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metarl.rules.base import RuleState, UpdateRule
from metarl.types import Outputs, Transitions


class Judgement(NamedTuple):
    """What a critic says of a batch; every array is ``[T, B]``."""

    errors: jax.Array  # of the values: value + error is the value target
    advantages: jax.Array  # with the weight in them
    weights: jax.Array  # importance ratios as the rule truncates them; 1 without any


class CriticRule(UpdateRule):
    """A rule with a head ``v`` whose targets have ``advantages [T, B]``."""

    @abc.abstractmethod
    def state_values(self, outputs: Outputs) -> jax.Array:
        """Return the values ``[...]`` that the head ``v [..., size]`` stands for."""

    @abc.abstractmethod
    def judge(
        self, transitions: Transitions, outputs: Outputs, values: jax.Array
    ) -> Judgement:
        """Return value errors and advantages.

        Args:
          transitions: ``[T, B]``, after `drop_invalid`.
          outputs: the agent's, ``[T+1, B, ...]``; for the policy alone.
          values: ``[T+1, B]``, to bootstrap from and to compare with.
        """

    @abc.abstractmethod
    def scale(
        self, rule_state: RuleState, advantages: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, RuleState]:
        """Return ``advantages [T, B]`` as the loss takes them, and the new state."""


def truncated_ratios(
    rule: UpdateRule, transitions: Transitions, outputs: Outputs
) -> jax.Array:
    """Return the importance ratios that are in a rule's advantages, ``[T, B]``.

    Args:
      rule: without a critic it has none, and they are 1.
      transitions: ``[T, B]``, after `drop_invalid`.
      outputs: the agent's, ``[T+1, B, ...]``.
    """
    if not isinstance(rule, CriticRule):
        return jnp.ones_like(transitions.rewards)
    return rule.judge(transitions, outputs, rule.state_values(outputs)).weights
