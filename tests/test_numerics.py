"""Transforms, moments and Adam against hand-computed cases, optax and identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl import numerics
from metarl.config import OptimizerConfig
from metarl.numerics import Moments, ValueBins
from metarl.types import Clock

pytestmark = pytest.mark.usefixtures("x64")

reals = st.lists(
    st.floats(-1e5, 1e5, allow_subnormal=False), min_size=8, max_size=8
).map(np.array)
"""Eight numbers: one shape, so that each function compiles once."""


# --- Value transforms -------------------------------------------------------------


def test_transforms_equal_hand_computed_values():
    x = jnp.array([-3.0, 0.0, 8.0])
    np.testing.assert_allclose(
        numerics.signed_log(x), [-np.log(4), 0, np.log(9)], rtol=1e-15
    )
    np.testing.assert_allclose(
        numerics.signed_hyperbolic(x), [-(2 - 1) - 0.003, 0, (3 - 1) + 0.008]
    )
    np.testing.assert_allclose(
        numerics.signed_parabolic(jnp.array([-1.003, 0.0, 2.008])), x, rtol=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(reals)
def test_signed_parabolic_inverts_signed_hyperbolic(x):
    with jax.enable_x64(True):
        there = numerics.signed_hyperbolic(jnp.asarray(x))
        back = numerics.signed_parabolic(there)
        np.testing.assert_allclose(back, x, rtol=1e-10, atol=1e-10)
        again = numerics.signed_hyperbolic(numerics.signed_parabolic(jnp.asarray(x)))
        np.testing.assert_allclose(again, x, rtol=1e-10, atol=1e-10)


def test_the_inverse_keeps_its_digits_in_float32():
    u = jnp.linspace(-0.1, 0.1, 101, dtype=jnp.float32)
    e = jnp.float32(numerics.SQUASH_EPSILON)
    published = (jnp.sqrt(1 + 4 * e * (e + 1 + jnp.abs(u))) - 1) / (2 * e)
    published = jnp.sign(u) * (jnp.square(published) - 1)
    exact = numerics.signed_parabolic(u.astype(jnp.float64))
    assert np.max(np.abs(published - exact)) > 5e-5
    np.testing.assert_allclose(numerics.signed_parabolic(u), exact, atol=1e-6)


@pytest.mark.parametrize("bins", [ValueBins(601, 300.0), ValueBins(11, 5.0)])
def test_two_hot_recovers_the_scalar(bins):
    u = np.random.default_rng(0).uniform(-bins.max_abs, bins.max_abs, 50)
    x = numerics.signed_parabolic(jnp.asarray(u))
    probs = bins.to_probs(x)
    assert np.all(probs >= 0)
    assert np.all(np.sum(probs > 0, axis=-1) <= 2)
    np.testing.assert_allclose(jnp.sum(probs, axis=-1), 1, atol=1e-12)
    # The published 1e-5 in the denominator moves mass up by at most 1e-5 of a bin.
    np.testing.assert_allclose(probs @ bins.support(), u, atol=1.01e-5)
    np.testing.assert_allclose(
        numerics.signed_hyperbolic(bins.to_scalar(jnp.log(probs))), u, atol=1.01e-5
    )


def test_two_hot_equals_the_hand_computed_case():
    # Bins at -2, -1, 0, 1, 2; u = 0.25 lies between the third and the fourth.
    bins = ValueBins(5, 2.0)
    x = numerics.signed_parabolic(jnp.array(0.25))
    low = 0.75 / (1 + 1e-5)
    np.testing.assert_allclose(bins.to_probs(x), [0, 0, low, 1 - low, 0], atol=1e-12)


@pytest.mark.parametrize("x", [0.0, 1e9, -1e9])
def test_two_hot_on_a_bin_is_one_hot(x):
    # Zero sits on the middle bin; values beyond the bins are clipped to the last.
    bins = ValueBins(7, 3.0)
    index = {0.0: 3, 1e9: 6, -1e9: 0}[x]
    np.testing.assert_array_equal(bins.to_probs(jnp.array(x)), np.eye(7)[index])


def test_value_bins_read_logits():
    bins = ValueBins(3, 1.0)
    # u = (e - 1/e) / (e + 1 + 1/e)
    u = np.sinh(1) / (np.cosh(1) + 0.5)
    expected = numerics.signed_parabolic(jnp.array(u))
    np.testing.assert_allclose(bins.to_scalar(jnp.array([-1.0, 0, 1])), expected)
    np.testing.assert_array_equal(bins.support(), [-1, 0, 1])


# --- Divergences and masks --------------------------------------------------------


def test_divergences_equal_hand_computed_values():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    p_logits, q_logits = jnp.log(p) + 3, jnp.log(q) - 1  # constants drop out
    np.testing.assert_allclose(
        numerics.kl_divergence(p_logits, q_logits), 0.25 * np.log(2), rtol=1e-12
    )
    np.testing.assert_allclose(numerics.kl_divergence(p_logits, p_logits), 0)
    np.testing.assert_allclose(numerics.entropy(p_logits), 1.5 * np.log(2), rtol=1e-12)
    np.testing.assert_allclose(numerics.entropy(jnp.zeros(8)), 3 * np.log(2))


def test_divergences_ignore_an_offset_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    p_logits = jnp.asarray(rng.normal(size=(64, 600)), jnp.float32)
    q_logits = p_logits + jnp.asarray(1e-3 * rng.normal(size=(64, 600)), jnp.float32)
    exact = numerics.kl_divergence(p_logits, q_logits)
    # Thousands cost float32 the logits' own digits, and nothing else.
    shifted = numerics.kl_divergence(p_logits, q_logits + 64)
    assert float(jnp.min(exact)) > -2e-6
    np.testing.assert_allclose(shifted, exact, atol=1e-5)
    p = jax.nn.softmax(p_logits)
    np.testing.assert_allclose(
        numerics.cross_entropy(p, q_logits + 64),
        numerics.cross_entropy(p, q_logits),
        rtol=1e-5,
    )


def test_of_an_action_that_there_is_not_nothing_is_taken() -> None:
    values = jnp.asarray([[[1.0, 2.0], [3.0, 4.0]]] * 2)  # [T, B, A] = [2, 2, 2]
    actions = jnp.asarray([[0, 1], [2, -1]])
    np.testing.assert_array_equal(
        numerics.take_action(values, actions), [[1.0, 4.0], [0.0, 0.0]]
    )


def test_take_action_picks_the_action_axis():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 4, 5))
    actions = rng.integers(4, size=(2, 3))
    for trailing in (values, values[..., 0]):
        taken = numerics.take_action(jnp.asarray(trailing), jnp.asarray(actions))
        for t, b in np.ndindex(2, 3):
            np.testing.assert_array_equal(taken[t, b], trailing[t, b, actions[t, b]])


def test_masked_mean_counts_what_the_mask_keeps():
    x = jnp.array([[1.0, 2.0], [4.0, np.nan]])
    mask = jnp.array([[True, False], [True, False]])
    assert numerics.masked_mean(x, mask) == 2.5  # not the nan that is masked out
    assert numerics.masked_mean(x, jnp.zeros_like(mask)) == 0
    vectors = jnp.stack([x, x + 1], axis=-1)
    assert numerics.masked_mean(vectors, mask) == 3


def test_masked_mean_has_finite_gradients_everywhere():
    x = jnp.array([[1.0, 2.0], [4.0, np.nan]])
    mask = jnp.array([[True, False], [True, False]])
    gradient = jax.grad(numerics.masked_mean)
    np.testing.assert_array_equal(gradient(x, mask), [[0.5, 0], [0.5, 0]])
    np.testing.assert_array_equal(gradient(x, jnp.zeros_like(mask)), np.zeros((2, 2)))


# --- Moments ----------------------------------------------------------------------


def _batches() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, size=(5, 4, 3))
    mask = rng.random(x.shape) < 0.7
    return np.where(mask, x, np.nan), mask


def test_moments_equal_directly_weighted_sums():
    x, mask = _batches()
    decay, moments = 0.9, Moments.initial()
    for batch, kept in zip(x, mask, strict=True):
        moments = moments.update(jnp.asarray(batch), jnp.asarray(kept), decay)
    weights = (1 - decay) * decay ** np.arange(len(x))[::-1]
    means = np.nanmean(x, axis=(1, 2))
    squares = np.nanmean(x**2, axis=(1, 2))
    np.testing.assert_allclose(moments.moment1, weights @ means)
    np.testing.assert_allclose(moments.moment2, weights @ squares)
    np.testing.assert_allclose(moments.decay_product, decay ** len(x))
    # Debiased, the weights add up to one.
    mean = weights @ means / weights.sum()
    deviation = np.sqrt(weights @ squares / weights.sum() - mean**2)
    point = jnp.array([7.0])
    np.testing.assert_allclose(
        moments.normalize(point, subtract_mean=True),
        (point - mean) / deviation,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        moments.normalize(point, subtract_mean=False), point / deviation, rtol=1e-6
    )


def test_moments_of_the_first_batch_are_those_of_the_batch():
    x = jnp.array([[1.0, 2.0, 6.0]])
    moments = Moments.initial().update(x, jnp.ones_like(x, bool), 0.99)
    z = moments.normalize(x, subtract_mean=True)
    np.testing.assert_allclose(jnp.mean(z), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.std(z), 1, rtol=1e-6)


def test_moments_stay_when_nothing_is_kept():
    x, mask = _batches()
    before = Moments.initial().update(jnp.asarray(x[0]), jnp.asarray(mask[0]), 0.9)
    after = before.update(jnp.asarray(x[1]), jnp.zeros(x[1].shape, bool), 0.9)
    assert jax.tree.leaves(after) == jax.tree.leaves(before)


def test_initial_moments_divide_by_the_published_epsilon():
    # sqrt(1e-12) + 1e-6.
    z = Moments.initial().normalize(jnp.array([3.0]), subtract_mean=True)
    np.testing.assert_allclose(z, 3 / 2e-6)


def test_constant_data_gives_a_finite_normalisation_with_finite_gradient():
    x = jnp.full((2, 2), 5.0)
    moments = Moments.initial().update(x, jnp.ones_like(x, bool), 0.9)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(moments.normalize(x, subtract_mean=True))

    assert np.isfinite(total(x))
    assert np.all(np.isfinite(jax.grad(total)(x)))


# --- Adam -------------------------------------------------------------------------

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}


def _params() -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(2)
    return {"layer": {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.ones(2)}}


def test_adam_equals_optax():
    rng = np.random.default_rng(4)
    ours = theirs = _params()
    state = numerics.adam_init(ours)
    optimizer = optax.adam(0.1, **ADAM)
    optax_state = optimizer.init(theirs)
    for _ in range(5):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), ours)
        direction, state = numerics.adam_direction(grads, state, **ADAM)
        ours = jax.tree.map(lambda p, d: p - 0.1 * d, ours, direction)
        updates, optax_state = optimizer.update(grads, optax_state)
        theirs = optax.apply_updates(theirs, updates)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    assert state.count == 5


def test_first_adam_direction_is_the_sign_of_the_gradient():
    grads = {"w": jnp.array([1e-3, -20.0, 0.0])}
    direction, _ = numerics.adam_direction(grads, numerics.adam_init(grads), **ADAM)
    np.testing.assert_allclose(direction["w"], [1, -1, 0], rtol=1e-4)


def test_the_gradient_through_adam_holds_the_second_moment():
    """The outer gradient equals finite differences with the denominators frozen."""
    rng = np.random.default_rng(5)
    base, slope, weight = (jnp.asarray(rng.normal(size=4)) for _ in range(3))
    start = numerics.adam_init({"w": base})
    _, state = numerics.adam_direction({"w": base}, start, **ADAM)

    def objective(x: jax.Array) -> jax.Array:
        """Two updates whose gradients depend on ``x``."""
        first, after = numerics.adam_direction(
            {"w": base + slope * jnp.sin(x)}, state, **ADAM
        )
        second, _ = numerics.adam_direction({"w": base * jnp.exp(x)}, after, **ADAM)
        return jnp.sum(weight * (first["w"] + second["w"]))

    def frozen(x: float, at: float) -> np.ndarray:
        """The same in numpy, with second moments of the gradients at ``at``."""
        mu, nu, total = np.asarray(state.mu["w"]), np.asarray(state.nu["w"]), 0.0
        for count, grad in (
            (2, lambda x: base + slope * np.sin(x)),
            (3, lambda x: base * np.exp(x)),
        ):
            mu = 0.9 * mu + 0.1 * grad(x)
            nu = 0.999 * nu + 0.001 * np.square(grad(at))
            denominator = np.sqrt(nu / (1 - 0.999**count)) + 1e-8
            total = total + mu / (1 - 0.9**count) / denominator
        return np.sum(weight * total)

    x, h = 0.3, 1e-5
    np.testing.assert_allclose(objective(jnp.array(x)), frozen(x, x), rtol=1e-12)
    held = (frozen(x + h, x) - frozen(x - h, x)) / (2 * h)
    free = (frozen(x + h, x + h) - frozen(x - h, x - h)) / (2 * h)
    gradient = jax.grad(objective)(jnp.array(x))
    np.testing.assert_allclose(gradient, held, rtol=1e-8)
    assert abs(free - held) > 1e-2  # so that the stop shows


def test_clip_elementwise_stops_the_gradient_outside():
    tree = {"a": jnp.array([-3.0, 0.5]), "b": jnp.array([2.0])}
    clipped = numerics.clip_elementwise(tree, 1.0)
    np.testing.assert_array_equal(clipped["a"], [-1, 0.5])
    np.testing.assert_array_equal(clipped["b"], [1])
    gradient = jax.grad(
        lambda t: sum(jnp.sum(x) for x in numerics.clip_elementwise(t, 1.0).values())
    )(tree)
    np.testing.assert_array_equal(gradient["a"], [0, 1])
    np.testing.assert_array_equal(gradient["b"], [0])


def test_scale_to_norm_only_shrinks():
    tree = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    assert numerics.global_norm(tree) == 5
    shrunk = numerics.scale_to_norm(tree, 1.0)
    np.testing.assert_allclose(shrunk["a"], [0.6])
    np.testing.assert_allclose(shrunk["b"], [[0.8]])
    same = numerics.scale_to_norm(tree, 6.0)
    assert jax.tree.leaves(same) == jax.tree.leaves(tree)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    assert jax.tree.leaves(numerics.scale_to_norm(zeros, 1.0)) == [0, 0]


def test_scale_to_norm_has_a_gradient_everywhere():
    def weighted(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.array([2.0, -1.0]) * numerics.scale_to_norm([x], 1.0)[0])

    gradient = jax.jit(jax.grad(weighted))
    for x in (jnp.zeros(2), jnp.array([0.3, 0.4])):  # left as they are
        np.testing.assert_array_equal(gradient(x), [2, -1])
    # Of w x / |x|: (w - (w u) u) / |x| with u = x / |x| = (0.6, 0.8), so w u = 0.4.
    np.testing.assert_allclose(gradient(jnp.array([3.0, 4.0])), [0.352, -0.264])


# --- Learning rates ---------------------------------------------------------------


def _rate(config: OptimizerConfig, *, env_steps: float, fraction: float) -> float:
    clock = Clock(
        env_steps=jnp.array(env_steps),
        agent_updates=jnp.array(0),
        lifetime_fraction=jnp.array(fraction),
    )
    return float(numerics.learning_rate(config, clock))


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("constant", optax.constant_schedule(0.3)),
        ("linear", optax.linear_schedule(0.3, 0.03, 100)),
        ("cosine", optax.cosine_decay_schedule(0.3, 100, alpha=0.1)),
    ],
)
def test_learning_rates_equal_optax_schedules(schedule, theirs):
    config = OptimizerConfig(
        learning_rate=0.3, end_learning_rate=0.03, schedule=schedule
    )
    for step in (0, 1, 37, 100, 130):  # beyond the lifetime the end is kept
        ours = _rate(config, env_steps=10.0 * step, fraction=step / 100)
        np.testing.assert_allclose(ours, theirs(step), rtol=1e-6)


def test_warm_up_multiplies_the_schedule():
    config = OptimizerConfig(learning_rate=0.3, schedule="linear", warmup_env_steps=200)
    assert _rate(config, env_steps=0, fraction=0) == 0
    np.testing.assert_allclose(
        _rate(config, env_steps=50, fraction=0.1), 0.25 * 0.9 * 0.3
    )
    np.testing.assert_allclose(_rate(config, env_steps=400, fraction=0.5), 0.5 * 0.3)
