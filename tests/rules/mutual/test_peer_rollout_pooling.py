"""Peer rollout pooling against closed forms; SEAC's formula, written out, is a case."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules.mutual.mutual_cases import (
    KEY,
    Group,
    agent_loss,
    assert_finite_differences,
    loss_and_gradient,
    make_group,
    rows,
    teach,
)

from metarl.config import (
    MUTUAL,
    ActorCriticConfig,
    PeerRolloutPoolingConfig,
    PolicyGradientConfig,
    PPOConfig,
)
from metarl.numerics import take_action
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.rules.mutual.comparison import compared_returns
from metarl.rules.mutual.peer_rollout_pooling import WEIGHT
from metarl.types import Experience, Outputs, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

PLAIN = PPOConfig(
    discount=0.9, trace_lambda=0.0, clip_values=False, normalize_advantages=False
)
CRITIC = ActorCriticConfig(num_bins=11, max_abs_value=5.0, entropy_cost=0.0)


def rule_of(**options: object) -> UpdateRule:
    return make_rule(PeerRolloutPoolingConfig(**{"base": PLAIN, **options}))


def on_policy(group: Group) -> Group:
    """Return the group with every trajectory collected by its owner's policy."""
    t = group.experience.transitions
    width = t.valid.shape[1] // group.size
    logits = jnp.concatenate(
        [
            group.outputs["logits"][k, :-1, k * width : (k + 1) * width]
            for k in range(group.size)
        ],
        axis=1,
    )
    transitions = dataclasses.replace(t, behaviour_logits=logits)
    experience = dataclasses.replace(group.experience, transitions=transitions)
    return dataclasses.replace(group, experience=experience)


def ratios(experience: Experience) -> jax.Array:
    t = drop_invalid(experience.transitions)
    pi = jax.nn.softmax(experience.outputs["logits"][:-1])
    mu = jax.nn.softmax(t.behaviour_logits)
    return take_action(pi, t.actions) / take_action(mu, t.actions)


def shared_steps(experience: Experience) -> np.ndarray:
    return np.asarray(experience.transitions.valid & ~experience.transitions.own)


def seac(experience: Experience, config: PPOConfig, outputs: Outputs) -> jax.Array:
    """Return the loss of Christianos et al. (2020), Eqs. 3 and 5, with entropy.

    Over the agent's own transitions, and with importance weights over all others';
    neither weights nor advantages have a gradient.
    """
    t = drop_invalid(experience.transitions)
    constants = experience.outputs["v"][..., 0]
    returns = t.rewards + config.discount * (1.0 - t.is_terminal) * constants[1:]
    log_pi = jax.nn.log_softmax(outputs["logits"])
    weights = jnp.where(t.own, 1, ratios(experience))
    policy = -(returns - constants[:-1]) * take_action(log_pi, t.actions)
    value = 0.5 * jnp.square(outputs["v"][..., 0] - returns)
    entropy = -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1) * t.own
    each = weights * (policy + config.value_cost * value)
    learn = t.valid * t.learn
    total = jnp.sum(learn * (each - config.entropy_cost * entropy))
    return total / jnp.sum(learn * t.own)


def test_shared_experience_actor_critic_is_a_special_case():
    rule = rule_of(max_weight=None, over_peers="sum", share=1.0)
    for k in (0, 2):
        experience = on_policy(make_group(rule, 3)).of(k)
        own, _ = rows(experience)
        expected = jax.jit(jax.grad(lambda own, e=experience: seac(e, PLAIN, own)))(own)
        _, gradient = loss_and_gradient(rule, experience)
        for head in ("logits", "v"):
            np.testing.assert_allclose(gradient[head], expected[head], atol=1e-8)
            assert np.abs(gradient[head][:, shared_steps(experience).any(0)]).max() > 0


