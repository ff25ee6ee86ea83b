"""Returns against hand-computed arrays, published sums and identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl.returns import discounted_returns, retrace, vtrace

pytestmark = pytest.mark.usefixtures("x64")

Batch = dict[str, np.ndarray]

# Two trajectories of four steps. The first ends an episode at t = 1, the second is
# truncated there.
BY_HAND = {
    "rewards": np.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.0], [2.0, 1.0]]),
    "discounts": np.array([[0.5, 0.5], [0.0, 0.5], [0.5, 0.5], [0.5, 0.5]]),
    "cut": np.array([[False, False], [False, True], [False, False], [False, False]]),
    "values": np.array([[1.0, 0.0], [2.0, 4.0], [0.0, 2.0], [4.0, 1.0], [2.0, 8.0]]),
    "rhos": np.array([[1.0, 0.5], [0.5, 1.0], [1.0, 1.0], [0.5, 1.0]]),
    "q_taken": np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0], [1.0, -1.0]]),
}


def _random_batch(steps: int = 9, batch: int = 5) -> Batch:
    rng = np.random.default_rng(3)
    terminal = rng.random((steps, batch)) < 0.2
    return {
        "rewards": rng.normal(size=(steps, batch)),
        "discounts": 0.9 * (1 - terminal),
        "cut": rng.random((steps, batch)) < 0.2,
        "values": rng.normal(size=(steps + 1, batch)),
        "rhos": np.minimum(1, rng.lognormal(size=(steps, batch))),
        "q_taken": rng.normal(size=(steps, batch)),
    }


def _arguments(x: Batch, *names: str) -> list[jax.Array]:
    return [jnp.asarray(x[name]) for name in names]


def _vtrace(x: Batch, trace_lambda: float) -> tuple[jax.Array, jax.Array]:
    arguments = _arguments(x, "rewards", "discounts", "rhos", "values")
    return vtrace(*arguments, trace_lambda=trace_lambda, cut=jnp.asarray(x["cut"]))


def _retrace(x: Batch, trace_lambda: float) -> jax.Array:
    x = {**x, "traces": trace_lambda * x["rhos"]}
    names = ("rewards", "discounts", "traces", "values", "q_taken")
    return retrace(*_arguments(x, *names), cut=jnp.asarray(x["cut"]))


def _discounted(x: Batch) -> jax.Array:
    return discounted_returns(
        *_arguments(x, "rewards", "discounts"), cut=jnp.asarray(x["cut"])
    )


def test_vtrace_equals_the_hand_computed_case():
    errors, advantages = _vtrace(BY_HAND, 0.5)
    # First trajectory, delta_t = rho_t (r_t + d_t v_{t+1} - v_t), from the end:
    #   t=3: 0.5 (2 + 0.5*2 - 4) = -0.5     e = -0.5
    #   t=2: -1 + 0.5*4 - 0      =  1       e = 1 + 0.5*0.5*1*(-0.5) = 0.875
    #   t=1: 0.5 (0 + 0 - 2)     = -1       e = -1 (terminal)
    #   t=0: 1 + 0.5*2 - 1       =  1       e = 1 + 0.5*0.5*1*(-1) = 0.75
    # Second:
    #   t=3: 1 + 0.5*8 - 1       =  4       e = 4
    #   t=2: 0 + 0.5*1 - 2       = -1.5     e = -1.5 + 0.5*0.5*1*4 = -0.5
    #   t=1: 1 + 0.5*2 - 4       = -2       e = -2 (cut, but bootstrapped)
    #   t=0: 0.5 (2 + 0.5*4 - 0) =  2       e = 2 + 0.5*0.5*0.5*(-2) = 1.75
    expected = [[0.75, 1.75], [-1.0, -2.0], [0.875, -0.5], [-0.5, 4.0]]
    np.testing.assert_array_equal(errors, expected)
    # rho_t (r_t + d_t (v_{t+1} + lambda e_{t+1}) - v_t) are the same numbers.
    np.testing.assert_allclose(advantages, expected, atol=1e-15)


def test_retrace_equals_the_hand_computed_case():
    # First, G_t = r_t + d_t (v_{t+1} + c_{t+1} (G_{t+1} - q_{t+1})), from the end:
    #   t=3: 2 + 0.5*2 = 3;     t=2: -1 + 0.5 (4 + 0.5 (3 - 1)) = 1.5
    #   t=1: 0 (terminal);      t=0: 1 + 0.5 (2 + 0.5 (0 - 1)) = 1.75
    # Second:
    #   t=3: 1 + 0.5*8 = 5;     t=2: 0 + 0.5 (1 + 1 (5 + 1)) = 3.5
    #   t=1: 1 + 0.5*2 = 2 (cut);  t=0: 2 + 0.5 (4 + 1 (2 - 2)) = 4
    expected = [[1.75, 4.0], [0.0, 2.0], [1.5, 3.5], [3.0, 5.0]]
    np.testing.assert_array_equal(_retrace(BY_HAND, 1.0), expected)


def test_discounted_returns_equal_the_hand_computed_case():
    # First: 2, -1 + 1, 0 (terminal), 1 + 0. Second: 1, 0.5, 1 (cut), 2 + 0.5.
    expected = [[1.0, 2.5], [0.0, 1.0], [0.0, 0.5], [2.0, 1.0]]
    np.testing.assert_array_equal(_discounted(BY_HAND), expected)


def _sum_of_products(
    deltas: np.ndarray, x: Batch, traces_next: np.ndarray
) -> np.ndarray:
    """``sum_{k >= t} (prod_{i=t}^{k-1} d_i c_i) delta_k``: O(T^2), no recursion.

    ``c_i`` (``traces_next``) carries from step i + 1 back to step i.
    """
    total = np.zeros_like(deltas)
    for t in range(len(deltas)):
        for k in range(t, len(deltas)):
            carries = x["discounts"][t:k] * traces_next[t:k] * ~x["cut"][t:k]
            total[t] += np.prod(carries, axis=0) * deltas[k]
    return total


@pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
def test_vtrace_equals_the_published_sum(trace_lambda):
    # Espeholt et al. (2018), Eq. 1, with c_i = lambda rho_i; advantages: section 4.2.
    x = _random_batch()
    values, discounts, rhos = x["values"], x["discounts"], x["rhos"]
    deltas = rhos * (x["rewards"] + discounts * values[1:] - values[:-1])
    expected = _sum_of_products(deltas, x, trace_lambda * rhos)
    errors, advantages = _vtrace(x, trace_lambda)
    np.testing.assert_allclose(errors, expected, atol=1e-13)
    later = np.concatenate([expected[1:], np.zeros_like(expected[:1])]) * ~x["cut"]
    bootstrap = values[1:] + trace_lambda * later
    np.testing.assert_allclose(
        advantages,
        rhos * (x["rewards"] + discounts * bootstrap - values[:-1]),
        atol=1e-13,
    )


def test_retrace_equals_the_published_sum():
    # Munos et al. (2016), Eq. 3: q_t + sum_k (prod d c) (r_k + d_k v_{k+1} - q_k),
    # the traces starting at t + 1.
    x = _random_batch()
    deltas = x["rewards"] + x["discounts"] * x["values"][1:] - x["q_taken"]
    traces_next = np.concatenate([0.95 * x["rhos"][1:], np.zeros_like(deltas[:1])])
    expected = x["q_taken"] + _sum_of_products(deltas, x, traces_next)
    np.testing.assert_allclose(_retrace(x, 0.95), expected, atol=1e-13)


def test_discounted_returns_equal_the_sum():
    x = _random_batch()
    expected = _sum_of_products(x["rewards"], x, np.ones_like(x["rewards"]))
    np.testing.assert_allclose(_discounted(x), expected, atol=1e-13)


@pytest.mark.parametrize("end", ["terminal", "cut"])
def test_two_episodes_equal_their_halves(end):
    x, split = _random_batch(), 4
    x["cut"][split - 1] = end == "cut"
    if end == "terminal":
        x["discounts"][split - 1] = 0
    first = {k: v[: split + (k == "values")] for k, v in x.items()}
    second = {k: v[split:] for k, v in x.items()}
    results = [
        (*_vtrace(part, 0.9), _retrace(part, 0.9), _discounted(part))
        for part in (x, first, second)
    ]
    for whole, *halves in zip(*results, strict=True):
        np.testing.assert_allclose(whole, np.concatenate(halves), rtol=1e-14)


@pytest.mark.parametrize(
    ("discount", "cut", "expected"),
    [
        (0.5, False, 1 + 0.5 * (1 + 0.5 * 7)),  # the trace reaches the last value
        (0.5, True, 1 + 0.5 * 5),  # bootstraps from the next value
        (0.0, False, 1),
        (0.0, True, 1),
    ],
)
def test_a_cut_bootstraps_and_a_terminal_step_does_not(discount, cut, expected):
    x = {
        "rewards": np.ones((2, 1)),
        "discounts": np.full((2, 1), discount),
        "cut": np.full((2, 1), cut),
        "values": np.array([[0.0], [5.0], [7.0]]),
        "rhos": np.ones((2, 1)),
        "q_taken": np.array([[0.0], [5.0]]),
    }
    errors, advantages = _vtrace(x, 1.0)
    assert errors[0].item() == expected
    assert advantages[0].item() == expected
    assert _retrace(x, 1.0)[0].item() == expected


def test_on_policy_vtrace_with_lambda_one_is_the_n_step_return():
    x = _random_batch()
    rewards, values, steps = x["rewards"], x["values"], len(x["rewards"])
    x["cut"][:], x["discounts"][:], x["rhos"][:] = False, 0.9, 1
    errors, advantages = _vtrace(x, 1.0)
    for t in range(steps):
        powers = 0.9 ** np.arange(steps - t)[:, None]
        n_step = np.sum(powers * rewards[t:], axis=0) + 0.9 ** (steps - t) * values[-1]
        np.testing.assert_allclose(values[t] + errors[t], n_step, atol=1e-13)
        np.testing.assert_allclose(advantages[t], n_step - values[t], atol=1e-13)


def test_lambda_zero_looks_one_step_ahead():
    x = _random_batch()
    one_step = x["rewards"] + x["discounts"] * x["values"][1:]
    expected = x["rhos"] * (one_step - x["values"][:-1])
    for result in _vtrace(x, 0.0):
        np.testing.assert_allclose(result, expected, atol=1e-15)
    np.testing.assert_allclose(_retrace(x, 0.0), one_step, atol=1e-15)


def test_retrace_with_action_values_equal_to_the_state_values_is_vtrace():
    # With q(a) = v and ratios of 1 both are the same lambda-return.
    x = _random_batch()
    x["q_taken"], x["rhos"] = x["values"][:-1], np.ones_like(x["rhos"])
    errors, _ = _vtrace(x, 0.8)
    np.testing.assert_allclose(_retrace(x, 0.8), x["values"][:-1] + errors, atol=1e-13)


def test_a_trailing_axis_is_just_more_trajectories():
    x = _random_batch(batch=6)
    folded = {k: v.reshape(len(v), 2, 3) for k, v in x.items()}
    for flat, nested in zip(_vtrace(x, 0.9), _vtrace(folded, 0.9), strict=True):
        np.testing.assert_array_equal(flat, nested.reshape(flat.shape))
