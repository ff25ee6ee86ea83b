"""Groups: pooling, peers, and an update that equals the formula for each agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.agents.batch import minibatch, others
from metarl.config import ActorCriticConfig, OptimizerConfig, PolicyGradientConfig
from metarl.errors import UserError
from metarl.rules.actor_critic import ActorCritic
from metarl.rules.base import UpdateRule
from metarl.rules.disco import Disco
from metarl.rules.policy_gradient import PolicyGradient
from metarl.types import Network, Outputs, Params, Rollout, Transitions

SINGLE_AGENT_RULES = {
    "policy_gradient": PolicyGradient(PolicyGradientConfig()),
    "actor_critic": ActorCritic(ActorCriticConfig(num_bins=7, max_abs_value=3.0)),
    "disco": Disco(tiny.DISCO),
}
META_PARAMS = {"gain": 1.5, "bias": -0.25}

Update = Callable[
    [Params, AgentState, Rollout, jax.Array], tuple[AgentState, group.UpdateRecord]
]


def compiled(agent: Agent) -> Update:
    return jax.jit(
        lambda *args: group.update(agent, *args),
        compiler_options=tiny.QUICK,
    )


def new_agents(agent: Agent, seed: int, peers: int) -> AgentState:
    observations = jnp.zeros((1, tiny.OBSERVATION))
    new = jax.vmap(lambda k: agent.init(k, observations))
    keys = jax.random.split(jax.random.key(seed), peers)
    return jax.jit(new, compiler_options=tiny.QUICK)(keys)


def at(tree: object, index: int | slice) -> object:
    return jax.tree.map(lambda x: x[index], tree)


# --- What agents are shown --------------------------------------------------------


def test_every_agent_is_told_its_own_score_before_its_peers() -> None:
    agent = tiny.agent_for(tiny.Scaled(reads="peers"))
    states, rollouts = new_agents(agent, 0, 3), tiny.rollouts(0, 3)
    scores = jnp.array([1.0, jnp.nan, 3.0])
    scored = dataclasses.replace(rollouts, score=scores)
    meta_params = agent.rule.init_params(jax.random.key(0))
    update, key = compiled(agent), jax.random.key(1)
    _, record = update(meta_params, states, scored, key)
    order = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    np.testing.assert_array_equal(record.experience.scores, scores[order])
    # Scores that nobody keeps are none, and not zeros.
    _, record = update(meta_params, states, rollouts, key)
    assert record.experience.scores is None


def test_others_are_all_agents_but_oneself() -> None:
    assert others(1).shape == (1, 0)
    np.testing.assert_array_equal(others(2), [[1], [0]])
    np.testing.assert_array_equal(others(3), [[1, 2], [2, 0], [0, 1]])
    for k, row in enumerate(np.asarray(others(5))):
        assert sorted([*row, k]) == list(range(5))


@pytest.mark.parametrize("reads", ["own", "peers", "pool"])
def test_what_an_agent_is_told(x64: None, reads: str) -> None:
    agent = tiny.agent_for(tiny.Scaled(reads=reads))
    states = new_agents(agent, 0, 3)
    rollouts = tiny.rollouts(3, 3, batch=2)
    after, record = compiled(agent)(META_PARAMS, states, rollouts, jax.random.key(0))
    experience, pool = record.experience, tiny.pooled(rollouts)

    def logits(k: int, observations: jax.Array) -> np.ndarray:
        flat = observations.reshape(-1, tiny.OBSERVATION)
        found = agent.network.apply(at(states.params, k), flat)["logits"]
        return np.asarray(found).reshape(*observations.shape[:2], -1)

    for k in range(3):
        shown = pool if reads == "pool" else at(rollouts, k)
        is_own = np.repeat(np.arange(3) == k, 2) if reads == "pool" else True
        transitions = at(experience.transitions, k)
        np.testing.assert_array_equal(
            transitions.own, is_own & np.asarray(shown.transitions.valid)
        )
        np.testing.assert_array_equal(
            transitions.rewards,
            np.where(shown.transitions.valid, shown.transitions.rewards, 0),
        )
        np.testing.assert_allclose(
            experience.outputs["logits"][k],
            logits(k, shown.observations),
            rtol=1e-12,
            atol=1e-12,
        )
        peers = [] if reads == "own" else list(np.asarray(others(3)[k]))
        assert len(experience.peers.outputs["logits"][k]) == len(peers)
        for p, other in enumerate(peers):
            np.testing.assert_allclose(
                experience.peers.outputs["logits"][k, p],
                logits(other, shown.observations),
                rtol=1e-12,
                atol=1e-12,
            )
        np.testing.assert_array_equal(experience.peers.returns[k], shown.returns)
        np.testing.assert_array_equal(experience.peers.success[k], shown.success)
    assert experience.target_outputs == {}
    assert experience.peers.present.shape == (3, len(peers))
    assert np.all(experience.peers.present)
    # The group's age counts everyone's steps.
    np.testing.assert_array_equal(after.env_steps, np.full(3, 3 * 10))
    np.testing.assert_array_equal(after.agent_updates, np.ones(3))


# --- The update by the formula ----------------------------------------------------


def linear_network() -> Network:
    """Return a policy that is linear in the observation."""

    def init(key: jax.Array, observations: jax.Array) -> Params:
        shape = (observations.shape[-1], tiny.NUM_ACTIONS)
        return {"w": jax.random.normal(key, shape)}

    def apply(params: Params, observations: jax.Array) -> Outputs:
        return {"logits": observations @ params["w"]}

    return Network(init, apply)


def linear_agent(rule: UpdateRule, **optimizer: object) -> Agent:
    settings = {"learning_rate": 0.1, "weight_decay": 0.2, **optimizer}
    return Agent(rule, linear_network(), 3, OptimizerConfig(**settings), 1000)


def policy_gradient_by_hand(
    w: np.ndarray,
    observations: np.ndarray,
    transitions: Transitions,
    own: np.ndarray,
) -> np.ndarray:
    """Return d/dw of the mean of ``-weight log pi(a)``, one transition at a time."""
    grad, count = np.zeros_like(w), 0.0
    t = jax.tree.map(np.asarray, transitions)
    for index in np.ndindex(t.valid.shape):
        if not (t.valid[index] and own[index]):
            continue
        x = observations[index]
        pi = np.exp(x @ w - np.max(x @ w))
        pi /= np.sum(pi)
        weight = META_PARAMS["gain"] * t.rewards[index] + META_PARAMS["bias"]
        taken = np.eye(3)[t.actions[index]]
        grad += t.learn[index] * weight * np.outer(x, pi - taken)
        count += t.learn[index]
    return grad / (count + 1e-8)


class AdamByHand:
    """Adam with a clipped direction and decoupled decay, as the paper writes it."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config, self.count, self.mu, self.nu = config, 0, 0.0, 0.0

    def step(self, w: np.ndarray, grad: np.ndarray) -> np.ndarray:
        c, self.count = self.config, self.count + 1
        self.mu = c.b1 * self.mu + (1 - c.b1) * grad
        self.nu = c.b2 * self.nu + (1 - c.b2) * grad**2
        scale = np.sqrt(self.nu / (1 - c.b2**self.count)) + c.eps
        direction = self.mu / (1 - c.b1**self.count) / scale
        direction = np.clip(direction, -c.max_abs_update, c.max_abs_update)
        return w - c.learning_rate * (direction + c.weight_decay * w)


