"""The unrolled updates: the acted ones, rematerialised or not, and a closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import population
from metarl.agents.agent import Agent
from metarl.config import (
    ActorCriticConfig,
    OptimizerConfig,
    PolicyGradientConfig,
    RegularizerConfig,
    ValueFunctionConfig,
)
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.objective import ValueFunction
from metarl.numerics import AdamState
from metarl.rules.actor_critic import ActorCritic
from metarl.rules.base import (
    Head,
    Metrics,
    RuleSpec,
    TargetNetwork,
    Targets,
    UpdateRule,
)
from metarl.rules.disco import Disco
from metarl.rules.policy_gradient import PolicyGradient
from metarl.types import (
    Experience,
    Network,
    Outputs,
    Params,
    Transitions,
    drop_invalid,
)

RULES = {
    "scaled": tiny.Scaled(peer_cost=0.3, target_network=TargetNetwork("copy", every=2)),
    "minibatches": tiny.Scaled(epochs=2, minibatches=3),
    "policy_gradient": PolicyGradient(PolicyGradientConfig()),
    "actor_critic": ActorCritic(ActorCriticConfig(num_bins=7, max_abs_value=3.0)),
    "disco": Disco(tiny.DISCO),
}


@pytest.mark.parametrize("name", RULES)
def test_the_unrolled_agents_are_the_acted_ones(x64: None, name: str) -> None:
    rule = RULES[name]
    loop = tiny.inner_loop_for(tiny.agent_for(rule))
    window = tiny.window_for(loop, 4, updates=3, peers=2)
    meta_params = (
        tiny.disco_params(0) if name == "disco" else rule.init_params(jax.random.key(0))
    )
    end, _ = jax.jit(loop.unroll, compiler_options=tiny.QUICK)(meta_params, window)
    unrolled = end.agents
    step = jax.jit(
        lambda *x: population.update(loop.agent, *x, chunk=1)[0],
        compiler_options=tiny.QUICK,
    )
    as_population = jax.tree.map(lambda x: x[None], window)
    acted = as_population.agents
    for n in range(3):
        rollouts = jax.tree.map(lambda x, n=n: x[:, n], as_population.rollouts)
        acted = step(meta_params, acted, rollouts, as_population.keys[:, n])
    tiny.assert_close(jax.tree.map(lambda x: x[0], acted), unrolled)
    np.testing.assert_array_equal(unrolled.agent_updates, [3, 3])
    moved = [
        jnp.any(a != b) for a, b in tiny.pairs(unrolled.params, window.agents.params)
    ]
    assert all(moved)


@pytest.mark.parametrize(
    ("name", "updates"),
    [("scaled", 1), ("scaled", 2), ("scaled", 3), ("minibatches", 2)],
)
def test_recomputing_changes_nothing(x64: None, name: str, updates: int) -> None:
    loop = tiny.inner_loop_for(tiny.agent_for(RULES[name]), remat=True)
    window = tiny.window_for(loop, 5, updates=updates, peers=2)
    meta_params = {"gain": jnp.asarray(1.5), "bias": jnp.asarray(-0.25)}

    def results(loop: InnerLoop) -> object:
        gradient = jax.value_and_grad(loop.loss, has_aux=True)
        return jax.jit(gradient, compiler_options=tiny.QUICK)(meta_params, window)

    with_remat = results(loop)
    tiny.assert_close(with_remat, results(dataclasses.replace(loop, remat=False)))
    assert abs(float(with_remat[1]["gain"])) > 1e-4


# --- A rule whose meta-gradient is known ------------------------------------------


RATE, ETA, START = 0.1, -0.4, 0.7


@dataclasses.dataclass(frozen=True)
class PullToEta(UpdateRule):
    """Every transition pulls the agent's one parameter u towards eta."""

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(heads=(Head("logits", num_actions),))

    def targets(
        self,
        meta_params: Params,
        rule_state: Params,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Params, Metrics]:
        shape = experience.transitions.rewards.shape
        targets = {"u": jnp.broadcast_to(meta_params["eta"], shape)}
        return targets, rule_state, {}

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        error = outputs["logits"][..., 0] - targets["u"]
        return 0.5 * jnp.square(error) * transitions.own, {}


