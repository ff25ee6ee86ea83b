"""Agents, rules and rollouts so small that float64 and finite differences are cheap."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents.agent import Agent
from metarl.config import (
    DiscoConfig,
    OptimizerConfig,
    RegularizerConfig,
    ValueFunctionConfig,
)
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.objective import ValueFunction
from metarl.numerics import kl_divergence, take_action
from metarl.rules.base import (
    Head,
    Metrics,
    Reads,
    RuleSpec,
    TargetNetwork,
    Targets,
    UpdateRule,
)
from metarl.rules.disco import Disco
from metarl.types import (
    Experience,
    Network,
    Outputs,
    Params,
    Rollout,
    Transitions,
)

NUM_ACTIONS = 3
OBSERVATION = 4
NO_TARGET = TargetNetwork()
QUICK = {"xla_backend_optimization_level": 0}
"""Compiles three times as fast; for programs that run a few times only."""
HIDDEN = 4

DISCO = DiscoConfig(
    prediction_size=5,
    num_bins=7,
    max_abs_value=3.0,
    trajectory_lstm=4,
    lifetime_lstm=3,
    embedding_hidden=3,
    action_channels=(3, 2),
    policy_channels=3,
    lifetime_input=3,
)


@dataclasses.dataclass(frozen=True)
class Scaled(UpdateRule):
    """REINFORCE on ``gain * reward + bias``, both of them meta-parameters.

    Its state counts updates and sums rewards; ``peer_cost`` pulls the policy towards
    the peers' mean policy, and so needs theirs.
    """

    epochs: int = 1
    minibatches: int = 1
    minibatch_of: str = "trajectories"
    target_network: TargetNetwork = NO_TARGET
    peer_cost: float = 0.0
    reads: Reads | None = None

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(
            heads=(Head("logits", num_actions),),
            epochs=self.epochs,
            minibatches=self.minibatches,
            minibatch_of=self.minibatch_of,
            target_network=self.target_network,
            reads=self.reads or ("peers" if self.peer_cost else "own"),
        )

    def init_params(self, key: jax.Array) -> Params:
        return {"gain": jnp.ones(()), "bias": jnp.full((), 0.5)}

    def init_state(self) -> Params:
        return {"updates": jnp.zeros((), jnp.int32), "reward": jnp.zeros(())}

    def targets(
        self,
        meta_params: Params,
        rule_state: Params,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, Params, Metrics]:
        t = experience.transitions
        weight = meta_params["gain"] * t.rewards + meta_params["bias"]
        reward = jnp.sum(t.rewards * t.own)
        state = {
            "updates": rule_state["updates"] + 1,
            "reward": rule_state["reward"] + reward,
        }
        return {"weight": weight}, state, {"reward": reward}

    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        log_pi = take_action(jax.nn.log_softmax(outputs["logits"]), transitions.actions)
        own = jnp.broadcast_to(outputs["logits"], peers["logits"].shape)
        pull = jnp.sum(kl_divergence(peers["logits"], own), axis=0)
        policy_loss = -targets["weight"] * log_pi
        loss = policy_loss + self.peer_cost * pull
        return loss * transitions.own, {"policy_loss": policy_loss}


def linear(inputs: jax.Array, layer: Params) -> jax.Array:
    y = inputs @ layer["w"]
    return y + jnp.broadcast_to(layer["b"], y.shape)


def init_linear(key: jax.Array, inputs: int, outputs: int) -> Params:
    w_key, b_key = jax.random.split(key)
    return {
        "w": jax.random.normal(w_key, (inputs, outputs)) / np.sqrt(inputs),
        "b": 0.3 * jax.random.normal(b_key, (outputs,)),
    }


def network_for(rule: UpdateRule, num_actions: int = NUM_ACTIONS) -> Network:
    """Return one tanh layer under a linear layer per head of the rule."""
    heads = rule.spec(num_actions).heads

    def shape(head) -> tuple[int, ...]:
        return (num_actions, head.size) if head.per_action else (head.size,)

    def init(key: jax.Array, observations: jax.Array) -> Params:
        keys = jax.random.split(key, len(heads) + 1)
        torso = init_linear(keys[0], observations.shape[-1], HIDDEN)
        layers = {
            head.name: init_linear(k, HIDDEN, int(np.prod(shape(head))))
            for head, k in zip(heads, keys[1:], strict=True)
        }
        return {"torso": torso, **layers}

    def apply(params: Params, observations: jax.Array) -> Outputs:
        x = jnp.tanh(linear(observations, params["torso"]))
        return {
            head.name: linear(x, params[head.name]).reshape(-1, *shape(head))
            for head in heads
        }

    return Network(init, apply)


def value_network() -> Network:
    """Return a tanh layer under one value."""

    def init(key: jax.Array, observations: jax.Array) -> Params:
        keys = jax.random.split(key)
        return {
            "torso": init_linear(keys[0], observations.shape[-1], HIDDEN),
            "value": init_linear(keys[1], HIDDEN, 1),
        }

    def apply(params: Params, observations: jax.Array) -> Outputs:
        x = jnp.tanh(linear(observations, params["torso"]))
        return {"value": linear(x, params["value"])[..., 0]}

    return Network(init, apply)


def agent_for(rule: UpdateRule, **optimizer: object) -> Agent:
    settings = {"learning_rate": 0.1, **optimizer}
    return Agent(
        rule=rule,
        network=network_for(rule),
        num_actions=NUM_ACTIONS,
        optimizer=OptimizerConfig(**settings),
        lifetime_env_steps=1000,
    )


def inner_loop_for(agent: Agent, *, remat: bool = True) -> InnerLoop:
    """Return an inner loop whose regularisers weigh enough to be seen."""
    return InnerLoop(
        agent=agent,
        value_function=ValueFunction(
            value_network(), ValueFunctionConfig(learning_rate=0.05, max_abs_update=5.0)
        ),
        weights=RegularizerConfig(
            policy_entropy=0.05,
            y_entropy=0.04,
            z_entropy=0.03,
            squared_mean=0.02,
            target_kl=0.06,
            l2_pi=0.05,
            l2_y=0.07,
        ),
        remat=remat,
    )


def rollout(seed: int, *, steps: int = 5, batch: int = 3) -> Rollout:
    """Return random experience with every kind of transition.

    Trajectory 0 ends its episode after step 1 and is reset in step 2 (invalid);
    trajectory 1 is truncated after step 2 and reset in step 3; the others go on.
    One existing transition is not learned from.
    """
    rng = np.random.default_rng(seed)
    shape = (steps, batch)
    is_terminal, cut = np.zeros(shape, bool), np.zeros(shape, bool)
    valid, learn = np.ones(shape, bool), np.ones(shape)
    is_terminal[1, 0], valid[2, 0] = True, False
    cut[2, 1], valid[3, 1] = True, False
    learn[0, 1] = 0.0
    float_type = jnp.result_type(float)
    return Rollout(
        observations=jnp.asarray(
            rng.normal(size=(steps + 1, batch, OBSERVATION)), float_type
        ),
        transitions=Transitions(
            actions=jnp.asarray(rng.integers(0, NUM_ACTIONS, shape), jnp.int32),
            behaviour_logits=jnp.asarray(
                rng.normal(size=(*shape, NUM_ACTIONS)), float_type
            ),
            rewards=jnp.asarray(rng.normal(size=shape), float_type),
            is_terminal=jnp.asarray(is_terminal),
            cut=jnp.asarray(cut),
            valid=jnp.asarray(valid),
            learn=jnp.asarray(learn, float_type),
            own=jnp.ones(shape, bool),
        ),
        returns=jnp.asarray(rng.normal(size=batch), float_type),
        success=jnp.asarray(rng.integers(0, 2, batch), bool),
        env_steps=jnp.asarray(steps * batch, jnp.int32),
    )


def stack(trees: list) -> object:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def rollouts(seed: int, *lead: int, **sizes: int) -> Rollout:
    """Return independent rollouts with the leading axes ``lead``."""
    count = int(np.prod(lead))
    flat = [rollout(seed + i, **sizes) for i in range(count)]
    # In NumPy, which compiles nothing.
    return jax.tree.map(
        lambda *x: jnp.asarray(np.stack(x).reshape(*lead, *x[0].shape)), *flat
    )


def pooled(rollouts: Rollout) -> Rollout:
    """Return peers' rollouts ``[K, T, B]`` as one, ``[T, K B]``, peer by peer."""

    def join(x: jax.Array) -> np.ndarray:
        return np.concatenate(list(np.asarray(x)), axis=1)

    return Rollout(
        observations=join(rollouts.observations),
        transitions=jax.tree.map(join, rollouts.transitions),
        returns=np.concatenate(list(np.asarray(rollouts.returns))),
        success=np.concatenate(list(np.asarray(rollouts.success))),
        env_steps=np.sum(rollouts.env_steps),
    )