def test_weights_are_truncated_ratios():
    experience = make_group(rule_of(), 2).of(0)
    shared, rho = shared_steps(experience), np.asarray(ratios(experience))
    log_rho, own = np.log(rho), np.asarray(experience.transitions.own)
    length = shared.sum(0)
    mean = (log_rho * shared).sum(0) / np.maximum(length, 1)
    assert (rho[shared] > 1).any()
    assert (rho[shared] < 1).any()
    for options, expected in (
        ({}, np.minimum(rho, 1)),
        ({"max_weight": 0.5}, np.minimum(rho, 0.5)),
        ({"max_weight": None}, rho),
        ({"ratio_power": 0.5, "max_weight": None}, rho**1.5),
        ({"ratio": "sequence", "max_weight": None}, np.exp(mean) + 0 * rho),
        ({"correction": "none"}, np.ones_like(rho)),
        ({"correction": "base"}, np.ones_like(rho)),
    ):
        targets, _, metrics = teach(rule_of(**options), experience)
        weight = np.asarray(targets[WEIGHT])
        np.testing.assert_allclose(weight[shared], expected[shared], rtol=1e-12)
        assert not weight[own].any()
        np.testing.assert_allclose(metrics["peer_weight"], weight[shared].mean())
        np.testing.assert_allclose(metrics["peer_rho"], rho[shared].mean())
        assert metrics["peer_steps"] == shared.sum()


def test_stabilisers_drop_what_would_be_unlearned_far_away():
    experience = make_group(rule_of(), 2, T=8).of(1)
    shared, rho = shared_steps(experience), np.asarray(ratios(experience))
    advantages = np.asarray(teach(rule_of(), experience)[0]["advantages"])
    weight = np.minimum(rho, 1) * shared
    far = (advantages < 0) & (-np.log(rho) > 0.5)
    clipped = ((advantages > 0) & (rho > 1)) | ((advantages < 0) & (rho < 0.8))
    for options, dropped in (({"drop_kl": 0.5}, far), ({"clip": 0.2}, clipped)):
        targets, _, _ = teach(rule_of(**options), experience)
        assert (dropped & shared).any()
        assert (~dropped & shared).any()
        np.testing.assert_allclose(targets[WEIGHT], np.where(dropped, 0, weight))


def test_the_mean_over_peers_counts_them_as_one():
    group = make_group(rule_of(), 3)
    total, mean = (
        teach(rule_of(over_peers=over), group.of(0))[0][WEIGHT]
        for over in ("sum", "mean")
    )
    np.testing.assert_allclose(mean, total / 2, rtol=1e-12)


def test_a_share_of_trajectories_is_drawn_with_the_key():
    rule = rule_of(share=0.5, correction="none")
    experience = make_group(rule, 2, T=3, B=400).of(0)
    targets, _, _ = teach(rule, experience)
    exists, weight = shared_steps(experience), np.asarray(targets[WEIGHT])
    used = weight.any(0)
    # Whole trajectories, or nothing of them.
    np.testing.assert_array_equal(weight, (exists & used).astype(float))
    assert 0.4 < used[400:].mean() < 0.6
    again = rule.targets({}, rule.init_state(), experience, jax.random.key(8))[0]
    assert np.any(again[WEIGHT] != weight)
    none = teach(rule_of(share=0.0, correction="none"), experience)[0]
    assert not np.any(none[WEIGHT])


def test_twins_that_collected_data_on_policy_weigh_one_and_count_as_own():
    rule = rule_of(base=CRITIC, over_peers="sum")
    group = make_group(rule, 2)
    alike = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), group.outputs)
    group = on_policy(dataclasses.replace(group, outputs=alike))
    experience = group.of(0)
    np.testing.assert_allclose(ratios(experience)[shared_steps(experience)], 1)
    loss, _ = loss_and_gradient(rule, experience)
    # The scale of advantages is that of own ones in either.
    targets, _, _ = teach(rule, experience)
    t = drop_invalid(experience.transitions)
    everything = dataclasses.replace(
        experience, transitions=dataclasses.replace(t, own=t.valid)
    )
    own, peers = rows(experience)
    whole = agent_loss(rule.base, everything, targets, own, peers)
    learn = t.valid * t.learn
    # One is per own transition, the other per transition.
    ratio = jnp.sum(learn) / jnp.sum(learn * t.own)
    np.testing.assert_allclose(loss, whole * ratio, rtol=1e-7)
    assert ratio > 1.5


