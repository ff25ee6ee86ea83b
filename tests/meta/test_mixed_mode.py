"""Mixed mode gives reverse mode's meta-gradient, to rounding, and does less for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import group
from metarl.agents.outputs import evaluate, evaluate_target
from metarl.meta import linear_maps
from metarl.meta.estimators import ReverseMode
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.mixed_mode import MixedMode
from metarl.numerics import take_action
from metarl.rules.base import Metrics, TargetNetwork, Targets, UpdateRule
from metarl.rules.disco import Disco
from metarl.types import Experience, Params


@dataclasses.dataclass(frozen=True)
class Imitation(tiny.Scaled):
    """Pays for what the peers would have done too; open to the meta-gradient.

    So the targets of one agent depend on the parameters of the others.
    """

    def targets(
        self,
        meta_params: Params,
        rule_state: Params,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Params, Metrics]:
        targets, *rest = super().targets(meta_params, rule_state, experience, key)
        t, peers = experience.transitions, experience.peers
        log_pi = jax.nn.log_softmax(peers.outputs["logits"][:, :-1])  # [P, T, B, A]
        actions = jnp.broadcast_to(t.actions, log_pi.shape[:-1])
        likely = jnp.sum(take_action(log_pi, actions), axis=0)
        return {"weight": targets["weight"] + meta_params["gain"] * likely}, *rest


DISCO = Disco(tiny.DISCO)
PEERS = Imitation(peer_cost=0.3)
POOL = Imitation(peer_cost=0.3, reads="pool")
PULL = tiny.Scaled(peer_cost=0.3, target_network=TargetNetwork("copy", every=2))
SCALED = {"gain": np.asarray(1.5), "bias": np.asarray(-0.25)}


@cache
def loop_for(rule: UpdateRule) -> InnerLoop:
    return tiny.inner_loop_for(tiny.agent_for(rule))


def window_for(rule: UpdateRule, *, updates: int, peers: int) -> Window:
    """Return one group's window, its agents in the middle of their lives.

    Its rollouts hold terminal, truncated and invalid transitions.
    """
    window = tiny.window_for(loop_for(rule), 3, updates=updates, peers=peers)
    window = dataclasses.replace(window, agents=tiny.warm(window.agents, 5))
    return jax.tree.map(lambda x: x[None], window)


@cache
def params_of(rule: UpdateRule) -> Params:
    return jax.device_get(tiny.disco_params(7)) if rule is DISCO else SCALED


def as_type(dtype: np.dtype, tree: object) -> object:
    """Return ``tree`` with its numbers of floating point as ``dtype``."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


@cache
def gradient_of(kind: type, rule: UpdateRule, remat: bool) -> Callable:
    loop = dataclasses.replace(loop_for(rule), remat=remat)
    return jax.jit(kind(loop).gradient, compiler_options=tiny.QUICK)


def compute(
    kind: type, rule: UpdateRule, window: Window, *, remat: bool = True
) -> tuple:
    params = as_type(window.validation.returns.dtype, params_of(rule))
    return jax.device_get(gradient_of(kind, rule, remat)(params, window))


def distance(found: object, expected: object) -> float:
    """Return the relative L2 distance of two trees, taken as one vector each."""
    found, expected = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("rule", "updates", "peers", "remat"),
    [
        (DISCO, 4, 1, True),
        (DISCO, 4, 1, False),
        (PULL, 1, 1, True),
        (PULL, 4, 2, True),
        (PEERS, 4, 3, False),
        (POOL, 4, 2, True),
    ],
    ids=[
        "disco",
        "disco, kept",
        "one update",
        "peers and copied target",
        "targets read peers, no target network",
        "the pool",
    ],
)
def test_it_equals_reverse_mode(
    rule: UpdateRule, updates: int, peers: int, remat: bool, x64: None
) -> None:
    window = window_for(rule, updates=updates, peers=peers)
    grads, values, metrics = compute(MixedMode, rule, window, remat=remat)
    expected, *rest = compute(ReverseMode, rule, window)
    assert distance(grads, expected) < 1e-10
    for found, wanted in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-14)
    assert sum(np.linalg.norm(x) for x in jax.tree.leaves(expected)) > 1e-4
    tiny.assert_close((values, metrics), tuple(rest))


