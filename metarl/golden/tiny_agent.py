"""The setting of parts c, d and e: a tiny agent and a tiny meta-value function.

Networks, states and rollouts as the golden README describes them, made of our own
classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents import golden_names
from metarl.agents.agent import Agent
from metarl.agents.networks import build_network, build_value_network
from metarl.config import (
    ActionModelConfig,
    MLPTorso,
    NetworkConfig,
    OptimizerConfig,
    RegularizerConfig,
    ValueFunctionConfig,
)
from metarl.golden.files import GoldenFile
from metarl.golden.subject import (
    Arrays,
    hyper,
    join,
    optimizer,
    read_moments,
    transitions,
    under,
)
from metarl.meta.inner_loop import InnerLoop
from metarl.meta.objective import Advantages, ValueFunction, ValueState
from metarl.numerics import AdamState
from metarl.rules.disco import Disco
from metarl.types import Network, Outputs, Params, Rollout, Transitions

Tree = TypeVar("Tree")

NETWORK = NetworkConfig(
    torso=MLPTorso(hidden=(16,), activate_final=False),
    action_model=ActionModelConfig(lstm=8, head_hidden=(8,)),
    head_hidden=(),
)
VALUE_TORSO = MLPTorso(hidden=(16,), activate_final=False)

REGULARIZERS = RegularizerConfig(
    policy_entropy=1e-2,
    y_entropy=1e-3,
    z_entropy=1e-3,
    squared_mean=1e-3,
    target_kl=1e-2,
)
"""Constants of the golden README, part d."""

ARRIVED = 2
"""Columns appended to each observation: the reward and the discount that arrived
with it. The networks do not see them; see `LateValueFunction`."""


class LateValueFunction(ValueFunction):
    """A value function that is told each transition's reward one transition late.

    The reference gives its value function the reward and the discount that arrived
    with a transition's first observation, its learner those of the second one. Ours
    aligns both as the learner does, so the golden arrays are met by shifting the copy
    that the value function reads, and nothing else.
    """

    def advantages(
        self,
        state: ValueState,
        observations: jax.Array,
        transitions: Transitions,
        logits: jax.Array,
    ) -> tuple[Advantages, ValueState]:
        """Return what `ValueFunction.advantages` does of the shifted transitions."""
        late = dataclasses.replace(
            transitions,
            rewards=observations[:-1, ..., -2],
            is_terminal=observations[:-1, ..., -1] == 0,
        )
        return super().advantages(state, observations, late, logits)


def tiny_agent(file: GoldenFile, rule: Disco) -> Agent:
    """Return the agent of ``file``; the same object for equal settings."""
    name = "valid" if "valid/actions" in file else "rollout"
    num_actions = file[f"{name}/behaviour_logits"].shape[-1]
    return _agent(rule, optimizer(file), num_actions)


@functools.cache
def _agent(rule: Disco, config: OptimizerConfig, num_actions: int) -> Agent:
    # Cached, so that files of equal settings share what is compiled for the agent.
    network = build_network(NETWORK, rule.spec(num_actions), num_actions)
    return Agent(rule, _blind(network), num_actions, config, lifetime_env_steps=1)


def tiny_inner_loop(file: GoldenFile, agent: Agent) -> InnerLoop:
    """Return the inner loop of ``file``; the same object for equal settings."""
    config = ValueFunctionConfig(
        torso=VALUE_TORSO,
        learning_rate=hyper(file, "value_learning_rate"),
        max_abs_update=1.0,
        discount=hyper(file, "value_discount_factor"),
        trace_lambda=hyper(file, "value_td_lambda"),
        moments_decay=0.99,
    )
    return _inner_loop(agent, config)


@functools.cache
def _inner_loop(agent: Agent, config: ValueFunctionConfig) -> InnerLoop:
    network = build_value_network(VALUE_TORSO)
    return InnerLoop(agent, LateValueFunction(_blind(network), config), REGULARIZERS)


def _blind(network: Network) -> Network:
    """Return ``network`` without sight of what `read_rollout` appends."""

    def init(key: jax.Array, observations: jax.Array) -> Params:
        return network.init(key, observations[..., :-ARRIVED])

    def apply(params: Params, observations: jax.Array) -> Outputs:
        return network.apply(params, observations[..., :-ARRIVED])

    apply_taken = network.apply_taken
    if apply_taken is None:
        return Network(init, apply)

    def apply_taken_blind(
        params: Params, observations: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, Outputs]:
        return apply_taken(params, observations[..., :-ARRIVED], actions)

    return Network(init, apply, apply_taken_blind)


def read_rollout(file: GoldenFile, prefix: str, at: int | None = None) -> Rollout:
    """Return the rollout stored under ``prefix``; entry ``at`` of a leading axis.

    Rewards and discounts of the files arrive with an observation, as the result of
    the action before it.
    """
    names = ("observations", "actions", "rewards", "discounts", "behaviour_logits")
    fields = {name: file[f"{prefix}{name}"] for name in names}
    if at is not None:
        fields = {name: array[at] for name, array in fields.items()}
    rewards, discounts = fields["rewards"], fields["discounts"]
    arrived = np.stack([rewards, discounts.astype(np.float32)], axis=-1)
    batch = rewards.shape[1]
    return Rollout(
        observations=jnp.concatenate([fields["observations"], arrived], axis=-1),
        transitions=transitions(
            fields["actions"],
            fields["behaviour_logits"],
            rewards[1:],
            ~discounts[1:],
            # The published mask: that of the timestep a transition starts from.
            learn=discounts[:-1],
        ),
        returns=jnp.zeros(batch),
        success=jnp.zeros(batch, bool),
        env_steps=jnp.zeros((), jnp.int32),
    )


def read_agent_params(file: GoldenFile, prefix: str) -> Params:
    """Return the agent's parameters stored under ``prefix``."""
    return _on_device(golden_names.agent_from_golden(file.folder(prefix)))


