"""Mutual Q-learning against its closed forms, on small arrays and in a small group."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from contract.experience import make_experience

from metarl.agents import group
from metarl.config import (
    CategoricalValuesConfig,
    MutualQConfig,
    PolicyAgreementConfig,
    PPOConfig,
    QLearningConfig,
    ScalarValuesConfig,
)
from metarl.errors import UserError
from metarl.numerics import kl_divergence, take_action
from metarl.rules import make_rule
from metarl.rules.base import Targets
from metarl.rules.mutual.mutual_q import MutualQ
from metarl.rules.q_learning import QLearning
from metarl.types import Experience, Outputs, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

CATEGORICAL = CategoricalValuesConfig(num_bins=7, max_abs_value=3.0)
HUBER = ScalarValuesConfig(loss="huber")
ACTIONS = 3


def rule_with(values: object = None, **options: object) -> MutualQ:
    base = QLearningConfig(**({} if values is None else {"values": values}))
    config = MutualQConfig(base=base, **{"active_fraction": 1.0, **options})
    return MutualQ(config, QLearning(base))


def batch(
    rule: MutualQ, seed: int = 0, *, peers: int = 2, scores: list | None = None
) -> Experience:
    """Return a random batch whose last trajectory is a peer's."""
    experience = make_experience(
        jax.random.key(seed), rule, T=3, B=3, A=ACTIONS, P=peers
    )
    transitions = experience.transitions
    own = transitions.own.at[:, 2].set(False)
    return dataclasses.replace(
        experience,
        transitions=drop_invalid(dataclasses.replace(transitions, own=own)),
        scores=None if scores is None else jnp.array(scores),
    )


def targets_of(rule: MutualQ, experience: Experience) -> Targets:
    state = rule.init_state()
    return rule.targets({}, state, experience, jax.random.key(0))[0]


def rows(experience: Experience) -> tuple[Outputs, Outputs]:
    own = {k: x[:-1] for k, x in experience.outputs.items()}
    return own, {k: x[:, :-1] for k, x in experience.peers.outputs.items()}


def loss_of(rule: MutualQ, experience: Experience, own: Outputs | None = None):
    """Return the loss ``[T, B]``, zero where a transition does not exist."""
    targets, (fresh, peers) = targets_of(rule, experience), rows(experience)
    loss, _ = rule.loss(own or fresh, peers, targets, experience.transitions)
    return jnp.where(experience.transitions.valid, loss, 0)


def gradient_of(rule: MutualQ, experience: Experience) -> jax.Array:
    """Return the summed loss's gradient for ``q [T, B, A, size]``."""

    def total(own: Outputs) -> jax.Array:
        return jnp.sum(loss_of(rule, experience, own))

    return jax.jit(jax.grad(total))(rows(experience)[0])["q"]


def weights_of(
    rule: MutualQ,
    scores: list[float] | None,
    *,
    present: list[bool] | None = None,
    fraction: float = 0.0,
) -> np.ndarray:
    peers = 2 if scores is None else len(scores) - 1
    experience = batch(rule, peers=peers, scores=scores)
    there = jnp.ones(peers, bool) if present is None else jnp.array(present)
    experience = dataclasses.replace(
        experience,
        peers=dataclasses.replace(experience.peers, present=there),
        clock=dataclasses.replace(
            experience.clock, lifetime_fraction=jnp.asarray(fraction, float)
        ),
    )
    return np.asarray(rule.weights(experience))


# --- Weights ------------------------------------------------------------------------


def test_weights_are_scores_over_ones_own_for_the_first_part_of_a_life():
    rule = rule_with(coefficient=5.0, active_fraction=0.2)
    scores = [100.0, 50.0, 200.0]
    expected = [5 * 0.5 / 2, 5 * 2.0 / 2]
    np.testing.assert_allclose(weights_of(rule, scores), expected)
    np.testing.assert_allclose(weights_of(rule, scores, fraction=0.19), expected)
    np.testing.assert_array_equal(weights_of(rule, scores, fraction=0.2), [0, 0])
    # Who is not there is not counted either; near 0 the ratio is bounded.
    there = weights_of(rule, scores, present=[False, True])
    np.testing.assert_allclose(there, [0, 10])
    bounded = weights_of(rule, [1e-3, 1.0])
    np.testing.assert_allclose(bounded, [500])


