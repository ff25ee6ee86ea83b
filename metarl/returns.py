"""Returns and advantages from rewards and values, backwards through time.

Time-major ``[T, ...]`` arrays; values are ``[T+1, ...]``. No gradient is stopped
here: callers decide. ``cut`` marks transitions after which no trace may reach back;
each of these functions then bootstraps from the value at t + 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Steps = tuple[jax.Array, ...]


def retrace(
    rewards: jax.Array,
    discounts: jax.Array,
    traces: jax.Array,
    values: jax.Array,
    q_taken: jax.Array,
    *,
    cut: jax.Array,
) -> jax.Array:
    """Return Retrace targets for the action values of the actions taken.

    ``G_t = r_t + d_t (v_{t+1} + c_{t+1} (G_{t+1} - q_{t+1}(a_{t+1})))``, with the
    trace term dropped at the last step and after cut transitions. Munos et al.
    (2016), Eq. 3, in recursive form.

    Args:
      rewards: ``[T, ...]``.
      discounts: ``[T, ...]``, 0 where the episode ended.
      traces: ``[T, ...]``, ``c_t = lambda min(1, pi_t(a_t) / mu_t(a_t))``.
      values: ``[T+1, ...]``, expected action value under the target policy.
      q_taken: ``[T, ...]``, action value of the action taken.
      cut: ``bool[T, ...]``.

    Returns:
      ``[T, ...]``.
    """
    last = jnp.zeros_like(rewards[:1])
    traces_next = jnp.concatenate([traces[1:], last]) * ~cut
    q_next = jnp.concatenate([q_taken[1:], last])

    def step(target: jax.Array, inputs: Steps) -> tuple[jax.Array, jax.Array]:
        reward, discount, value, trace, q = inputs
        target = reward + discount * (value + trace * (target - q))
        return target, target

    inputs = (rewards, discounts, values[1:], traces_next, q_next)
    _, targets = jax.lax.scan(step, jnp.zeros_like(values[0]), inputs, reverse=True)
    return targets


def vtrace(
    rewards: jax.Array,
    discounts: jax.Array,
    rhos: jax.Array,
    values: jax.Array,
    *,
    trace_lambda: float,
    cut: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return V-trace errors and advantages.

    Errors ``e_t = delta_t + d_t lambda rho_t e_{t+1}`` with
    ``delta_t = rho_t (r_t + d_t v_{t+1} - v_t)``, so that ``v_t + e_t`` is the value
    target; advantages ``rho_t (r_t + d_t (v_{t+1} + lambda e_{t+1}) - v_t)``.
    Espeholt et al. (2018), Remark 1 and section 4.2, with lambda.

    Args:
      rewards: ``[T, ...]``.
      discounts: ``[T, ...]``, 0 where the episode ended.
      rhos: ``[T, ...]``, importance ratios, already clipped.
      values: ``[T+1, ...]``.
      trace_lambda: decay of the traces.
      cut: ``bool[T, ...]``.

    Returns:
      Errors and advantages, each ``[T, ...]``.
    """
    deltas = rhos * (rewards + discounts * values[1:] - values[:-1])
    carries = discounts * trace_lambda * rhos * ~cut

    def step(error: jax.Array, inputs: Steps) -> tuple[jax.Array, jax.Array]:
        delta, carry = inputs
        error = delta + carry * error
        return error, error

    start = jnp.zeros_like(values[0])
    _, errors = jax.lax.scan(step, start, (deltas, carries), reverse=True)
    errors_next = jnp.concatenate([errors[1:], jnp.zeros_like(errors[:1])]) * ~cut
    bootstraps = values[1:] + trace_lambda * errors_next
    return errors, rhos * (rewards + discounts * bootstraps - values[:-1])


def discounted_returns(
    rewards: jax.Array, discounts: jax.Array, *, cut: jax.Array
) -> jax.Array:
    """Return discounted sums of rewards to the end of the episode or of the batch.

    ``G_t = r_t + d_t G_{t+1}``; what lies beyond a cut or the last step counts as 0.

    Args:
      rewards: ``[T, ...]``.
      discounts: ``[T, ...]``, 0 where the episode ended.
      cut: ``bool[T, ...]``.

    Returns:
      ``[T, ...]``.
    """

    def step(target: jax.Array, inputs: Steps) -> tuple[jax.Array, jax.Array]:
        reward, carry = inputs
        target = reward + carry * target
        return target, target

    start = jnp.zeros_like(rewards[0])
    _, targets = jax.lax.scan(step, start, (rewards, discounts * ~cut), reverse=True)
    return targets
