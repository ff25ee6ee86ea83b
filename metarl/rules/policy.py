"""What rules need of a policy, given as logits or by its taken actions alone.

Beside the rules, which share it; must not import agents, environments or files.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metarl.numerics import entropy, take_action
from metarl.types import Outputs, Transitions


def policy_terms(outputs: Outputs, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the taken actions' log-probabilities, and an entropy bonus.

    A network over a large vocabulary may give ``log_pi_a [T, B]``, the log-probability
    of the action taken, in place of ``logits [T, B, A]``. The bonus then is
    ``-log_pi_a ** 2 / 2``: the entropy's gradient is ``-E[log pi(a) grad log pi(a)]``,
    so that the bonus has it as its expected gradient where the actions were drawn from
    the current policy.

    Args:
      outputs: the policy's outputs, ``[T, B, ...]``.
      actions: ``i32[T, B]``.

    Returns:
      Log-probability and bonus (the entropy in nats, given logits), each ``[T, B]``.
    """
    if "logits" in outputs:
        log_pi = jax.nn.log_softmax(outputs["logits"])
        return take_action(log_pi, actions), entropy(outputs["logits"])
    log_pi_a = outputs["log_pi_a"]
    return log_pi_a, -jnp.square(log_pi_a) / 2


def importance_ratios(outputs: Outputs, transitions: Transitions) -> jax.Array:
    """Return ``pi(a) / mu(a)`` of the actions taken, ``[T, B]``.

    Args:
      outputs: the policy's outputs on the first observations, ``[T, B, ...]``; with
        ``logits``, or ``log_pi_a`` as in `policy_terms`.
      transitions: with the actions, and what the policy that acted gave them.
    """
    return jnp.exp(log_importance_ratios(outputs, transitions))


def log_importance_ratios(outputs: Outputs, transitions: Transitions) -> jax.Array:
    """Return the logarithm of `importance_ratios`, ``[T, B]``."""
    actions = transitions.actions
    if transitions.behaviour_log_pi_a is None:
        log_mu = jax.nn.log_softmax(transitions.behaviour_logits)
        log_mu_a = take_action(log_mu, actions)
    else:
        log_mu_a = transitions.behaviour_log_pi_a
    log_pi_a, _ = policy_terms(outputs, actions)
    return log_pi_a - log_mu_a