def test_scores_that_are_not_positive_are_compared_by_rank():
    rule = rule_with(coefficient=1.0)
    # Ranks 2, 1, 3, 4 of four; of equal ones the mean.
    found = weights_of(rule, [0.0, -5.0, 2.0, 9.0])
    np.testing.assert_allclose(found, np.array([1 / 2, 3 / 2, 4 / 2]) / 3)
    found = weights_of(rule, [-1.0, -1.0, 2.0])
    np.testing.assert_allclose(found, np.array([1, 3 / 1.5]) / 2)
    by_rank = rule_with(coefficient=1.0, weighting="rank")
    np.testing.assert_allclose(weights_of(by_rank, [10.0, 1000.0]), [2])


def test_a_softmax_of_scores_forgets_their_scale():
    rule = rule_with(coefficient=1.0, weighting="softmax")
    # Two scores are one deviation above and below their mean.
    expected = 2 / (1 + np.exp(-2.0))
    for scores in ([1.0, 3.0], [-200.0, 0.0]):
        np.testing.assert_allclose(weights_of(rule, scores), [expected])
    np.testing.assert_allclose(weights_of(rule, [3.0, 1.0]), [2 - expected])


@pytest.mark.parametrize("weighting", ["proportional", "rank", "softmax", "constant"])
def test_equal_and_unknown_scores_weigh_one(weighting):
    rule = rule_with(coefficient=3.0, weighting=weighting)
    for scores in ([2.0, 2.0, 2.0], [-2.0, -2.0, -2.0], None, [np.nan, 1.0, 2.0]):
        np.testing.assert_allclose(weights_of(rule, scores), [1.5, 1.5])
    # A peer without a score, beside one with: it alone is taken as equal.
    found = weights_of(rule, [1.0, np.nan, 2.0])
    assert found[0] == pytest.approx(1.5)
    assert (found[1] > 1.6) == (weighting != "constant")


# --- The loss -----------------------------------------------------------------------


def test_the_gradient_of_numbers_is_the_pull_to_the_weighted_mean():
    rule = rule_with(coefficient=4.0)
    experience = batch(rule, scores=[10.0, 5.0, 20.0])
    own, peers = (x["q"][..., 0] for x in rows(experience))
    td = np.asarray(targets_of(rule, experience)["q"][..., 0])
    actions = experience.transitions.actions
    taken = jax.nn.one_hot(actions, ACTIONS)
    expected = taken * (take_action(own, actions) - td)[..., None]
    for weight, theirs in zip([4 * 0.5 / 2, 4 * 2.0 / 2], peers, strict=True):
        expected += weight * (own - theirs) / ACTIONS
    mask = experience.transitions.own & experience.transitions.valid
    gradient = gradient_of(rule, experience)[..., 0]
    np.testing.assert_allclose(gradient, expected * mask[..., None], atol=1e-12)


def test_the_gradient_of_distributions_is_that_of_one_target_and_weight():
    """Terms add: the target of the action taken is (q_TD + w q_bar) / (1 + w)."""
    rule = rule_with(CATEGORICAL, coefficient=6.0)
    experience = batch(rule, scores=[10.0, 10.0, 10.0])
    own, peers = (x["q"] for x in rows(experience))
    q_td = targets_of(rule, experience)["q"]
    q_bar = jnp.mean(jax.nn.softmax(peers), axis=0)
    w = 6.0 / ACTIONS
    is_taken = jax.nn.one_hot(experience.transitions.actions, ACTIONS)[..., None]
    target = (is_taken * q_td[:, :, None] + w * q_bar) / (is_taken + w)
    expected = (is_taken + w) * (jax.nn.softmax(own) - target)
    mask = experience.transitions.own & experience.transitions.valid
    gradient = gradient_of(rule, experience)
    np.testing.assert_allclose(gradient, expected * mask[..., None, None], atol=1e-12)


