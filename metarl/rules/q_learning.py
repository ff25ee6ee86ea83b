"""Q-learning with a target network, to be run on replayed trajectories.

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metarl.config import CategoricalValuesConfig, QLearningConfig
from metarl.numerics import ValueBins, cross_entropy, masked_mean, take_action
from metarl.returns import retrace
from metarl.rules.base import (
    Head,
    Metrics,
    RuleSpec,
    RuleState,
    TargetNetwork,
    Targets,
    UpdateRule,
)
from metarl.types import Clock, Experience, Outputs, Params, Transitions, drop_invalid

HUBER_BOUND = 1.0
"""Error beyond which the loss is linear (Mnih et al. 2015, Methods)."""


@dataclasses.dataclass(frozen=True)
class QLearning(UpdateRule):
    """Q-learning (Watkins 1989) on a network, with a target network (Mnih et al. 2015).

    The target of the value of the action taken is ``r + discount * max_a Q'(s', a)``,
    ``Q'`` being the target network; with `double` it is ``Q'(s', argmax_a Q(s', a))``
    (van Hasselt et al. 2016). With `trace_lambda` above 0 it is that of Watkins's
    Q(lambda): Retrace (Munos et al. 2016, Eq. 3) for the greedy policy, whose traces
    are lambda where the action taken is greedy and end where it is not.

    Agents act epsilon-greedily, and have no policy head: meta-gradients, which go
    through one, refuse them. Deliberate deviations from the deep Q-network: values may
    be two-hot categoricals in signed-hyperbolic space, as in the other rules here; and
    a time limit is no terminal state, but is bootstrapped from the final frame.
    """

    config: QLearningConfig

    @property
    def bins(self) -> ValueBins | None:
        """The bins of the head; None where values are plain numbers."""
        values = self.config.values
        if isinstance(values, CategoricalValuesConfig):
            return ValueBins(values.num_bins, values.max_abs_value)
        return None

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the head of the action values, and a target network that is copied."""
        del num_actions
        size = 1 if self.bins is None else self.bins.num_bins
        return RuleSpec(
            heads=(Head("q", size, per_action=True, on_torso=True),),
            target_network=TargetNetwork("copy", every=self.config.target_every),
        )

    def action_values(self, outputs: Outputs) -> jax.Array:
        """Return values ``[..., A]``, of the head ``[..., A, size]``."""
        if self.bins is None:
            return outputs["q"][..., 0]
        return self.bins.to_scalar(outputs["q"])

    def epsilon(self, clock: Clock) -> jax.Array:
        """Return the part of the actions that are uniform, at the agent's age."""
        config = self.config
        if config.epsilon_env_steps is None:
            progress = clock.lifetime_fraction / config.epsilon_fraction
        else:
            progress = clock.env_steps / config.epsilon_env_steps
        start, end = config.epsilon_start, config.epsilon_end
        return start + (end - start) * jnp.minimum(progress, 1)

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return epsilon-greedy actions ``i32[B]`` and the policy's logits ``[B, A]``.

        Of equal values the first is the greedy one. The logits are log-probabilities.
        """
        values, epsilon = self.action_values(outputs), self.epsilon(clock)
        num_actions = values.shape[-1]
        is_greedy = jax.nn.one_hot(
            jnp.argmax(values, axis=-1), num_actions, dtype=values.dtype
        )
        probs = epsilon / num_actions + (1 - epsilon) * is_greedy
        # With epsilon 0 the smallest number, never drawn, keeps the logits finite.
        logits = jnp.log(jnp.maximum(probs, np.finfo(probs.dtype).tiny))
        return jax.random.categorical(key, logits), logits

    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        """Return ``q [T, B, size]``, what the head is pulled to at the action taken."""
        del meta_params, key
        config, transitions = self.config, drop_invalid(experience.transitions)
        # Targets are constants for the outer gradient too: values measure the agent's
        # behaviour, they are not a way to shape it.
        online, slow = (
            self.action_values(jax.lax.stop_gradient(outputs))
            for outputs in (experience.outputs, experience.target_outputs)
        )
        greedy = jnp.argmax(online if config.double else slow, axis=-1)
        actions = transitions.actions
        returns = retrace(
            transitions.rewards,
            config.discount * (1.0 - transitions.is_terminal),
            config.trace_lambda * (greedy[:-1] == actions).astype(slow.dtype),
            take_action(slow, greedy),
            take_action(slow[:-1], actions),
            cut=transitions.cut,
        )
        q_taken = take_action(online[:-1], actions)
        metrics = {
            "q": masked_mean(q_taken, transitions.own),
            "q_target": masked_mean(returns, transitions.own),
            "td": masked_mean(returns - q_taken, transitions.own),
            "epsilon": self.epsilon(experience.clock),
        }
        bins = self.bins
        target = returns[..., None] if bins is None else bins.to_probs(returns)
        return {"q": target}, rule_state, metrics

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return how far the taken actions' values are from targets, ``[T, B]``."""
        del peers  # Single-agent rule.
        q_taken = take_action(outputs["q"], transitions.actions)
        q_loss = self.distance(q_taken, targets["q"])
        return q_loss * transitions.own, {"q_loss": q_loss}

    def distance(self, q: jax.Array, target: jax.Array) -> jax.Array:
        """Return the loss ``[...]`` of rows of the head for targets ``[..., size]``."""
        values = self.config.values
        if isinstance(values, CategoricalValuesConfig):
            return cross_entropy(target, q)
        error = (q - target)[..., 0]
        if values.loss == "squared":
            return 0.5 * jnp.square(error)
        inside = jnp.clip(error, -HUBER_BOUND, HUBER_BOUND)
        return inside * (error - 0.5 * inside)
