"""Success-gated transfer: when it fires, what it imitates, and why it has a gate."""

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

from metarl.config import PolicyGradientConfig, SuccessGatedTransferConfig
from metarl.numerics import take_action
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.rules.mutual.success_gated_transfer import WEIGHT, Threshold

pytestmark = pytest.mark.usefixtures("x64")

REINFORCE = PolicyGradientConfig(entropy_cost=0.0)


def rule_of(**options: object) -> UpdateRule:
    return make_rule(SuccessGatedTransferConfig(**{"base": REINFORCE, **options}))


def plain_group(success: list[bool], *, T: int = 4, **fields: jax.Array) -> Group:
    """Return two agents of whose trajectories every step exists, unpaid."""
    width = len(success) // 2
    group = make_group(rule_of(), 2, T=T, B=width)
    shape = (T, 2 * width)
    never = jnp.zeros(shape, bool)
    transitions = dataclasses.replace(
        group.experience.transitions,
        **{
            "rewards": jnp.zeros(shape),
            "is_terminal": never,
            "cut": never,
            "valid": ~never,
            "learn": jnp.ones(shape),
            **fields,
        },
    )
    peers = dataclasses.replace(
        group.experience.peers,
        success=jnp.array(success),
        returns=jnp.array(success).astype(float),
    )
    experience = dataclasses.replace(
        group.experience, transitions=transitions, peers=peers
    )
    return dataclasses.replace(group, experience=experience)


def weights(rule: UpdateRule, group: Group, k: int = 0) -> np.ndarray:
    return np.asarray(teach(rule, group.of(k))[0][WEIGHT])


NO, YES = False, True


@pytest.mark.parametrize(
    ("own", "peers", "gated", "ungated"),
    [
        ([NO, NO], [NO, NO], NO, NO),
        ([NO, NO], [NO, YES], YES, YES),
        ([NO, YES], [NO, YES], NO, YES),
        ([YES, YES], [NO, NO], NO, NO),
    ],
)
def test_it_fires_where_all_own_attempts_failed_and_a_peer_succeeded(
    own, peers, gated, ungated
):
    group = plain_group([*own, *peers])
    for is_gated, fires in ((True, gated), (False, ungated)):
        rule = rule_of(gated=is_gated)
        targets, _, metrics = teach(rule, group.of(0))
        assert metrics["rescue_rate"] == fires
        # Of the peer's successes, and of nothing else.
        imitated = np.any(targets[WEIGHT], axis=0)
        np.testing.assert_array_equal(
            imitated, [False, False, *(fires & np.array(peers))]
        )
        assert metrics["own_success"] == np.mean(own)
        assert metrics["peer_success"] == np.mean(peers)


def test_the_loss_is_the_mean_of_means_over_rescued_trajectories():
    # The second success has two steps; the peer's third trajectory failed.
    valid = jnp.ones((4, 6), bool).at[2:, 4].set(False)
    group = plain_group([NO, NO, NO, YES, YES, NO], valid=valid)
    rule = rule_of(coefficient=0.3)
    loss, gradient = loss_and_gradient(rule, group.of(0))
    t = group.experience.transitions
    logits = group.outputs["logits"][0, :-1]
    log_pi_a = np.asarray(take_action(jax.nn.log_softmax(logits), t.actions))
    expected = -0.3 * (log_pi_a[:, 3].mean() + log_pi_a[:2, 4].mean()) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-8)
    # pi - 1_a per rescued step, by L1 of the reference a pull towards the action.
    pull = np.asarray(jax.nn.softmax(logits)) - np.eye(3)[np.asarray(t.actions)]
    scale = np.zeros((4, 6))
    scale[:, 3], scale[:2, 4] = 0.3 / 2 / 4, 0.3 / 2 / 2
    np.testing.assert_allclose(gradient["logits"], scale[..., None] * pull, atol=1e-9)
    metrics = teach(rule, group.of(0))[2]
    np.testing.assert_allclose(metrics["rescue_share"], 0.3)


def test_the_weight_of_a_step_is_bounded():
    group = plain_group(
        [NO, NO, NO, YES], valid=jnp.ones((4, 4), bool).at[1:, 3].set(NO)
    )
    assert weights(rule_of(coefficient=0.3), group).max() == 1.0  # not 0.3 * 8
    free = weights(rule_of(coefficient=0.3, max_step_weight=10.0), group)
    np.testing.assert_allclose(free.max(), 2.4)


def test_at_most_so_many_successes_are_imitated():
    group = plain_group([NO] * 4 + [YES] * 4)
    weight = weights(rule_of(max_successes=2, coefficient=0.1), group)
    assert weight.any(0).sum() == 2
    np.testing.assert_allclose(weight.sum(), 0.1 * 16)
    rule = rule_of(max_successes=2)
    draws = [
        np.any(rule.targets({}, rule.init_state(), group.of(0), key)[0][WEIGHT], axis=0)
        for key in jax.random.split(KEY, 8)
    ]
    assert len({tuple(np.flatnonzero(draw)) for draw in draws}) > 1