def test_a_group_of_one_is_the_single_agent_update(x64: None) -> None:
    agent = linear_agent(tiny.Scaled(), max_abs_update=0.7)
    states = new_agents(agent, 1, 1)
    update = compiled(agent)
    w, adam = np.asarray(states.params["w"][0]), AdamByHand(agent.optimizer)
    for n in range(3):
        rollouts = tiny.rollouts(10 + n, 1)
        states, record = update(META_PARAMS, states, rollouts, jax.random.key(n))
        own = np.ones((5, 3), bool)
        grad = policy_gradient_by_hand(
            w,
            np.asarray(rollouts.observations[0, :-1]),
            at(rollouts.transitions, 0),
            own,
        )
        w = adam.step(w, grad)
        np.testing.assert_allclose(states.params["w"][0], w, rtol=1e-12, atol=1e-12)
        norm = np.linalg.norm(grad)
        assert float(record.metrics["grad_norm"][0]) == pytest.approx(norm)
    assert int(states.rule_state["updates"][0]) == 3


@pytest.mark.parametrize("name", SINGLE_AGENT_RULES)
def test_peers_that_a_rule_ignores_are_independent_agents(x64: None, name: str) -> None:
    rule = SINGLE_AGENT_RULES[name]
    agent = tiny.agent_for(rule)
    meta_params = tiny.disco_params(0) if name == "disco" else {}
    together, alone = compiled(agent), compiled(agent)
    states = new_agents(agent, 2, 3)
    rollouts = tiny.rollouts(20, 3)
    after, record = together(meta_params, states, rollouts, jax.random.key(5))
    for k in range(3):
        one = slice(k, k + 1)
        # These rules draw nothing, so that another key changes nothing.
        single, single_record = alone(
            meta_params, at(states, one), at(rollouts, one), jax.random.key(6 + k)
        )
        # The age of a group counts all its agents' steps.
        single = dataclasses.replace(single, env_steps=after.env_steps[one])
        tiny.assert_close(at(after, one), single)
        tiny.assert_close(at(record.metrics, one), single_record.metrics)
        tiny.assert_close(at(record.targets, one), single_record.targets)
    # Whatever stands in the peers' data leaves no trace, to the bit.
    garbage = jax.tree.map(
        lambda ours, other: jnp.concatenate([ours[:1], other[1:]]),
        rollouts,
        tiny.rollouts(70, 3),
    )
    garbage = dataclasses.replace(
        garbage, observations=garbage.observations.at[1:].multiply(30.0)
    )
    other, _ = together(meta_params, states, garbage, jax.random.key(5))
    tiny.assert_same_bits(at(after, 0), at(other, 0))
    assert all(jnp.any(a[1] != b[1]) for a, b in tiny.pairs(after.params, other.params))