@pytest.mark.parametrize("only_where_greedy_differs", [False, True])
def test_the_gradient_of_policies_is_that_of_a_divergence(only_where_greedy_differs):
    agreement = PolicyAgreementConfig(
        temperature=0.5, only_where_greedy_differs=only_where_greedy_differs
    )
    rule = rule_with(coefficient=4.0, agreement=agreement)
    experience = batch(rule, scores=[10.0, 5.0, 20.0])
    own, peers = (x["q"][..., 0] for x in rows(experience))
    q_bar = (peers[0] + 4 * peers[1]) / 5
    pull = jax.nn.softmax(own / 0.5) - jax.nn.softmax(q_bar / 0.5)
    mask = experience.transitions.own & experience.transitions.valid
    if only_where_greedy_differs:
        differ = jnp.argmax(own, axis=-1) != jnp.argmax(q_bar, axis=-1)
        assert jnp.any(mask & differ)
        assert jnp.any(mask & ~differ)
        mask &= differ
    expected = (4 * 2.5 / 2) * pull / 0.5 * mask[..., None]
    alone = gradient_of(rule_with(coefficient=0.0), experience)
    gradient = (gradient_of(rule, experience) - alone)[..., 0]
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_policies_of_distributions_are_those_of_the_peers_mean_values():
    agreement = PolicyAgreementConfig()
    rule = rule_with(CATEGORICAL, coefficient=1.0, agreement=agreement)
    experience = batch(rule, peers=1)
    own, peers = rows(experience)
    theirs = rule.base.action_values({"q": peers["q"][0]})
    expected = kl_divergence(theirs, rule.base.action_values(own))
    targets = targets_of(rule, experience)
    _, parts = rule.loss(own, peers, targets, experience.transitions)
    np.testing.assert_allclose(parts["mutual_loss"], expected, rtol=1e-9)


@pytest.mark.parametrize("values", [ScalarValuesConfig(), HUBER, CATEGORICAL])
def test_the_gradient_equals_finite_differences(values):
    rule = rule_with(values, coefficient=2.0, share_transitions=True)
    experience = batch(rule, seed=5, scores=[1.0, 3.0, -1.0])
    own, peers = rows(experience)
    targets = targets_of(rule, experience)
    valid = experience.transitions.valid

    @jax.jit
    def loss(q: jax.Array, peers: Outputs) -> jax.Array:
        loss, _ = rule.loss({"q": q}, peers, targets, experience.transitions)
        return jnp.sum(jnp.where(valid, loss, 0))

    q = own["q"]
    gradient, to_peers = jax.grad(loss, argnums=(0, 1))(q, peers)
    for index in list(np.ndindex(*q.shape))[::5]:
        plus, minus = (loss(q.at[index].add(e), peers) for e in (1e-6, -1e-6))
        difference = float(plus - minus) / 2e-6
        assert float(gradient[index]) == pytest.approx(difference, abs=1e-7)
    assert not np.any(to_peers["q"])  # into the learner alone
    assert np.abs(gradient[:, 2]).max() > 0  # of the peer's trajectory


def test_shared_transitions_count_as_much_together_as_own_ones_would():
    rule = rule_with(coefficient=0.0, share_transitions=True)
    experience = batch(rule, peers=2)
    everyone = dataclasses.replace(
        experience.transitions, own=jnp.ones_like(experience.transitions.own)
    )
    own, peers = rows(experience)
    td_loss, _ = rule.base.loss(own, peers, targets_of(rule, experience), everyone)
    expected = jnp.where(everyone.valid, td_loss / 3, 0)
    np.testing.assert_allclose(loss_of(rule, experience), expected, rtol=1e-12)
    assert rule.spec(ACTIONS).reads == "pool"
    assert rule_with().spec(ACTIONS).reads == "peers"