def test_what_peers_do_in_each_others_targets_counts(x64: None) -> None:
    # The rule above would compare nothing if its term had no part in the gradient.
    window = window_for(PEERS, updates=4, peers=3)
    grads, *_ = compute(ReverseMode, PEERS, window)
    constant, *_ = compute(ReverseMode, tiny.Scaled(peer_cost=0.3), window)
    assert distance(grads, constant) > 0.1


def test_groups_differentiated_together_are_those_apart(x64: None) -> None:
    # Five groups, three and two at once.
    window = tiny.stack(
        [tiny.window_for(loop_for(PULL), g, updates=2, peers=2) for g in range(5)]
    )
    gradient = partial(jax.jit, compiler_options=tiny.QUICK)
    together, expected = (
        gradient(kind(loop_for(PULL), chunk=chunk).gradient)(SCALED, window)
        for kind, chunk in ((MixedMode, 3), (ReverseMode, 1))
    )
    assert distance(together[0], expected[0]) < 1e-10
    tiny.assert_close(together[1:], expected[1:])
    # Each group has a gradient of its own.
    assert np.ptp(expected[0]["gain"]) > 1e-3


def test_in_float32_it_is_as_near_to_float64_as_reverse_mode(x64: None) -> None:
    single = as_type(np.float32, window_for(DISCO, updates=4, peers=1))
    exact, *_ = compute(ReverseMode, DISCO, as_type(np.float64, single))
    with jax.enable_x64(False):
        errors = {
            kind: distance(compute(kind, DISCO, single)[0], exact)
            for kind in (MixedMode, ReverseMode)
        }
    assert 0 < errors[MixedMode] < 2 * errors[ReverseMode] < 1e-3


def test_the_updates_are_the_agents_own(x64: None) -> None:
    # What `group.update` did while acting, and what is differentiated, is one thing.
    loop = loop_for(DISCO)
    window = jax.tree.map(lambda x: x[0], window_for(DISCO, updates=1, peers=2))
    params = tiny.disco_params(7)
    rollouts, key = jax.tree.map(lambda x: x[0], (window.rollouts, window.keys))

    @partial(jax.jit, compiler_options=tiny.QUICK)
    def both(params: Params, agents: object, rollouts: object, key: object) -> tuple:
        acted, acted_record = group.update(loop.agent, params, agents, rollouts, key)
        found, record, _ = MixedMode(loop)._update(params, agents, rollouts, key)
        return (found, record), (acted, acted_record)

    found, expected = both(params, window.agents, rollouts, key)
    tiny.assert_close(found, expected)


def test_heads_that_the_rule_stops_are_not_gone_back_through(x64: None) -> None:
    loop = loop_for(DISCO)
    window = jax.tree.map(lambda x: x[0], window_for(DISCO, updates=1, peers=1))
    rollouts, key = jax.tree.map(lambda x: x[0], (window.rollouts, window.keys))
    agents = window.agents
    batch = MixedMode(loop)._shown(agents, rollouts)
    function = MixedMode(loop)._lesson_of(agents, batch, key)
    outputs, read = evaluate(loop.agent, agents.params, batch.rows)
    target = evaluate_target(loop.agent, agents.target_params, batch.rows)
    arguments = (
        tiny.disco_params(7),
        linear_maps.floats(agents.rule_state),
        outputs,
        target,
        read,
    )
    # Policies and values are inputs of the meta-network, no paths for its gradient.
    assert linear_maps.open_heads(function, arguments) == (
        {".own['y']", ".own['z']"},
        {"['y']", "['z']"},
    )


def test_memory_grows_with_the_number_of_updates_by_their_states_alone() -> None:
    params, sizes = as_type(np.float32, params_of(PULL)), {}
    for updates in (2, 34):
        window = window_for(PULL, updates=updates, peers=1)
        program = gradient_of(MixedMode, PULL, True).lower(params, window).compile()
        sizes[updates] = program.memory_analysis().temp_size_in_bytes
    agents = window.agents
    state = sum(x.nbytes for x in jax.tree.leaves((agents, agents.params)))
    # Of each update the agents before it, its gradient and a few numbers to log; of
    # what it computed, several times that, nothing.
    assert sizes[34] - sizes[2] < 32 * 2 * state