def test_correction_by_the_base_is_vtrace_with_the_owners_policy():
    rule = rule_of(base=CRITIC, correction="base", over_peers="sum", coefficient=0.3)
    experience = make_group(rule, 2).of(0)
    targets, _, _ = teach(rule, experience)
    alone, _, _ = teach(rule.base, experience)
    np.testing.assert_allclose(targets["advantages"], alone["advantages"], rtol=1e-12)
    own, peers = rows(experience)
    t = drop_invalid(experience.transitions)
    both = dataclasses.replace(t, own=t.valid)
    loss, _ = rule.loss(own, peers, targets, t)
    expected, _ = rule.base.loss(own, {}, alone, both)
    expected *= jnp.where(t.own, 1, 0.3)
    np.testing.assert_allclose(loss[t.valid], expected[t.valid], rtol=1e-12)


@pytest.mark.parametrize("base", ["ppo", "actor_critic", "policy_gradient"])
def test_the_gradient_equals_finite_differences(base):
    config = {
        "ppo": PPOConfig(),
        "actor_critic": CRITIC,
        "policy_gradient": PolicyGradientConfig(),
    }[base]
    rule = rule_of(base=config, coefficient=0.7)
    experience = make_group(rule, 2, T=3, B=2).of(1)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    own = {name: 0.9 * x for name, x in own.items()}  # as after a gradient step

    def loss(logits: jax.Array) -> jax.Array:
        return agent_loss(rule, experience, targets, own | {"logits": logits}, peers)

    gradient = assert_finite_differences(loss, own["logits"])
    assert np.abs(gradient[:, 0]).max() > 0  # a peer's trajectory
    assert np.abs(gradient[:, 2]).max() > 0  # an own one


def test_group_advantages_compare_returns_within_what_is_learned_from():
    config = PolicyGradientConfig(entropy_cost=0.0)
    rule = rule_of(base=config, form="group")
    group = make_group(rule, 2, T=3, B=2)
    returns = jnp.array([1.0, 0.0, 0.0, 0.0])
    peers = dataclasses.replace(group.experience.peers, returns=returns)
    experience = dataclasses.replace(group.experience, peers=peers)
    group = dataclasses.replace(group, experience=experience)
    deviation = np.sqrt(3) / 4
    expected = np.array([0.75, -0.25, -0.25, -0.25]) / (deviation + 1e-6)
    for k in range(2):
        advantages = teach(rule, group.of(k))[0]["advantages"]
        np.testing.assert_allclose(advantages, np.tile(expected, (3, 1)), rtol=1e-12)
    # Nothing shared: the agent's own two alone.
    alone = rule_of(base=config, form="group", share=0.0)
    advantages = teach(alone, group.of(0))[0]["advantages"]
    np.testing.assert_allclose(advantages[:, :2], [[1, -1]] * 3, rtol=3e-6)
    advantages = teach(alone, group.of(1))[0]["advantages"]
    np.testing.assert_array_equal(advantages, 0)  # both failed


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_group_advantages_are_of_ones_own_where_peers_do_not_count(coefficient):
    """And the base does not normalise what was compared with others."""
    options = {"entropy_cost": 0.0, "value_cost": 0.0, "discount": 0.9}
    rule = rule_of(base=PPOConfig(**options), form="group", coefficient=coefficient)
    plain = PPOConfig(**options, normalize_advantages=False)
    group = make_group(rule, 2, T=3, B=2)
    losses = []
    for theirs in ([0.0, 0.0], [3.0, 9.0]):
        peers = dataclasses.replace(
            group.experience.peers, returns=jnp.array([1.0, 0.0, *theirs])
        )
        experience = dataclasses.replace(group.experience, peers=peers)
        experience = dataclasses.replace(group, experience=experience).of(0)
        targets, _, _ = teach(rule, experience)
        own, others = rows(experience)
        t = drop_invalid(experience.transitions)
        found = rule.loss(own, others, targets, t)[0][:, :2]
        expected = make_rule(plain).loss(own, others, targets, t)[0][:, :2]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        losses.append(found)
    assert np.array_equal(*losses) == (coefficient == 0)