def test_a_group_is_differentiated_jointly(x64: None) -> None:
    """A term on fresh peer outputs also moves the peers, as nothing stops it."""
    agent = linear_agent(tiny.Scaled(peer_cost=0.4), weight_decay=0.0)
    states = new_agents(agent, 3, 2)
    rollouts = tiny.rollouts(30, 2)
    after, _ = compiled(agent)(META_PARAMS, states, rollouts, jax.random.key(0))
    batch = tiny.pooled(rollouts)
    flat = jax.tree.map(np.asarray, batch.transitions)

    def joint(w: jax.Array) -> jax.Array:
        total = 0.0
        for k in range(2):
            mine = (np.arange(6) // 3 == k) & flat.valid
            learn = mine * flat.learn
            log_pi = jax.nn.log_softmax(batch.observations[:-1] @ w[k])
            log_peer = jax.nn.log_softmax(batch.observations[:-1] @ w[1 - k])
            taken = jnp.sum(log_pi * np.eye(3)[flat.actions], axis=-1)
            weight = META_PARAMS["gain"] * flat.rewards + META_PARAMS["bias"]
            pull = jnp.sum(jnp.exp(log_peer) * (log_peer - log_pi), axis=-1)
            total += jnp.sum(learn * (0.4 * pull - weight * taken)) / (
                np.sum(learn) + 1e-8
            )
        return total

    grads = np.asarray(jax.grad(joint)(states.params["w"]))
    for k in range(2):
        adam = AdamByHand(agent.optimizer)
        expected = adam.step(np.asarray(states.params["w"][k]), grads[k])
        np.testing.assert_allclose(after.params["w"][k], expected, rtol=1e-10)
    # The gradient into the peer is what makes this differ from two separate losses.
    np.testing.assert_allclose(after.optimizer.mu["w"], 0.1 * grads, rtol=1e-10)


def test_invalid_transitions_reach_nothing(x64: None) -> None:
    agent = tiny.agent_for(SINGLE_AGENT_RULES["actor_critic"])
    update = compiled(agent)
    states, rollouts = new_agents(agent, 4, 2), tiny.rollouts(40, 2)
    after, record = update({}, states, rollouts, jax.random.key(0))
    other, other_record = update(
        {}, states, tiny.poison(rollouts, 3), jax.random.key(0)
    )
    tiny.assert_same_bits(after, other)
    tiny.assert_same_bits(record.metrics, other_record.metrics)


def test_learn_weighs_the_loss_alone(x64: None) -> None:
    agent = linear_agent(tiny.Scaled())
    states, rollouts = new_agents(agent, 5, 1), tiny.rollouts(50, 1)
    t = rollouts.transitions
    doubled = dataclasses.replace(
        rollouts, transitions=dataclasses.replace(t, learn=2 * t.learn)
    )
    update = compiled(agent)
    after, _ = update(META_PARAMS, states, rollouts, jax.random.key(0))
    same, _ = update(META_PARAMS, states, doubled, jax.random.key(0))
    # Normalised by its own sum: only the ratio of weights counts (but for 1e-8).
    np.testing.assert_allclose(
        same.optimizer.mu["w"], after.optimizer.mu["w"], rtol=1e-8
    )
    assert float(after.rule_state["reward"][0]) == pytest.approx(
        float(jnp.sum(jnp.where(t.valid, t.rewards, 0)))
    )


# --- Epochs and minibatches -------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "peers", "reads"),
    [
        ("trajectories", 1, "own"),
        ("transitions", 2, "own"),
        ("trajectories", 2, "peers"),
        ("transitions", 2, "pool"),
    ],
)
def test_epochs_and_minibatches_are_a_loop(
    x64: None, kind: str, peers: int, reads: str
) -> None:
    rule = tiny.Scaled(epochs=2, minibatches=3, minibatch_of=kind, reads=reads)
    agent = linear_agent(rule)
    states, rollouts = new_agents(agent, 6, peers), tiny.rollouts(60, peers)
    key = jax.random.key(8)
    after, _ = compiled(agent)(META_PARAMS, states, rollouts, key)

    # Every peer learns from the same trajectories, or transitions, of its own.
    batch = jax.tree.map(np.asarray, rollouts)
    observations, transitions = batch.observations[:, :-1], batch.transitions
    if kind == "transitions":
        observations, transitions = jax.tree.map(
            lambda x: x.reshape(peers, 1, -1, *x.shape[3:]), (observations, transitions)
        )
    size = observations.shape[2] // 3
    w = [np.asarray(x) for x in states.params["w"]]
    adams = [AdamByHand(agent.optimizer) for _ in range(peers)]
    _, minibatch_key = jax.random.split(key)
    for epoch_key in jax.random.split(minibatch_key, 2):
        order = np.asarray(jax.random.permutation(epoch_key, 3 * size))
        assert sorted(order) == list(range(3 * size))
        for chosen in order.reshape(3, size):
            for k in range(peers):
                part = jax.tree.map(lambda x, k=k, i=chosen: x[k][:, i], transitions)
                own = np.ones(part.valid.shape, bool)
                seen = observations[k][:, chosen]
                grad = policy_gradient_by_hand(w[k], seen, part, own)
                w[k] = adams[k].step(w[k], grad)
    for k in range(peers):
        np.testing.assert_allclose(after.params["w"][k], w[k], rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(after.optimizer.count, np.full(peers, 6))
    # Targets are computed once per batch, and the agent's age counts batches.
    np.testing.assert_array_equal(after.rule_state["updates"], np.ones(peers))
    np.testing.assert_array_equal(after.agent_updates, np.ones(peers))


def test_a_minibatch_is_of_the_same_transitions_of_every_owner() -> None:
    # Entry [k, t, 10 owner + b] is told by its digits.
    digits = np.arange(2)[:, None, None] * 1000 + np.arange(3)[:, None] * 100
    x = jnp.asarray(digits + np.concatenate([np.arange(4), 10 + np.arange(4)]))
    index = jnp.array([5, 2])  # t B + b: the transitions (1, 1) and (0, 2)
    (found,) = minibatch((x,), index, of="transitions", owners=2)
    np.testing.assert_array_equal(
        found, [[[101, 2, 111, 12]], [[1101, 1002, 1111, 1012]]]
    )
    (found,) = minibatch((x,), jnp.array([3]), of="trajectories", owners=2)
    assert found.shape == (2, 3, 2)
    np.testing.assert_array_equal(found[1, 2], [1203, 1213])
    # As of peers, where there are none.
    (found,) = minibatch((jnp.zeros((2, 3, 4, 0)),), index, of="transitions")
    assert found.shape == (2, 1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "minibatches", "message"),
    [
        ("trajectories", 2, "minibatches=2 must divide the batch's 3 trajectories"),
        ("transitions", 4, "minibatches=4 must divide the batch's 15 transitions"),
    ],
)
def test_minibatches_must_divide_the_batch(
    kind: str, minibatches: int, message: str
) -> None:
    agent = linear_agent(tiny.Scaled(minibatches=minibatches, minibatch_of=kind))
    states, rollouts = new_agents(agent, 7, 1), tiny.rollouts(70, 1)
    with pytest.raises(UserError, match=message):
        group.update(agent, META_PARAMS, states, rollouts, jax.random.key(0))
