"""A peer that fails is masked out: its garbage reaches nobody, and K shrinks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import group
from metarl.agents.agent import AgentState
from metarl.agents.lesson import PRESENT
from metarl.agents.peer_gradients import moves_peers
from metarl.numerics import take_action
from metarl.rules.base import Metrics, Targets, UpdateRule
from metarl.types import Outputs, Rollout, Transitions

META_PARAMS = {"gain": np.asarray(1.5), "bias": np.asarray(-0.25)}
FAILED = 1


@dataclasses.dataclass(frozen=True)
class Pooled(tiny.Scaled):
    """Learns from everybody's trajectories, and pulls."""

    reads: str = "pool"
    peer_cost: float = 0.4

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        pull, metrics = super().loss(outputs, peers, targets, transitions)
        log_pi = take_action(jax.nn.log_softmax(outputs["logits"]), transitions.actions)
        return pull - (~transitions.own) * targets["weight"] * log_pi, metrics


@dataclasses.dataclass(frozen=True)
class Stopped(tiny.Scaled):
    """Takes its peers for constants."""

    def loss(
        self, outputs: Outputs, peers: Outputs, *rest: object
    ) -> tuple[jax.Array, Metrics]:
        return super().loss(outputs, jax.lax.stop_gradient(peers), *rest)


RULES: dict[str, UpdateRule] = {
    "peers": tiny.Scaled(peer_cost=0.4),
    "pool": Pooled(),
    "minibatches": tiny.Scaled(peer_cost=0.4, epochs=2, minibatches=3),
}


@cache
def compiled(name: str) -> Callable:
    agent = tiny.agent_for(RULES[name])
    return jax.jit(
        lambda *inputs: group.update(agent, META_PARAMS, *inputs),
        compiler_options=tiny.QUICK,
    )


def at(tree: object, index: object) -> object:
    return jax.tree.map(lambda x: x[index], tree)


def healthy(name: str) -> tuple[AgentState, Rollout]:
    agent = tiny.agent_for(RULES[name])
    observations = jnp.zeros((1, tiny.OBSERVATION))
    keys = jax.random.split(jax.random.key(2), 3)
    states = jax.jit(jax.vmap(lambda k: agent.init(k, observations)))(keys)
    return states, tiny.rollouts(80, 3)


def spoiled(tree: object, value: float) -> object:
    """Return a tree of ``[K, ...]`` whose floats of the failed agent are ``value``."""

    def spoil(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x.at[FAILED].set(value)

    return jax.tree.map(spoil, tree)


def update(name: str, states: AgentState, rollouts: Rollout) -> tuple:
    return compiled(name)(states, rollouts, jax.random.key(5))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RULES)
# The second is finite, and what the network makes of it is not.
@pytest.mark.parametrize("value", [np.nan, 1e308])
def test_a_failed_peer_is_none(name: str, value: float) -> None:
    states, rollouts = healthy(name)
    bad = dataclasses.replace(states, params=spoiled(states.params, value))
    after, record = update(name, bad, rollouts)
    # Agent 0 has peers 1 and 2, agent 2 has 0 and 1.
    present = np.asarray(record.experience.peers.present)
    np.testing.assert_array_equal(present[[0, 2]], [[False, True], [True, False]])
    np.testing.assert_array_equal(record.metrics[PRESENT][jnp.array([0, 2])], [1, 1])
    if name == "pool":
        width = rollouts.returns.shape[1]
        columns = slice(FAILED * width, (FAILED + 1) * width)
        shown, told = record.experience.transitions, record.experience.peers
        for x in (shown.valid[:, :, columns], told.returns[:, columns]):
            assert not np.any(x[jnp.array([0, 2])])
    two = jnp.array([0, 2])
    alone, alone_record = update(name, at(states, two), at(rollouts, two))
    tiny.assert_close(at(after.params, two), alone.params)
    assert np.all(np.isfinite(alone.params["torso"]["w"]))
    np.testing.assert_array_equal(alone_record.metrics[PRESENT], [1, 1])
    # With all three it is another update: the test above compares something.
    all_of_them, _ = update(name, states, rollouts)
    assert np.any(all_of_them.params["torso"]["w"][0] != after.params["torso"]["w"][0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RULES)
def test_garbage_of_a_failed_peer_reaches_nobody(name: str) -> None:
    states, rollouts = healthy(name)
    found = []
    for seed, value in ((90, jnp.nan), (80, jnp.inf)):
        others = tiny.rollouts(seed, 3)
        mixed = jax.tree.map(lambda x, y: x.at[FAILED].set(y[FAILED]), rollouts, others)
        mixed = dataclasses.replace(
            mixed, observations=spoiled(mixed.observations, value)
        )
        bad = spoiled(states, value) if seed == 90 else states
        after, record = update(name, bad, mixed)
        two = jnp.array([0, 2])
        found.append(at((after, record.metrics), two))
    tiny.assert_same_bits(*found)
    for x in jax.tree.leaves(found[0]):
        assert np.all(np.isfinite(x))


@pytest.mark.usefixtures("x64")
def test_a_loss_that_is_not_finite_moves_no_peer() -> None:
    states, rollouts = healthy("peers")
    # What its peers predict on its observations is finite, its loss's gradient is not.
    learn = spoiled(rollouts.transitions.learn, jnp.nan)
    transitions = dataclasses.replace(rollouts.transitions, learn=learn)
    bad = dataclasses.replace(rollouts, transitions=transitions)
    after, _ = update("peers", states, bad)
    assert not np.any(np.isfinite(after.params["torso"]["w"][FAILED]))
    for x in jax.tree.leaves(at(after.params, jnp.array([0, 2]))):
        assert np.all(np.isfinite(x))


# --- No wasted work ---------------------------------------------------------------


def products(rule: UpdateRule) -> int:
    """Return how many matrix products an update of two agents has."""
    agent = tiny.agent_for(rule)
    observations = jnp.zeros((1, tiny.OBSERVATION))
    keys = jax.random.split(jax.random.key(2), 2)
    states = jax.eval_shape(jax.vmap(lambda k: agent.init(k, observations)), keys)
    text = str(
        jax.make_jaxpr(lambda *x: group.update(agent, META_PARAMS, *x))(
            states, tiny.rollouts(0, 2), jax.random.key(0)
        )
    )
    return text.count("dot_general")


def test_no_pass_goes_where_the_rule_does_not_look() -> None:
    # Two layers: two products forward; backward two for weights and one for inputs.
    own, forward, backward = 5, 2, 3
    assert products(tiny.Scaled()) == own
    assert products(Stopped(peer_cost=0.4)) == own + forward
    assert products(tiny.Scaled(peer_cost=0.4)) == own + forward + backward
    assert products(Pooled()) == own  # on longer batches


def test_a_rule_tells_by_its_loss_whether_it_moves_peers() -> None:
    assert moves_peers(tiny.Scaled(peer_cost=0.4), 3)
    assert not moves_peers(Stopped(peer_cost=0.4), 3)
    assert not tiny.agent_for(tiny.Scaled()).moves_peers
