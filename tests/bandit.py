"""A bandit, and a rule that has a say in nothing but which of its arms are tried."""

from __future__ import annotations

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from metarl.numerics import take_action
from metarl.rules.base import Head, Metrics, RuleSpec, Targets, UpdateRule
from metarl.types import Clock, Experience, Outputs, Params, Transitions

PAID = (0.2, 1.0)
"""By the arms: there is something to be had without the better one."""

SHYNESS = 4.0
"""By how much newborn agents prefer the poorer arm, in logits."""


class Bandit(gymnasium.Env):
    """Two arms, and no end."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), PAID[action], False, False, {}


gymnasium.register("Bandit-v0", Bandit)


@dataclasses.dataclass(frozen=True)
class Curious(UpdateRule):
    """Tries, then learns, then does; the one meta-parameter is how curious to be.

    The first update moves the head that tries, by eta towards the better arm; the
    second one lets the policy learn from what it led to, by what was paid alone. From
    then on the policy acts. So eta changes the data that the policy learns from, and no
    gradient of anything with the data given.
    """

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(heads=(Head("logits", num_actions), Head("try", num_actions)))

    def init_params(self, key: jax.Array) -> Params:
        return {"eta": jnp.zeros(())}

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        tries = outputs["try"] - SHYNESS * jnp.broadcast_to(
            jnp.arange(2.0), outputs["try"].shape
        )
        logits = jnp.where(clock.agent_updates < 2, tries, outputs["logits"])
        return jax.random.categorical(key, logits), logits

    def targets(
        self,
        meta_params: Params,
        rule_state: Params,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Params, Metrics]:
        rewards = experience.transitions.rewards
        updates = experience.clock.agent_updates
        paid = jnp.where(updates == 1, rewards, 0)
        curious = jnp.where(updates == 0, meta_params["eta"], 0)
        return (
            {"paid": paid, "curious": jnp.broadcast_to(curious, rewards.shape)},
            rule_state,
            {},
        )

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        log_pi = take_action(jax.nn.log_softmax(outputs["logits"]), transitions.actions)
        log_try = jax.nn.log_softmax(outputs["try"])[..., 1]
        loss = -targets["paid"] * log_pi - targets["curious"] * log_try
        return loss * transitions.own, {}