def window_for(loop: InnerLoop, seed: int, *, updates: int, peers: int) -> Window:
    """Return what a meta-gradient is computed from, for one group."""
    keys = jax.random.split(jax.random.key(seed), 3)
    observations = jnp.zeros((1, OBSERVATION))

    @partial(jax.jit, compiler_options=QUICK)
    def new(agent_key: jax.Array, value_key: jax.Array) -> tuple:
        agents = jax.vmap(lambda k: loop.agent.init(k, observations))
        values = jax.vmap(lambda k: loop.value_function.init(k, observations))
        return (
            agents(jax.random.split(agent_key, peers)),
            values(jax.random.split(value_key, peers)),
        )

    agents, values = new(keys[0], keys[1])
    return Window(
        agents=agents,
        values=values,
        rollouts=rollouts(1000 * seed, updates, peers),
        keys=jax.random.split(keys[2], updates),
        validation=rollouts(1000 * seed + 500, peers, steps=6),
    )


def disco_params(seed: int, config: DiscoConfig = DISCO) -> Params:
    """Return Disco's meta-parameters; none is zero."""
    return rule_params(Disco(config), seed)


def rule_params(rule: UpdateRule, seed: int) -> Params:
    """Return meta-parameters whose biases are not zero."""

    @partial(jax.jit, compiler_options=QUICK)
    def new(key: jax.Array, noise_key: jax.Array) -> Params:
        leaves, tree = jax.tree.flatten(rule.init_params(key))
        keys = jax.random.split(noise_key, len(leaves))
        noisy = [
            x + 0.2 * jax.random.normal(k, x.shape)
            for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy)

    return new(jax.random.key(seed), jax.random.key(seed + 1))


