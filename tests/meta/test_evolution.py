"""Evolution strategies on functions whose gradients are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.config import EvolutionConfig
from metarl.meta.evolution import EvolutionStrategies, Particles
from metarl.types import Params

KEY = jax.random.key(3)
Fitness = Callable[[Params, jax.Array], jax.Array]


def strategies(
    pairs: int, *, groups: int = 1, persistent: bool = False, **config: object
) -> EvolutionStrategies:
    given = EvolutionConfig(pairs=pairs, **config)
    return EvolutionStrategies(given, groups, persistent=persistent)


def play_of(fitness: Fitness):
    """Return a play of ``fitness(rule, group)``, which leaves nothing behind."""

    def play(rules: Params, particles: Particles, key: jax.Array):
        groups = jnp.arange(jax.tree.leaves(rules)[0].shape[2])
        of_pair = jax.vmap(jax.vmap(jax.vmap(fitness), in_axes=(0, None)), (0, None))
        return particles, of_pair(rules, groups), None

    return play


def estimate(es: EvolutionStrategies, fitness: Fitness, meta_params: Params):
    """Return the estimate, its standard error, and the metrics."""
    _, grads, metrics = es(play_of(fitness), meta_params, Particles(), KEY)
    rules, noise, _ = es.propose(meta_params, None, KEY)
    _, values, _ = play_of(fitness)(rules, Particles(), KEY)
    half = (values[:, 0] - values[:, 1]) / (2 * es.config.sigma**2)
    error = jax.tree.map(
        lambda e: (
            np.std(half.reshape(*half.shape, *[1] * (e.ndim - 2)) * e, axis=0)
            / np.sqrt(es.config.pairs)
        ),
        noise,
    )
    return grads, error, metrics


def curved(rule: Params, group: jax.Array) -> jax.Array:
    """Return a quadratic in a, another for each group, plus b cubed."""
    difference = rule["a"] - jnp.where(group == 0, 1.0, -2.0)
    return -0.5 * difference @ jnp.array([[2.0, 0.5], [0.5, 1.0]]) @ difference + (
        rule["b"] ** 3
    )


def test_many_pairs_give_the_gradient_of_each_groups_smoothed_objective(
    x64: None,
) -> None:
    meta_params = {"a": jnp.array([0.5, -1.0]), "b": jnp.array(0.7)}
    es = strategies(4000, groups=2, sigma=0.3)
    grads, error, metrics = estimate(es, curved, meta_params)
    for group in range(2):
        expected = jax.grad(lambda rule, g=group: -curved(rule, jnp.array(g)))(
            meta_params
        )
        # E (b + e)^3 = b^3 + 3 sigma^2 b: smoothed, and seen as such.
        expected["b"] -= 3 * 0.3**2
        for name in ("a", "b"):
            found, within = grads[name][group], 4 * error[name][group]
            assert np.all(np.abs(found - expected[name]) < within), name
            assert np.all(within < 0.5 * np.abs(expected[name])), name
    assert metrics["loss"].shape == (2,)
    np.testing.assert_allclose(metrics["loss"], -metrics["fitness"])


def test_pairs_are_antithetic(x64: None) -> None:
    meta_params = {"a": jnp.array([0.5, -1.0, 2.0])}
    weights = jnp.array([3.0, -1.0, 0.5])
    es = strategies(5, groups=2, sigma=0.2)
    rules, noise, _ = es.propose(meta_params, None, KEY)
    tiny.assert_close(
        rules["a"][:, 0] + rules["a"][:, 1],
        jnp.broadcast_to(2 * meta_params["a"], (5, 2, 3)),
    )
    assert len(np.unique(noise["a"])) == 30  # no two groups or pairs share one
    # Of a linear function every pair has its slope along e exactly, whatever is added
    # to it, and so of what is the same for e and -e.
    grads, _, metrics = estimate(
        es, lambda rule, group: rule["a"] @ weights + 1e3 * group, meta_params
    )
    e = np.asarray(noise["a"])
    expected = -np.einsum("rgi,rgj,j->gi", e, e, weights) / (0.2**2 * 5)
    np.testing.assert_allclose(grads["a"], expected, rtol=1e-9)
    np.testing.assert_allclose(
        metrics["pair_difference"], np.mean(2 * np.abs(e @ weights), axis=0)
    )

    def even(rule: Params, group: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(rule["a"]))

    grads, _, _ = estimate(es, even, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(grads["a"], 0)


# --- Persistent ones ------------------------------------------------------------------

DECAY, COST, UNROLLS = 0.9, 2.0, 8


def recur(rules: Params, particles: Particles, key: jax.Array):
    """Play one step of ``s' = 0.9 s + eta``, which is worth ``s' - 2 eta``.

    More eta costs at once and pays off later: a step alone has the wrong sign.
    """
    del key
    state = DECAY * particles.population + rules["eta"]
    after = dataclasses.replace(particles, population=state)
    return after, state - COST * rules["eta"], None


def lives(
    es: EvolutionStrategies, meta_params: Params, *, forgets: bool = False
) -> np.ndarray:
    """Return the gradient of every unroll of a life."""
    shape = (es.config.pairs, 2, es.groups)
    particles = Particles(jnp.zeros(shape), es.begin(meta_params))
    grads = []
    for key in jax.random.split(KEY, UNROLLS):
        if forgets:
            particles = dataclasses.replace(
                particles, perturbations=es.begin(meta_params)
            )
        particles, grad, _ = es(recur, meta_params, particles, key)
        grads.append(np.asarray(grad["eta"]))
    return np.array(grads)


def test_persistent_ones_are_unbiased_where_truncated_ones_have_the_wrong_sign(
    x64: None,
) -> None:
    meta_params = {"eta": jnp.array(0.3)}
    # Of unroll k: d/d eta of the sum of 0.9^i eta, i < k, less the cost.
    slopes = [sum(DECAY**i for i in range(k)) - COST for k in range(1, UNROLLS + 1)]
    expected = -np.mean(slopes)
    assert expected < -1.5
    # A thousand groups are a thousand independent estimates.
    es = strategies(4, groups=1000, sigma=0.1, persistent=True)
    estimates = lives(es, meta_params).mean(axis=0)
    error = estimates.std() / np.sqrt(1000)
    assert abs(estimates.mean() - expected) < 4 * error
    assert 4 * error < 0.5 * abs(expected)
    # Truncated: what an unroll inherits is taken as given, and a slope of -1 is left.
    truncated = lives(es, meta_params, forgets=True).mean(axis=0)
    error = truncated.std() / np.sqrt(1000)
    assert abs(truncated.mean() - (COST - 1)) < 4 * error


def test_a_life_of_one_unroll_is_as_without_persistence() -> None:
    meta_params = {"a": jnp.array([0.5, -1.0]), "b": jnp.array(0.7)}
    results = []
    for persistent in (False, True):
        es = strategies(6, groups=2, persistent=persistent)
        particles = Particles(None, es.begin(meta_params))
        particles, *result = es(play_of(curved), meta_params, particles, KEY)
        assert (particles.perturbations is not None) == persistent
        results.append(result)
    tiny.assert_same_bits(*results)


# --- Fitness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shaping", "expected"),
    [
        ("raw", [[0.0, 3.0], [6.0, 3.0]]),
        ("standardized", [[-(2**0.5), 0.0], [2**0.5, 0.0]]),
        ("ranks", [[-0.5, 0.0], [0.5, 0.0]]),
        ("pairs", [[-0.5, 0.5], [0.5, -0.5]]),
    ],
)
def test_fitness_is_shaped_over_the_rules_of_a_group(
    shaping: str, expected: list[list[float]]
) -> None:
    es = strategies(2, shaping=shaping)
    fitness = jnp.array([[0.0, 3.0], [6.0, 3.0]])
    np.testing.assert_allclose(es.shape(fitness), expected, atol=1e-6)
    # Where all are equally good, nothing follows.
    grads, _ = es.gradient(
        {"a": jnp.ones((2, 1, 3))}, jnp.full((2, 2, 1), -0.3, jnp.float32)
    )
    np.testing.assert_array_equal(grads["a"], 0)


@pytest.mark.parametrize("shaping", ["standardized", "ranks", "pairs"])
def test_shaped_fitness_does_not_depend_on_its_unit(shaping: str) -> None:
    es = strategies(5, groups=2, shaping=shaping)
    meta_params = {"a": jnp.array([0.5, -1.0]), "b": jnp.array(0.7)}

    def scaled(rule: Params, group: jax.Array) -> jax.Array:
        return 100.0 * curved(rule, group) + 7.0

    grads = [
        es(play_of(fitness), meta_params, Particles(), KEY)[1]
        for fitness in (curved, scaled)
    ]
    assert np.all(np.abs(grads[0]["a"]) > 1e-3)
    tiny.assert_close(*grads, tolerance=1e-4)
