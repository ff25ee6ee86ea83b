"""Deep mutual learning against its formulas, written out in NumPy."""

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
    joint_loss,
    loss_and_gradient,
    make_group,
    rows,
    teach,
)

from metarl.config import DeepMutualLearningConfig, PolicyGradientConfig
from metarl.errors import UserError
from metarl.rules import make_rule
from metarl.rules.base import Head, RuleSpec, UpdateRule
from metarl.rules.mutual.deep_mutual_learning import DeepMutualLearning
from metarl.types import drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

SILENT = PolicyGradientConfig(entropy_cost=0.0)
"""A base whose loss is 0 where no reward was paid."""


def rule_of(**options: object) -> UpdateRule:
    return make_rule(DeepMutualLearningConfig(base=SILENT, **options))


def unpaid(rule: UpdateRule, peers: int, seed: int = 0) -> Group:
    """Return a group that gets no reward, so that the mutual terms are all there is."""
    group = make_group(rule, peers, seed)
    t = group.experience.transitions
    t = dataclasses.replace(t, rewards=jnp.zeros_like(t.rewards))
    return dataclasses.replace(
        group, experience=dataclasses.replace(group.experience, transitions=t)
    )


def log_policies(group: Group, temperature: float = 1.0) -> np.ndarray:
    """Return log probabilities ``[K, T, K B, A]``."""
    logits = group.outputs["logits"][:, :-1]
    return np.asarray(jax.nn.log_softmax(logits / temperature))


def shares(group: Group, k: int) -> np.ndarray:
    """Return what each transition counts in the loss of agent k: ``[T, K B]``."""
    t = drop_invalid(group.of(k).transitions)
    weight = np.asarray(t.valid * t.own * t.learn)
    return weight / weight.sum()