@pytest.mark.parametrize("values", [ScalarValuesConfig(), CATEGORICAL])
def test_identical_peers_feel_no_pull(values):
    rule = rule_with(values, coefficient=100.0)
    experience = batch(rule, scores=[1.0, 2.0, 3.0])
    same = {
        k: jnp.broadcast_to(x, (2, *x.shape)) for k, x in experience.outputs.items()
    }
    experience = dataclasses.replace(
        experience, peers=dataclasses.replace(experience.peers, outputs=same)
    )
    alone = rule_with(values, coefficient=0.0)
    difference = gradient_of(rule, experience) - gradient_of(alone, experience)
    np.testing.assert_allclose(difference, 0, atol=1e-12)
    loss = loss_of(rule, experience) - loss_of(alone, experience)
    np.testing.assert_allclose(loss, 0, atol=1e-12)


def test_the_order_of_peers_does_not_matter():
    rule = rule_with(coefficient=2.0)
    experience = batch(rule, peers=3, scores=[1.0, 2.0, 3.0, 4.0])
    order = jnp.array([2, 0, 1])
    assert experience.scores is not None
    turned = dataclasses.replace(
        experience,
        peers=dataclasses.replace(
            experience.peers,
            outputs={k: x[order] for k, x in experience.peers.outputs.items()},
        ),
        scores=jnp.concatenate([experience.scores[:1], experience.scores[1:][order]]),
    )
    np.testing.assert_allclose(
        gradient_of(rule, turned), gradient_of(rule, experience), atol=1e-12
    )


@pytest.mark.parametrize("values", [ScalarValuesConfig(), CATEGORICAL])
@pytest.mark.parametrize("peers", [0, 2])
def test_without_a_coefficient_or_a_peer_it_is_the_base(values, peers):
    rule = rule_with(values, coefficient=0.0 if peers else 5.0)
    experience = batch(rule, peers=peers, scores=[1.0, 2.0, 3.0][: peers + 1])
    garbage = dataclasses.replace(
        experience.peers,
        outputs={k: x * jnp.nan for k, x in experience.peers.outputs.items()},
    )
    experience = dataclasses.replace(experience, peers=garbage)
    base_targets, _, _ = rule.base.targets({}, {}, experience, jax.random.key(0))
    own, _ = rows(experience)

    def base(own: Outputs) -> jax.Array:
        loss, _ = rule.base.loss(own, {}, base_targets, experience.transitions)
        return jnp.sum(jnp.where(experience.transitions.valid, loss, 0))

    expected = jax.jit(jax.grad(base))(own)["q"]
    np.testing.assert_array_equal(gradient_of(rule, experience), expected)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_distance_is_to_nobody_where_nobody_is_listened_to(fraction):
    rule = rule_with(active_fraction=fraction)
    experience = batch(rule)
    own, peers = rows(experience)
    targets = targets_of(rule, experience)
    _, metrics = rule.loss(own, peers, targets, experience.transitions)
    assert np.all(np.asarray(metrics["mutual_loss"]) > 0) == (fraction > 0)
    assert np.any(metrics["mutual_loss"]) == (fraction > 0)


# --- In a group ---------------------------------------------------------------------


def test_scores_of_a_group_reach_every_agent_with_its_own_first():
    rule = rule_with(coefficient=1.0)
    agent = tiny.agent_for(rule, learning_rate=1e-2)
    zeros = jnp.zeros((1, tiny.OBSERVATION))
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda k: agent.init(k, zeros))(keys)
    rollouts = dataclasses.replace(
        tiny.rollouts(0, 3), score=jnp.array([1.0, 2.0, 4.0])
    )
    run = jax.jit(lambda r: group.update(agent, {}, states, r, jax.random.key(1)))
    _, record = run(rollouts)
    # (2 + 4) / 2, (1 + 4) / 2 over 2, and (1 + 2) / 2 over 4.
    np.testing.assert_allclose(record.metrics["peer_weight"], [3, 1.25, 0.375])
    assert np.all(record.metrics["mutual_loss"] > 0)
    assert np.all(np.isfinite(record.metrics["peer_agreement"]))


def test_only_q_learning_is_a_base():
    config = MutualQConfig()
    assert make_rule(config) == MutualQ(config, QLearning(QLearningConfig()))
    with pytest.raises(UserError, match=r"^mutual_q: its base is PPO \(allowed: q_le"):
        MutualQ(config, make_rule(PPOConfig()))
