"""Advantage sharing against its formulas: a baseline of the whole group's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules.mutual.mutual_cases import (
    Group,
    agent_loss,
    assert_finite_differences,
    make_group,
    rows,
    teach,
)

from metarl.config import (
    ActorCriticConfig,
    AdvantageSharingConfig,
    PolicyGradientConfig,
    PPOConfig,
)
from metarl.numerics import take_action
from metarl.returns import vtrace
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.types import drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

BASES = {
    "ppo": PPOConfig(discount=0.9),
    "actor_critic": ActorCriticConfig(
        num_bins=11, max_abs_value=5.0, discount=0.9, normalize_advantages=False
    ),
}
REINFORCE = PolicyGradientConfig(entropy_cost=0.0)


def rule_of(**options: object) -> UpdateRule:
    return make_rule(AdvantageSharingConfig(**{"base": BASES["ppo"], **options}))


def with_returns(
    group: Group, returns: list[float], success: list[bool] | None = None
) -> Group:
    peers = dataclasses.replace(
        group.experience.peers,
        returns=jnp.array(returns),
        success=jnp.array(returns) > 0 if success is None else jnp.array(success),
    )
    experience = dataclasses.replace(group.experience, peers=peers)
    return dataclasses.replace(group, experience=experience)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("bootstrap", ["own", "mixed"])
def test_the_baseline_is_mixed_with_the_peers_values(base, bootstrap):
    rule = rule_of(base=BASES[base], coefficient=0.6, bootstrap=bootstrap)
    group = make_group(rule, 3)
    experience = group.of(1)
    t, own = (
        drop_invalid(experience.transitions),
        np.asarray(experience.transitions.own),
    )
    values = [np.asarray(rule.base.state_values({"v": v})) for v in group.outputs["v"]]
    baseline = 0.4 * values[1] + 0.6 * sum(values) / 3
    rho = np.ones(t.actions.shape)
    if base == "actor_critic":
        pi = jax.nn.softmax(experience.outputs["logits"][:-1])
        mu = jax.nn.softmax(t.behaviour_logits)
        ratio = take_action(pi, t.actions) / take_action(mu, t.actions)
        rho = np.minimum(ratio, 1)
    used = values[1] if bootstrap == "own" else baseline
    errors, _ = vtrace(
        t.rewards,
        0.9 * (1.0 - t.is_terminal),
        jnp.asarray(rho),
        jnp.asarray(used),
        trace_lambda=0.95,
        cut=t.cut,
    )
    later = np.concatenate([errors[1:], np.zeros_like(errors[:1])]) * ~np.asarray(t.cut)
    returns = t.rewards + 0.9 * (1.0 - t.is_terminal) * (used[1:] + 0.95 * later)
    expected = rho * (returns - baseline[:-1])
    targets, _, metrics = teach(rule, experience)
    kept = np.asarray(t.valid)
    np.testing.assert_allclose(targets["advantages"][kept], expected[kept], rtol=1e-9)
    # The value head learns the base's own target.
    alone, _, _ = teach(rule.base, experience)
    np.testing.assert_allclose(targets["value"], alone["value"], rtol=1e-12)
    shift = np.abs(baseline - values[1])[:-1][kept & own].mean()
    np.testing.assert_allclose(metrics["shared_baseline_shift"], shift, rtol=1e-9)
    assert shift > 0.1


def test_advantages_are_scaled_by_the_running_deviation_of_shared_ones():
    config = BASES["actor_critic"]
    scaled = config.model_copy(update={"normalize_advantages": True})
    experience = make_group(rule_of(base=config), 2).of(0)
    raw = np.asarray(teach(rule_of(base=config), experience)[0]["advantages"])
    targets, state, _ = teach(rule_of(base=scaled), experience)
    t = experience.transitions
    kept = np.asarray(t.valid & t.own)
    expected = raw[kept] / np.std(raw[kept])
    np.testing.assert_allclose(targets["advantages"][kept], expected, rtol=1e-5)
    np.testing.assert_allclose(state.base.moment1, 0.01 * raw[kept].mean())


def test_absent_peers_leave_the_own_baseline():
    rule = rule_of()
    group = make_group(rule, 3)
    alone = dataclasses.replace(group, present=jnp.array([True, False, False]))
    poisoned = jax.tree.map(lambda x: x.at[1:].set(jnp.nan), alone.outputs)
    experience = dataclasses.replace(alone, outputs=poisoned).of(0)
    targets, _, metrics = teach(rule, experience)
    expected, _, _ = teach(rule.base, experience)
    np.testing.assert_array_equal(targets["advantages"], expected["advantages"])
    assert metrics["shared_baseline_shift"] == 0


def test_group_advantages_are_mixed_between_own_and_all():
    returns = [0.0, 1.0, 1.0, 1.0]
    for share in (0.0, 0.3, 1.0):
        rule = rule_of(base=REINFORCE, form="group", coefficient=share)
        group = with_returns(make_group(rule, 2, T=3, B=2), returns)
        advantages = teach(rule, group.of(0))[0]["advantages"]
        mean = (1 - share) * 0.5 + share * 0.75
        deviation = (1 - share) * 0.5 + share * np.sqrt(3) / 4
        expected = (np.array([0.0, 1.0]) - mean) / (deviation + 1e-6)
        np.testing.assert_allclose(
            advantages[:, :2], np.tile(expected, (3, 1)), rtol=1e-12
        )


def test_where_only_peers_succeeded_what_failed_is_unlearned():
    rule = rule_of(base=REINFORCE, form="group")
    alone = rule_of(base=REINFORCE, form="group", coefficient=0.0)
    group = with_returns(make_group(rule, 2, T=3, B=2), [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(teach(alone, group.of(0))[0]["advantages"], 0)
    advantages = teach(rule, group.of(0))[0]["advantages"]
    np.testing.assert_allclose(advantages[:, :2], -1 / np.sqrt(3), rtol=1e-5)
    # Where all failed there is nothing to compare.
    none = with_returns(group, [0.0] * 4)
    np.testing.assert_array_equal(teach(rule, none.of(0))[0]["advantages"], 0)


def test_minibatches_do_not_normalise_what_was_compared_with_the_group():
    """An affine map of all own advantages would be taken back, whatever lambda is."""
    plain = make_rule(BASES["ppo"].model_copy(update={"normalize_advantages": False}))
    losses = []
    for share in (0.0, 1.0):
        rule = rule_of(form="group", coefficient=share)
        group = with_returns(make_group(rule, 2, T=3, B=2), [0.0, 1.0, 1.0, 1.0])
        experience = group.of(0)
        targets, _, _ = teach(rule, experience)
        own, peers = rows(experience)
        t = drop_invalid(experience.transitions)
        loss, _ = rule.loss(own, peers, targets, t)
        np.testing.assert_allclose(loss, plain.loss(own, peers, targets, t)[0])
        losses.append(loss[:, :2])
    assert np.abs(losses[0] - losses[1]).max() > 0.1


def test_an_agent_learns_from_its_own_steps_alone():
    rule = rule_of(base=REINFORCE, form="group")
    group = with_returns(make_group(rule, 2, T=3, B=2), [0.0, 0.0, 0.0, 1.0])
    experience = group.of(0)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    loss, _ = rule.loss(own, peers, targets, drop_invalid(experience.transitions))
    assert not np.any(loss[:, 2:])
    assert np.any(loss[:, :2])


def test_peers_returns_are_corrected_by_capability():
    rule = rule_of(base=REINFORCE, form="group", capability=True)
    group = with_returns(make_group(rule, 2, T=3, B=2), [0.0, 1.0, 1.0, 1.0])
    advantages = teach(rule, group.of(0))[0]["advantages"]
    # Rates (1 + 1) / 4 and (2 + 1) / 4: a peer's success counts 2 / 3.
    counted = np.array([0, 1, 2 / 3, 2 / 3])
    expected = (counted - counted.mean()) / (counted.std() + 1e-6)
    np.testing.assert_allclose(advantages[0, :2], expected[:2], rtol=1e-12)


@pytest.mark.parametrize("form", ["value", "group"])
def test_the_gradient_equals_finite_differences(form):
    rule = rule_of(form=form, coefficient=0.7)
    experience = make_group(rule, 2, T=3, B=2).of(1)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    own = {name: 0.9 * x for name, x in own.items()}  # as after a gradient step

    def loss(logits: jax.Array) -> jax.Array:
        return agent_loss(rule, experience, targets, own | {"logits": logits}, peers)

    gradient = assert_finite_differences(loss, own["logits"])
    assert np.abs(gradient).max() > 0.01
