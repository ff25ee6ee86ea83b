"""Learned Policy Gradient: the discovered rule of Oh et al. (2020).

Sits beside the other rules behind `base.UpdateRule`; must not import agents,
environments or files.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from metarl.config import LPGConfig
from metarl.numerics import entropy, kl_divergence, masked_mean, take_action
from metarl.rules.base import Head, Metrics, RuleSpec, RuleState, Targets, UpdateRule
from metarl.rules.layers import embed, init_linear, linear, reverse_lstm, zero_linear
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid


@dataclasses.dataclass(frozen=True)
class LPG(UpdateRule):
    """Oh et al., "Discovering Reinforcement Learning Algorithms" (NeurIPS 2020).

    The agent has a policy and a prediction y, categorical and without a meaning of its
    own. An LSTM that runs backwards in time gives ``pi_hat``, by how much the taken
    action is reinforced (any number), and ``y_hat``, what the prediction is pulled to.

    Choices made here: the outputs are linear in the LSTM's state; an episode's last
    transition has no next prediction, as in the released code of GROOVE (Jackson et
    al., NeurIPS 2023), which re-implements LPG; and the meta-gradient passes through
    the policy and the predictions that the LSTM sees, where that code stops it: by them
    an update shapes the targets of the next.
    """

    config: LPGConfig

    num_features: ClassVar[int] = 6
    """Numbers per transition that the LSTM sees."""
    num_pi_outputs: ClassVar[int] = 1
    """Numbers per transition that pi_hat is made of."""

    def spec(self, num_actions: int) -> RuleSpec:
        """Return the heads of the policy and of the prediction."""
        return RuleSpec(
            heads=(
                Head("logits", num_actions),
                Head("y", self.config.prediction_size),
            )
        )

    def init_params(self, key: jax.Array) -> Params:
        """Return new meta-parameters."""
        size, width = self.config.prediction_size, self.config.lstm
        keys = jax.random.split(key, 4)
        return {
            "y_embedding": {
                "hidden": init_linear(keys[0], size, self.config.embedding_hidden),
                "out": init_linear(keys[1], self.config.embedding_hidden, 1),
            },
            "lstm": init_linear(keys[2], self.num_features + width, 4 * width),
            # Zeros, so that a new rule reinforces nothing. A random one is a policy
            # gradient of random sign, and some teach before they are meta-trained.
            "pi_target": zero_linear(width, self.num_pi_outputs),
            "y_target": init_linear(keys[3], width, size),
        }

    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        """Return ``pi [T, B]``: pi_hat; and ``y [T, B, Y]``: the logits of y_hat."""
        del key
        transitions = drop_invalid(experience.transitions)
        features = self._features(meta_params, transitions, experience.outputs)
        targets = self.outputs(meta_params, features, transitions)
        targets["pi"] = targets["pi"][..., 0]
        metrics = {
            "pi_hat": masked_mean(targets["pi"], transitions.own),
            "rule_entropy_y": masked_mean(entropy(targets["y"]), transitions.own),
        }
        return targets, rule_state, metrics

    def outputs(
        self, meta_params: Params, features: jax.Array, transitions: Transitions
    ) -> Targets:
        """Return what the LSTM gives for its inputs ``[T, B, F]``.

        Returns:
          ``pi [T, B, num_pi_outputs]`` and ``y [T, B, Y]``.
        """
        hidden = reverse_lstm(meta_params["lstm"], features, transitions)
        return {
            "pi": linear(meta_params["pi_target"], hidden),
            "y": linear(meta_params["y_target"], hidden),
        }

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return ``-pi_hat log pi(a) + y_cost KL(y || y_hat)``, ``[T, B]``.

        Oh et al. 2020, agent update (Jackson et al. 2023, Eq. 2). Unlike in DiscoRL,
        the prediction is the divergence's first argument.
        """
        del peers  # Single-agent rule.
        log_pi = jax.nn.log_softmax(outputs["logits"])
        policy_loss = -targets["pi"] * take_action(log_pi, transitions.actions)
        y_loss = kl_divergence(outputs["y"], targets["y"])
        loss = policy_loss + self.config.y_cost * y_loss
        return loss * transitions.own, {"policy_loss": policy_loss, "y_loss": y_loss}

    def regularizers(self, targets: Targets, experience: Experience) -> Metrics:
        """Return the mean squared norms of the targets of one update.

        Oh et al. 2020, outer objective; weights of Jackson et al. 2023, Table 2.
        """
        own = drop_invalid(experience.transitions).own
        y_hat = jax.nn.softmax(targets["y"])
        return {
            "l2_pi": masked_mean(jnp.square(targets["pi"]), own),
            "l2_y": masked_mean(jnp.sum(jnp.square(y_hat), axis=-1), own),
        }

    def _features(
        self, meta_params: Params, transitions: Transitions, outputs: Outputs
    ) -> jax.Array:
        """Return ``[r, d, discount, pi(a), phi(y), phi(y')]``, ``[T, B, 6]``."""
        (y,) = embed([meta_params["y_embedding"]], outputs["y"])
        ended = transitions.is_terminal
        pi = jax.nn.softmax(outputs["logits"][:-1])
        columns = [
            transitions.rewards,
            ended.astype(y.dtype),
            jnp.full_like(transitions.rewards, self.config.discount),
            take_action(pi, transitions.actions),
            y[:-1],
            jnp.where(ended, 0, y[1:]),
        ]
        return jnp.stack(columns, axis=-1)