def warm(state: object, seed: int) -> object:
    """Return agents in the middle of their lives: Adam moments and rule state."""
    rng = np.random.default_rng(seed)

    def noise(x: jax.Array, low: float, high: float) -> jax.Array:
        return jnp.asarray(np.asarray(x) + rng.uniform(low, high, x.shape), x.dtype)

    optimizer = dataclasses.replace(
        state.optimizer,
        count=state.optimizer.count + 4,
        mu=jax.tree.map(lambda x: noise(x, -0.03, 0.03), state.optimizer.mu),
        nu=jax.tree.map(lambda x: noise(x, 1e-5, 1e-3), state.optimizer.nu),
    )
    return dataclasses.replace(
        state,
        target_params=jax.tree.map(lambda x: noise(x, -0.3, 0.3), state.target_params),
        optimizer=optimizer,
    )


def poison(tree: object, seed: int) -> object:
    """Return ``tree`` with other data in the transitions that do not exist."""
    rng = np.random.default_rng(seed)

    def of(t: Transitions) -> Transitions:
        def garbage(x: jax.Array, values: np.ndarray) -> jax.Array:
            valid = t.valid.reshape(t.valid.shape + (1,) * (x.ndim - t.valid.ndim))
            return jnp.asarray(np.where(valid, x, values), x.dtype)

        def flip(x: jax.Array) -> jax.Array:
            return garbage(x, rng.integers(0, 2, x.shape).astype(bool))

        return dataclasses.replace(
            t,
            actions=garbage(t.actions, rng.integers(0, NUM_ACTIONS, t.actions.shape)),
            behaviour_logits=garbage(
                t.behaviour_logits, 5 * rng.normal(size=t.behaviour_logits.shape)
            ),
            rewards=garbage(t.rewards, 50 * rng.normal(size=t.rewards.shape)),
            is_terminal=flip(t.is_terminal),
            cut=flip(t.cut),
            learn=garbage(t.learn, rng.uniform(size=t.learn.shape)),
            own=flip(t.own),
        )

    return jax.tree.map(
        lambda x: of(x) if isinstance(x, Transitions) else x,
        tree,
        is_leaf=lambda x: isinstance(x, Transitions),
    )


def pairs(a: object, b: object) -> list[tuple[jax.Array, jax.Array]]:
    """Return the leaves of two trees of one structure, side by side."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_same_bits(a: object, b: object) -> None:
    for x, y in pairs(a, b):
        np.testing.assert_array_equal(x, y)


def assert_close(a: object, b: object, tolerance: float = 1e-12) -> None:
    for x, y in pairs(a, b):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