@pytest.mark.parametrize("kind", ["peer_rollout_pooling", "success_gated_transfer"])
def test_peers_add_nothing_to_a_minibatch_without_an_own_step(kind):
    base = PPOConfig(entropy_cost=0.0)
    options = {"gated": False} if kind == "success_gated_transfer" else {}
    rule = make_rule(MUTUAL[kind](base=base, **options))
    group = make_group(rule, 2, T=3, B=2)
    peers = dataclasses.replace(group.experience.peers, success=jnp.ones(4, bool))
    experience = dataclasses.replace(group.experience, peers=peers)
    experience = dataclasses.replace(group, experience=experience).of(0)
    targets, _, _ = teach(rule, experience)
    own, others = rows(experience)
    t = drop_invalid(experience.transitions)
    assert np.any(rule.loss(own, others, targets, t)[0][:, 2:])
    # As a minibatch is whose own steps are all beyond an end, or learn nothing.
    for none in ({"own": jnp.zeros_like(t.own)}, {"learn": jnp.zeros_like(t.learn)}):
        part = dataclasses.replace(t, **none)
        assert not np.any(rule.loss(own, others, targets, part)[0][:, 2:])


def test_equal_returns_have_no_advantage_however_their_mean_is_rounded():
    returns = jnp.full(7, 21.7, jnp.float32)
    yes = jnp.ones(7, bool)
    assert jnp.sum(returns) / 7 != returns[0]
    found = compared_returns(returns, yes, yes, 1.0)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, 0)


def test_equal_returns_and_single_ones_have_no_advantage():
    yes, first = jnp.ones(3, bool), jnp.array([True, False, False])
    alike = jnp.full(3, 0.1)
    np.testing.assert_allclose(compared_returns(alike, yes, yes, 1.0), 0, atol=1e-9)
    returns = jnp.array([5.0, 1.0, 2.0])
    np.testing.assert_array_equal(compared_returns(returns, first, first, 0.0), 0)
    # Whatever nobody collected counts for nothing.
    garbage = jnp.array([5.0, 1.0, jnp.nan])
    two = jnp.array([True, True, False])
    expected = [2 / (2 + 1e-6), -2 / (2 + 1e-6), 0]
    np.testing.assert_allclose(compared_returns(garbage, first, two, 1.0), expected)


def test_peers_count_by_what_they_can_do():
    rule = rule_of(correction="none", capability=True, capability_decay=0.5)
    group = make_group(rule, 2, T=3, B=2)
    success = jnp.array([False, True, True, True])
    peers = dataclasses.replace(group.experience.peers, success=success)
    experience = dataclasses.replace(group.experience, peers=peers)
    experience = dataclasses.replace(group, experience=experience).of(0)
    targets, state, metrics = teach(rule, experience)
    # (2 + 1) / (2 + 2) over (1 + 1) / (2 + 2)
    np.testing.assert_allclose(metrics["peer_capability"], 1.5)
    shared = shared_steps(experience)
    np.testing.assert_allclose(targets[WEIGHT][shared], 1.5)
    _, _, metrics = rule.targets({}, state, experience, KEY)
    # Counts are halved, and two attempts are added: 4 / 5 over 2.5 / 5.
    np.testing.assert_allclose(metrics["peer_capability"], 1.6)