def test_the_shortest_successes_may_be_chosen():
    valid = jnp.ones((4, 8), bool).at[1:, 6].set(False).at[3:, 4].set(False)
    group = plain_group([NO] * 4 + [YES] * 4, valid=valid)
    weight = weights(rule_of(max_successes=2, choose="shortest"), group)
    np.testing.assert_array_equal(np.flatnonzero(weight.any(0)), [4, 6])


def test_only_steps_that_a_reward_followed_may_be_chosen():
    rewards = jnp.zeros((4, 2)).at[1, 1].set(1.0)
    group = plain_group([NO, YES], rewards=rewards)
    assert weights(rule_of(), group)[:, 1].all()
    before = rule_of(steps="before_reward")
    np.testing.assert_array_equal(weights(before, group)[:, 1] > 0, [YES, YES, NO, NO])
    # The reward of another episode is none of this one's.
    ended = plain_group(
        [NO, YES],
        rewards=rewards,
        is_terminal=jnp.zeros((4, 2), bool).at[0, 1].set(YES),
    )
    np.testing.assert_array_equal(weights(before, ended)[:, 1] > 0, [NO, YES, NO, NO])
    unpaid = plain_group([NO, YES])
    assert not weights(before, unpaid).any()


def test_a_threshold_stands_in_for_success():
    rule = rule_of(success="quantile", quantile=0.5, threshold_decay=0.5)
    group = plain_group([NO] * 4)
    peers = dataclasses.replace(
        group.experience.peers, returns=jnp.array([-5.0, -4.0, -3.0, -1.0])
    )
    experience = dataclasses.replace(group.experience, peers=peers)
    group = dataclasses.replace(group, experience=experience)
    targets, state, metrics = teach(rule, group.of(0))
    assert metrics["success_threshold"] == -3.5
    np.testing.assert_array_equal(np.any(targets[WEIGHT], axis=0), [NO, NO, YES, YES])
    # The other agent's best is above it.
    assert not weights(rule, group, 1).any()
    better = dataclasses.replace(group.of(0).peers, returns=peers.returns + 6.0)
    later = dataclasses.replace(group.of(0), peers=better)
    _, _, metrics = rule.targets({}, state, later, KEY)
    np.testing.assert_allclose(metrics["success_threshold"], (-3.5 + 2 * 2.5) / 3)


def test_a_threshold_is_not_moved_by_what_nobody_collected():
    returns = jnp.array([1.0, jnp.nan, 3.0])
    mask = jnp.array([True, False, True])
    start = Threshold.initial()
    assert start.value() == 0
    after = start.update(returns, mask, 0.5, 0.9)
    np.testing.assert_allclose(after.value(), 2.0)
    same = after.update(returns, jnp.zeros(3, bool), 0.5, 0.9)
    assert jax.tree.map(float, same) == jax.tree.map(float, after)


def test_without_an_own_attempt_nothing_fires():
    valid = jnp.ones((4, 4), bool).at[:, :2].set(False)
    group = plain_group([NO, NO, YES, YES], valid=valid)
    targets, _, metrics = teach(rule_of(), group.of(0))
    assert not np.any(targets[WEIGHT])
    assert metrics["rescue_rate"] == 0


def test_the_gradient_equals_finite_differences():
    group = plain_group([NO, NO, NO, YES])
    rule = rule_of(coefficient=0.4)
    experience = group.of(0)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    gradient = assert_finite_differences(
        lambda x: agent_loss(rule, experience, targets, {"logits": x}, peers),
        0.9 * own["logits"],
    )
    assert np.abs(gradient[:, 3]).max() > 0.01
    assert not np.any(gradient[:, :3])


def test_the_gate_is_what_makes_imitation_go_uphill():
    """Section 2, bandit analysis: one step towards a success, in a tabular softmax.

    J is the success probability before it. It cannot fall where J is at most
    1 / (1 + number of failing actions); towards many a success it does where J is high.
    """
    rng, n = np.random.default_rng(0), 5000
    pays = rng.random((n, 3)) < 0.5
    pays[pays.all(1) | ~pays.any(1)] = [True, True, False]
    actions = np.argmax(pays * rng.random((n, 3)), axis=1)  # each a success
    logits = rng.normal(size=(2, 3, 2 * n, 3)) * rng.choice([0.5, 2.0], (2 * n, 1))
    group = plain_group([NO] * n + [YES] * n, T=2)
    t = group.experience.transitions
    t = dataclasses.replace(
        t, actions=t.actions.at[0, n:].set(actions.astype(t.actions.dtype))
    )
    group = dataclasses.replace(
        group,
        experience=dataclasses.replace(group.experience, transitions=t),
        outputs={"logits": jnp.asarray(logits)},
    )
    _, gradient = loss_and_gradient(rule_of(max_successes=n), group.of(0))
    pi = np.asarray(jax.nn.softmax(logits[0, 0, n:]))
    success = (pi * pays).sum(1)
    # dJ / dlogits = pi (r - J), along a step down the loss.
    slope = pi * (pays - success[:, None])
    uphill = (slope * -np.asarray(gradient["logits"])[0, n:]).sum(1) > -1e-15
    low, high = success <= 1 / (1 + (~pays).sum(1)), success > 0.8
    assert low.sum() > 1000
    assert high.sum() > 500
    assert uphill[low].all()
    assert uphill[high].mean() < 0.8