def one_parameter_network() -> Network:
    """Return the policy with logits ``[u, 0, 0]``, whatever is observed."""

    def apply(params: Params, observations: jax.Array) -> Outputs:
        first = jnp.zeros((observations.shape[0], 3)).at[:, 0].set(1.0)
        return {"logits": first * params["u"]}

    def init(key: jax.Array, observations: jax.Array) -> Params:
        return {"u": jnp.asarray(START)}

    return Network(init, apply)


def closed_form_case(updates: int) -> tuple[InnerLoop, Window]:
    agent = Agent(
        PullToEta(),
        one_parameter_network(),
        num_actions=3,
        optimizer=OptimizerConfig(learning_rate=RATE, max_abs_update=10.0),
        lifetime_env_steps=1000,
    )
    loop = InnerLoop(
        agent,
        ValueFunction(tiny.value_network(), ValueFunctionConfig()),
        RegularizerConfig(policy_entropy=0.0),
    )
    return loop, tiny.window_for(loop, 6, updates=updates, peers=1)


def outer_slope(loop: InnerLoop, window: Window, u: float, values: object) -> float:
    """Return d(outer loss)/du: the mean of ``-(1[a = 0] - pi_0) advantage``."""
    rollout = jax.tree.map(lambda x: x[0], window.validation)
    values = jax.tree.map(lambda x: x[0], values)
    t = rollout.transitions
    logits = jnp.zeros((t.rewards.shape[0] + 1, 3, 3)).at[..., 0].set(u)
    advantages, _ = loop.value_function.advantages(
        values, rollout.observations, drop_invalid(t), logits
    )
    pi_0 = np.exp(u) / (np.exp(u) + 2)
    valid = np.asarray(t.valid)
    slopes = -((np.asarray(t.actions) == 0) - pi_0) * np.asarray(advantages.normalized)
    return float(np.mean(slopes[valid]))


def share(window: Window, n: int) -> float:
    """Return how much of the pull is left by the epsilon of the normaliser."""
    t = jax.tree.map(lambda x: np.asarray(x[n]), window.rollouts.transitions)
    weight = np.sum(t.learn * t.valid)
    return float(weight / (weight + 1e-8))


def value_and_gradient(loop: InnerLoop, window: Window) -> tuple:
    gradient: Callable = jax.value_and_grad(loop.loss, has_aux=True)
    (_, (agents, values, _)), grads = jax.jit(gradient, compiler_options=tiny.QUICK)(
        {"eta": jnp.asarray(ETA)}, window
    )
    return float(agents.params["u"][0]), values, float(grads["eta"])


@pytest.mark.parametrize("updates", [1, 3])
def test_closed_form_with_plain_gradient_descent(
    x64: None, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    def sgd(grads: Params, state: AdamState, **_: float) -> tuple[Params, AdamState]:
        return grads, state

    monkeypatch.setattr("metarl.agents.agent.adam_direction", sgd)
    loop, window = closed_form_case(updates)
    u, values, gradient = value_and_gradient(loop, window)
    # u_N = eta + (1 - rate)^N (u_0 - eta), but for the normaliser's epsilon.
    kept = np.prod([1 - RATE * share(window, n) for n in range(updates)])
    assert u == pytest.approx(ETA + kept * (START - ETA), rel=1e-12)
    expected = (1 - kept) * outer_slope(loop, window, u, values)
    assert gradient == pytest.approx(expected, rel=1e-10)
    assert abs(expected) > 1e-3


def test_closed_form_with_adams_denominator_held(x64: None) -> None:
    """One step from rest: ``u' = u - rate g / (|g| + eps)``, and |g| is a constant."""
    loop, window = closed_form_case(1)
    u, values, gradient = value_and_gradient(loop, window)
    g = share(window, 0) * (START - ETA)
    assert u == pytest.approx(START - RATE * g / (g + 1e-8), rel=1e-12)
    du_deta = RATE * share(window, 0) / (g + 1e-8)
    expected = du_deta * outer_slope(loop, window, u, values)
    assert gradient == pytest.approx(expected, rel=1e-10)
    assert abs(expected) > 1e-3