@pytest.mark.parametrize("over", ["mean", "sum"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_is_the_divergence_from_the_peers(over, direction):
    rule = rule_of(coefficient=0.7, over_peers=over, direction=direction, temperature=2)
    group = unpaid(rule, 3)
    log_pi = log_policies(group, 2.0)
    for k in range(3):
        terms = []
        for j in {0, 1, 2} - {k}:
            p, q = (j, k) if direction == "forward" else (k, j)
            terms.append((np.exp(log_pi[p]) * (log_pi[p] - log_pi[q])).sum(-1))
        divergence = sum(terms) / (2 if over == "mean" else 1)
        expected = 0.7 * 2.0**2 * (shares(group, k) * divergence).sum()
        loss, _ = loss_and_gradient(rule, group.of(k))
        np.testing.assert_allclose(loss, expected, rtol=1e-7)  # 1e-8 in the divisor


def test_peers_are_one_peer_with_their_mean_policy():
    """Section 5.5, line 1: the mean of divergences pulls to the mean of policies."""
    rule = rule_of(coefficient=0.7, temperature=1.5)
    group = unpaid(rule, 3)
    pi = np.exp(log_policies(group, 1.5))
    _, gradient = loss_and_gradient(rule, group.of(0))
    pull = 0.7 * 1.5 * shares(group, 0)[..., None] * (pi[0] - (pi[1] + pi[2]) / 2)
    np.testing.assert_allclose(gradient["logits"], pull, atol=1e-9)


@pytest.mark.parametrize("peer_gradient", [False, True])
def test_only_the_form_without_detaching_moves_the_peers(peer_gradient):
    rule = rule_of(coefficient=0.7, peer_gradient=peer_gradient, temperature=1.5)
    group = unpaid(rule, 3)
    log_pi = log_policies(group, 1.5)
    pi = np.exp(log_pi)
    total = joint_loss(rule, group)
    logits = group.outputs["logits"][:, :-1]
    gradient = jax.jit(jax.grad(lambda x: total({"logits": x})))(logits)
    expected = np.zeros_like(pi)
    for i in range(3):
        # The divergence on i's states counts per transition of i, whoever is moved.
        scale = 0.7 * 1.5 * shares(group, i)[..., None]
        peers = [j for j in range(3) if j != i]
        expected[i] += scale * (pi[i] - sum(pi[j] for j in peers) / 2)
        for j in peers if peer_gradient else ():
            ratio = log_pi[j] - log_pi[i]
            kl = (pi[j] * ratio).sum(-1, keepdims=True)
            expected[j] += scale / 2 * pi[j] * (ratio - kl)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_joint_gradient_equals_finite_differences(direction):
    rule = rule_of(peer_gradient=True, direction=direction, temperature=0.8)
    group = make_group(rule, 2)
    total = joint_loss(rule, group)
    logits = group.outputs["logits"][:, :-1]
    gradient = assert_finite_differences(lambda x: total({"logits": x}), logits)
    assert np.abs(gradient).max() > 0.01


def test_the_gradient_of_an_agent_equals_finite_differences():
    rule = rule_of(temperature=0.8, over_peers="sum")
    experience = make_group(rule, 3).of(1)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    assert_finite_differences(
        lambda x: agent_loss(rule, experience, targets, {"logits": x}, peers),
        own["logits"],
    )


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_identical_peers_feel_no_pull(direction):
    rule = rule_of(peer_gradient=True, direction=direction)
    group = unpaid(rule, 3)
    alike = jnp.broadcast_to(group.outputs["logits"][:1], group.outputs["logits"].shape)
    total = joint_loss(rule, group)
    gradient = jax.grad(lambda x: total({"logits": x}))(alike[:, :-1])
    np.testing.assert_allclose(gradient, 0, atol=1e-15)
    # Offsets of the logits are no difference.
    moved = alike.at[1].add(3.0)[:, :-1]
    np.testing.assert_allclose(total({"logits": moved}), 0, atol=1e-15)


def test_peers_are_evaluated_anew_at_every_gradient_step():
    rule = rule_of()
    experience = unpaid(rule, 2).of(0)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    before = agent_loss(rule, experience, targets, own, peers)
    assert (
        agent_loss(rule, experience, targets, own, {"logits": peers["logits"] / 2})
        != before
    )
    caught_up = {"logits": own["logits"][None]}
    after = agent_loss(rule, experience, targets, own, caught_up)
    np.testing.assert_allclose(after, 0, atol=1e-15)
    assert before > 0.01


def test_agreement_and_divergence_are_logged():
    rule = rule_of(coefficient=0.0, temperature=3.0)
    group = unpaid(rule, 3)
    experience = group.of(0)
    targets, _, _ = teach(rule, experience)
    own, peers = rows(experience)
    _, metrics = rule.loss(own, peers, targets, experience.transitions)
    log_pi = log_policies(group)
    kl = [(np.exp(log_pi[j]) * (log_pi[j] - log_pi[0])).sum(-1) for j in (1, 2)]
    np.testing.assert_allclose(metrics["peer_kl"], (kl[0] + kl[1]) / 2, rtol=1e-12)
    best = log_pi.argmax(-1)
    alike = [best[j] == best[0] for j in (1, 2)]
    np.testing.assert_array_equal(metrics["peer_agreement"], np.mean(alike, axis=0))


def test_probabilities_of_taken_actions_alone_are_refused():
    rule = rule_of()
    experience = make_group(rule, 2).of(0)
    targets, _, _ = teach(rule, experience)
    own, peers = ({"log_pi_a": x["logits"][..., 0]} for x in rows(experience))
    with pytest.raises(UserError, match=r"deep_mutual_learning: needs .*'logits'"):
        rule.loss(own, peers, targets, experience.transitions)


class NoPolicy(UpdateRule):
    """A base with a head `q` alone."""

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(heads=(Head("q", num_actions),))

    def targets(self, *arguments: object) -> tuple:
        raise NotImplementedError

    def loss(self, *arguments: object) -> tuple:
        raise NotImplementedError


def test_a_base_without_a_policy_is_refused():
    rule = DeepMutualLearning(DeepMutualLearningConfig(), NoPolicy())
    with pytest.raises(UserError, match="'logits', and NoPolicy has q"):
        rule.spec(3)
