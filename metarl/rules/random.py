"""Uniform actions and no learning: the floor under every score.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from metarl.config import RandomConfig
from metarl.rules.base import Head, Metrics, RuleSpec, RuleState, Targets, UpdateRule
from metarl.types import Clock, Experience, Outputs, Params, Transitions


@dataclasses.dataclass(frozen=True)
class Random(UpdateRule):
    """Draws every action uniformly, whatever the network says.

    What it scores is the random score of a game where none is published. The loss
    reads no output, so that its gradient is zero and the compiler drops the network.
    """

    config: RandomConfig

    def spec(self, num_actions: int) -> RuleSpec:
        """Return a policy head, which is never read."""
        return RuleSpec(heads=(Head("logits", num_actions),))

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return uniform actions ``i32[B]`` and their logits, zeros ``f32[B, A]``."""
        del clock
        logits = jnp.zeros_like(outputs["logits"])
        return jax.random.categorical(key, logits), logits

    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        """Return no targets."""
        del meta_params, experience, key
        return {}, rule_state, {}

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return zeros ``[T, B]``."""
        del outputs, peers, targets
        return jnp.zeros_like(transitions.rewards), {}