def read_value_params(file: GoldenFile, prefix: str) -> Params:
    """Return the value function's parameters stored under ``prefix``."""
    return _on_device(golden_names.value_from_golden(file.folder(prefix)))


def read_adam(
    file: GoldenFile, prefix: str, read: Callable[[GoldenFile, str], Params]
) -> AdamState:
    """Return Adam's state under ``prefix``; ``read`` reads the trees in it."""
    return AdamState(
        count=jnp.asarray(file[f"{prefix}count"]),
        mu=read(file, f"{prefix}mu/"),
        nu=read(file, f"{prefix}nu/"),
    )


def read_value_state(file: GoldenFile, prefix: str) -> ValueState:
    """Return the value function stored under ``prefix``."""
    return ValueState(
        params=read_value_params(file, f"{prefix}value_params/"),
        optimizer=read_adam(file, f"{prefix}value_opt/", read_value_params),
        adv_moments=read_moments(file, f"{prefix}value_adv_ema/"),
        td_moments=read_moments(file, f"{prefix}value_td_ema/"),
    )


def agent_arrays(prefix: str, params: Params) -> Arrays:
    """Return a tree like the agent's parameters by golden names."""
    return under(prefix, golden_names.agent_to_golden(params))


def value_arrays(prefix: str, params: Params) -> Arrays:
    """Return a tree like the value function's parameters by golden names."""
    return under(prefix, golden_names.value_to_golden(params))


def adam_arrays(
    prefix: str, state: AdamState, arrays: Callable[[str, Params], Arrays]
) -> Arrays:
    """Return Adam's state by golden names; ``arrays`` names trees like the params."""
    return join(
        [
            under(prefix, {"count": state.count}),
            arrays(f"{prefix}mu/", state.mu),
            arrays(f"{prefix}nu/", state.nu),
        ]
    )


def of_one(tree: Tree) -> Tree:
    """Return ``tree`` with the axis K of a group of one before every leaf."""
    return jax.tree.map(lambda x: x[None], tree)


def _on_device(params: Params) -> Params:
    return jax.tree.map(jnp.asarray, params)
