"""V-trace actor-critic against hand-computed numbers; both rules solve a bandit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.experience import make_experience

from metarl.config import ActorCriticConfig, PolicyGradientConfig
from metarl.numerics import Moments, take_action
from metarl.returns import vtrace
from metarl.rules import make_rule
from metarl.rules.actor_critic import ActorCritic
from metarl.rules.base import Head, UpdateRule
from metarl.types import Experience, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = ActorCriticConfig(
    num_bins=11, max_abs_value=5.0, discount=0.9, trace_lambda=0.8, entropy_cost=0.25
)
RULE = ActorCritic(CONFIG)
PLAIN = ActorCritic(CONFIG.model_copy(update={"normalize_advantages": False}))


def _targets(rule: ActorCritic, experience: Experience) -> tuple:
    state = rule.init_state()
    return rule.targets({}, state, experience, jax.random.key(0))


def test_the_configuration_makes_the_rule():
    assert make_rule(CONFIG) == RULE
    assert RULE.spec(5).heads == (Head("logits", 5), Head("v", 11))


def test_targets_are_vtrace_with_ratios_clipped_at_one():
    experience = make_experience(jax.random.key(0), PLAIN)
    transitions = drop_invalid(experience.transitions)
    pi = jax.nn.softmax(experience.outputs["logits"][:-1])
    mu = jax.nn.softmax(transitions.behaviour_logits)
    ratios = take_action(pi, transitions.actions) / take_action(mu, transitions.actions)
    assert np.any(ratios > 1)
    assert np.any(ratios < 1)
    values = RULE.bins.to_scalar(experience.outputs["v"])
    errors, advantages = vtrace(
        transitions.rewards,
        0.9 * (1.0 - transitions.is_terminal),
        jnp.minimum(ratios, 1),
        values,
        trace_lambda=0.8,
        cut=transitions.cut,
    )
    targets, state, metrics = _targets(PLAIN, experience)
    np.testing.assert_allclose(targets["advantages"], advantages, rtol=1e-12)
    np.testing.assert_allclose(
        targets["value"], RULE.bins.to_probs(values[:-1] + errors), rtol=1e-9
    )
    assert jax.tree.leaves(state) == jax.tree.leaves(Moments.initial())
    kept = np.asarray(transitions.valid)
    np.testing.assert_allclose(metrics["rho"], np.mean(ratios[kept]))
    np.testing.assert_allclose(metrics["value"], np.mean(values[:-1][kept]))


def test_normalised_advantages_have_their_deviation_removed_but_not_their_mean():
    experience = make_experience(jax.random.key(0), RULE)
    kept = np.asarray(experience.transitions.valid)
    raw = _targets(PLAIN, experience)[0]["advantages"]
    normalized = _targets(RULE, experience)[0]["advantages"]
    # The first batch's running moments are its own.
    np.testing.assert_allclose(normalized, raw / np.std(raw[kept]), rtol=1e-5)


def test_the_loss_equals_the_hand_computed_case():
    transitions = make_experience(jax.random.key(0), RULE, T=3, B=1, A=2).transitions
    transitions = dataclasses.replace(
        transitions, actions=jnp.array([[0], [1], [1]], jnp.int32)
    )
    pi = np.array([0.25, 0.75])
    outputs = {
        "logits": jnp.broadcast_to(jnp.log(pi), (3, 1, 2)),
        "v": jnp.zeros((3, 1, 11)),  # uniform: cross-entropy log 11 to any target
    }
    targets = {
        "advantages": jnp.array([[2.0], [-1.0], [0.0]]),
        "value": RULE.bins.to_probs(jnp.array([[0.3], [-2.0], [100.0]])),
    }
    loss, parts = RULE.loss(outputs, {}, targets, transitions)
    policy_loss = np.array([2 * np.log(4), np.log(0.75), 0])
    np.testing.assert_allclose(parts["policy_loss"][:, 0], policy_loss, atol=1e-15)
    np.testing.assert_allclose(parts["value_loss"], np.log(11))
    bonus = -np.sum(pi * np.log(pi))
    np.testing.assert_allclose(
        loss[:, 0], policy_loss + 0.5 * np.log(11) - 0.25 * bonus
    )
    del outputs["logits"]
    log_pi_a = jnp.log(pi)[transitions.actions]
    loss, again = RULE.loss({**outputs, "log_pi_a": log_pi_a}, {}, targets, transitions)
    np.testing.assert_allclose(again["policy_loss"], parts["policy_loss"], atol=1e-15)
    np.testing.assert_allclose(
        loss[:, 0],
        policy_loss + 0.5 * np.log(11) + 0.25 * np.log(pi[[0, 1, 1]]) ** 2 / 2,
    )


def test_the_value_loss_is_smallest_at_the_target():
    transitions = make_experience(jax.random.key(0), RULE, T=3, B=2).transitions
    target = RULE.bins.to_probs(jnp.linspace(-3, 3, 6).reshape(3, 2))
    targets = {"advantages": jnp.zeros((3, 2)), "value": target}
    logits = jnp.zeros((3, 2, 3))

    def total(v: jax.Array) -> jax.Array:
        outputs = {"logits": logits, "v": v}
        return jnp.sum(RULE.loss(outputs, {}, targets, transitions)[1]["value_loss"])

    at_target = jnp.log(jnp.maximum(target, 1e-12))
    np.testing.assert_allclose(jax.grad(total)(at_target), 0, atol=1e-10)
    assert total(at_target) < total(jnp.zeros_like(at_target))


@pytest.mark.parametrize(
    "rule",
    [
        make_rule(ActorCriticConfig(entropy_cost=0.01)),
        make_rule(PolicyGradientConfig(entropy_cost=0.01)),
    ],
    ids=["actor_critic", "policy_gradient"],
)
def test_a_tabular_agent_finds_the_best_path(rule: UpdateRule):
    """In a two-step game only action 1 and then action 2 is paid, at the end."""
    table = {
        head.name: jnp.zeros((2, head.size)) for head in rule.spec(3).heads
    }  # by state
    template = make_experience(jax.random.key(0), rule, T=2, B=32)
    yes = jnp.ones((2, 32), bool)
    flags = dataclasses.replace(
        template.transitions,
        is_terminal=jnp.array([[False], [True]]) & yes,
        cut=~yes,
        valid=yes,
        learn=jnp.ones((2, 32)),
    )

    def update(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        table, state = carry
        # Rows 0 and 1 are the states in turn; row 2 is the next episode's first.
        outputs = {
            k: jnp.broadcast_to(x[jnp.array([0, 1, 0]), None], (3, 32, x.shape[-1]))
            for k, x in table.items()
        }
        rows = {k: x[:-1] for k, x in outputs.items()}
        actions, logits = rule.act(rows, template.clock, key)
        paid = (actions[0] == 1) & (actions[1] == 2)
        transitions = dataclasses.replace(
            flags,
            actions=actions.astype(jnp.int32),
            behaviour_logits=logits,
            rewards=jnp.stack([jnp.zeros(32), paid.astype(float)]),
        )
        experience = dataclasses.replace(
            template, transitions=transitions, outputs=outputs
        )
        targets, state, _ = rule.targets({}, state, experience, key)

        def loss(table: dict[str, jax.Array]) -> jax.Array:
            rows = {
                k: jnp.broadcast_to(x[:, None], (2, 32, x.shape[-1]))
                for k, x in table.items()
            }
            return jnp.mean(rule.loss(rows, {}, targets, transitions)[0])

        steps = jax.grad(loss)(table)
        table = jax.tree.map(lambda x, g: x - g, table, steps)
        return (table, state), jnp.mean(paid)

    keys = jax.random.split(jax.random.key(1), 150)
    _, paid = jax.lax.scan(update, (table, rule.init_state()), keys)
    assert paid[0] < 0.3  # chance: 1 in 9
    assert jnp.mean(paid[-20:]) > 0.9


def test_log_probabilities_of_taken_actions_serve_in_place_of_all_logits():
    experience = make_experience(jax.random.key(0), RULE, T=5, B=3)
    transitions, outputs = experience.transitions, experience.outputs
    log_pi = jax.nn.log_softmax(outputs["logits"][:-1])
    log_mu = jax.nn.log_softmax(transitions.behaviour_logits)
    alone = dataclasses.replace(
        experience,
        outputs={
            "v": outputs["v"],
            "log_pi_a": take_action(log_pi, transitions.actions),
        },
        transitions=dataclasses.replace(
            transitions,
            behaviour_logits=jnp.zeros((*transitions.actions.shape, 0)),
            behaviour_log_pi_a=take_action(log_mu, transitions.actions),
        ),
    )
    state, key = RULE.init_state(), jax.random.key(1)
    expected, _, _ = RULE.targets({}, state, experience, key)
    targets, _, _ = RULE.targets({}, state, alone, key)
    for name, value in expected.items():
        np.testing.assert_allclose(
            targets[name][transitions.valid], value[transitions.valid], rtol=1e-10
        )
