"""REINFORCE against hand-computed numbers, and the policy terms both rules share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.experience import make_experience

from metarl.config import PolicyGradientConfig
from metarl.numerics import Moments, entropy
from metarl.returns import discounted_returns
from metarl.rules import make_rule
from metarl.rules.base import Head
from metarl.rules.policy import policy_terms
from metarl.rules.policy_gradient import PolicyGradient
from metarl.types import drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = PolicyGradientConfig(discount=0.9, entropy_cost=0.25, moments_decay=0.8)


def test_the_configuration_makes_the_rule():
    rule = make_rule(CONFIG)
    assert rule == PolicyGradient(CONFIG)
    assert rule.spec(5).heads == (Head("logits", 5),)


def test_advantages_are_returns_over_their_running_moments():
    rule = PolicyGradient(CONFIG)
    state, history = rule.init_state(), []
    for seed in range(3):
        experience = make_experience(jax.random.key(seed), rule)
        targets, state, metrics = rule.targets({}, state, experience, jax.random.key(0))
        transitions = drop_invalid(experience.transitions)
        returns = discounted_returns(
            transitions.rewards,
            0.9 * (1.0 - transitions.is_terminal),
            cut=transitions.cut,
        )
        history.append(np.asarray(returns)[np.asarray(transitions.valid)])
    np.testing.assert_allclose(metrics["return"], np.mean(history[-1]))
    # Three updates with decay 0.8: weights 0.64, 0.8 and 1, normalised.
    weights = np.array([0.64, 0.8, 1]) / 2.44
    mean = weights @ [np.mean(x) for x in history]
    variance = weights @ [np.mean(x**2) for x in history] - mean**2
    np.testing.assert_allclose(
        targets["advantages"], (returns - mean) / np.sqrt(variance), rtol=1e-5
    )


def test_the_loss_equals_the_hand_computed_case():
    rule = PolicyGradient(CONFIG)
    transitions = make_experience(jax.random.key(0), rule, T=3, B=1, A=2).transitions
    transitions = dataclasses.replace(
        transitions, actions=jnp.array([[0], [1], [1]], jnp.int32)
    )
    probs = np.array([0.25, 0.75])
    outputs = {"logits": jnp.broadcast_to(jnp.log(probs), (3, 1, 2))}
    advantages = jnp.array([[2.0], [-1.0], [0.0]])
    loss, parts = rule.loss(outputs, {}, {"advantages": advantages}, transitions)
    policy_loss = np.array([2 * np.log(4), np.log(0.75), 0])
    bonus = -np.sum(probs * np.log(probs))
    np.testing.assert_allclose(parts["policy_loss"][:, 0], policy_loss, atol=1e-15)
    np.testing.assert_allclose(loss[:, 0], policy_loss - 0.25 * bonus)


def test_the_gradient_is_that_of_the_policy_gradient_theorem():
    # d/d logits of -A log pi(a) is A (pi - 1_a).
    rule = PolicyGradient(PolicyGradientConfig(entropy_cost=0))
    experience = make_experience(jax.random.key(0), rule)
    transitions = experience.transitions
    logits = experience.outputs["logits"][:-1]
    advantages = transitions.rewards

    def total(logits: jax.Array) -> jax.Array:
        targets = {"advantages": advantages}
        return jnp.sum(rule.loss({"logits": logits}, {}, targets, transitions)[0])

    expected = jax.nn.softmax(logits) - jax.nn.one_hot(transitions.actions, 3)
    np.testing.assert_allclose(
        jax.grad(total)(logits), advantages[..., None] * expected, atol=1e-12
    )


def test_taken_log_probabilities_serve_in_place_of_logits():
    experience = make_experience(jax.random.key(0), PolicyGradient(CONFIG))
    actions = experience.transitions.actions
    logits = experience.outputs["logits"][:-1]
    log_pi_a, exact = policy_terms({"logits": logits}, actions)
    np.testing.assert_array_equal(exact, entropy(logits))
    same, bonus = policy_terms({"log_pi_a": log_pi_a}, actions)
    np.testing.assert_array_equal(same, log_pi_a)
    np.testing.assert_array_equal(bonus, -(log_pi_a**2) / 2)


def test_the_entropy_bonus_of_taken_actions_has_the_entropys_gradient():
    """Averaged over actions from the policy, the one-sample bonus is unbiased."""
    logits = jnp.array([0.3, -1.2, 0.7, 0.1])
    probs = jax.nn.softmax(logits)

    def bonus(logits: jax.Array, action: int) -> jax.Array:
        log_pi_a = jax.nn.log_softmax(logits)[action].reshape(1, 1)
        return policy_terms({"log_pi_a": log_pi_a}, jnp.zeros((1, 1), int))[1].sum()

    gradients = [jax.grad(bonus)(logits, action) for action in range(4)]
    np.testing.assert_allclose(
        probs @ jnp.stack(gradients), jax.grad(entropy)(logits), atol=1e-12
    )


def test_the_running_baseline_changes_slowly():
    # One lucky batch late in life moves the baseline by 1 - decay of the difference.
    before = Moments(jnp.array(1.0), jnp.array(2.0), jnp.array(0.0))
    rule = PolicyGradient(CONFIG)
    experience = make_experience(jax.random.key(0), rule, T=3)
    transitions = dataclasses.replace(
        experience.transitions,
        rewards=jnp.full((3, 4), 11.0),
        is_terminal=jnp.ones((3, 4), bool),
        valid=jnp.ones((3, 4), bool),
    )
    experience = dataclasses.replace(experience, transitions=transitions)
    _, state, _ = rule.targets({}, before, experience, jax.random.key(0))
    np.testing.assert_allclose(state.moment1, 1 + 0.2 * 10)
