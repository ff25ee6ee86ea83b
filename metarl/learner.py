"""`Learner`: a rule and any network as a plain object, for environments of your own.

The update is the one that training and evaluation use, of a group of one. A host
module; must not import environments, `train` or `evaluation`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from metarl import config_loader
from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.agents.checked_network import Apply, Init, check_network
from metarl.atomic_files import write_file
from metarl.config import OptimizerConfig
from metarl.errors import UserError
from metarl.rollout.builder import RolloutBuilder
from metarl.rule_files import LoadedRule, folder
from metarl.rules.base import Head, Metrics, UpdateRule
from metarl.types import Network, Params, Rollout

ENDLESS = 2**31 - 1
"""Environment steps of a lifetime that nobody bounded; the counter's largest."""


@partial(jax.jit, static_argnums=0)
def _init(agent: Agent, key: jax.Array, observations: jax.Array) -> AgentState:
    return agent.init(key, observations)


@partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent, state: AgentState, observations: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return agent.act(state, observations, key)


@partial(jax.jit, static_argnums=0)
def _update(
    agent: Agent,
    meta_params: Params,
    state: AgentState,
    rollout: Rollout,
    key: jax.Array,
) -> tuple[AgentState, Metrics]:
    """Update a group of one; its axis exists in here alone."""
    states, rollouts = jax.tree.map(lambda x: x[None], (state, rollout))
    states, record = group.update(agent, meta_params, states, rollouts, key)
    return jax.tree.map(lambda x: x[0], (states, record.metrics))


class Learner:
    """Trains a network by an update rule.

    Holds no state of the agent: `init` and `update` return it. Every function is
    compiled at its first call; later calls with equal shapes reuse that.
    """

    def __init__(
        self,
        rule: LoadedRule | UpdateRule,
        network: tuple[Init, Apply] | Network,
        observations: npt.ArrayLike,
        *,
        num_actions: int,
        learning_rate: float | None = None,
        optimizer: OptimizerConfig | None = None,
        lifetime_env_steps: int | None = None,
    ) -> None:
        """Join rule and network, and check that they fit.

        Args:
          rule: what `metarl.load_rule` returned, or a hand-written `UpdateRule`.
          network: ``init(key, observations [N, ...]) -> params`` and
            ``apply(params, observations [N, ...]) -> {head: [N, size]}``, per action
            ``[N, A, size]``; pure functions with the heads of the rule's spec. A
            `metarl.types.Network` too, whose third one is checked likewise.
          observations: ``[N, ...]`` of any content, for shape and dtype.
          num_actions: A.
          learning_rate: in place of the optimiser's.
          optimizer: settings of Adam; None: the defaults of the configuration.
          lifetime_env_steps: how long the agent will learn, over all environments;
            needed by learning-rate schedules and told to the rule.

        Raises:
          UserError: an argument is not allowed, or the network lacks a head, or one
            has another shape than the rule needs.
        """
        if isinstance(rule, LoadedRule):
            self._meta_params, rule = rule.meta_params, rule.rule
        else:
            self._meta_params = _no_meta_params(rule)
        optimizer = _optimizer(optimizer, learning_rate)
        if lifetime_env_steps is None and optimizer.schedule != "constant":
            raise UserError(
                f"lifetime_env_steps: needed by the schedule '{optimizer.schedule}'"
            )
        example = jnp.asarray(observations)
        heads = rule.spec(num_actions).heads
        checked = check_network(network, heads, num_actions, example)
        self._agent = Agent(
            rule=rule,
            network=checked,
            num_actions=num_actions,
            optimizer=optimizer,
            lifetime_env_steps=lifetime_env_steps or ENDLESS,
        )
        self._observations = jax.ShapeDtypeStruct(example.shape, example.dtype)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The outputs that the rule needs of the network."""
        return self._agent.spec.heads

    def init(self, key: jax.Array) -> AgentState:
        """Return a new agent; ``key`` is consumed."""
        spec = self._observations
        return _init(self._agent, key, jnp.zeros(spec.shape, spec.dtype))

    def act(
        self, state: AgentState, observations: npt.ArrayLike, key: jax.Array
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return actions ``[B]``, and the logits ``[B, A]`` they were drawn from.

        Args:
          state: the agent.
          observations: ``[B, ...]``.
          key: consumed; a new one at every step.

        Returns:
          NumPy arrays.
        """
        observations = self._checked(observations, lead=1)
        return jax.device_get(_act(self._agent, state, observations, key))

    def rollout_builder(self, observations: npt.ArrayLike) -> RolloutBuilder:
        """Return what collects steps, from the first observations ``[B, ...]`` on."""
        self._checked(observations, lead=1)
        return RolloutBuilder(observations, num_actions=self._agent.num_actions)

    def update(
        self, state: AgentState, rollout: Rollout, key: jax.Array
    ) -> tuple[AgentState, Metrics]:
        """Return the agent after one update, and scalars to log.

        Args:
          state: the agent; stays as it is.
          rollout: ``[T, B]``, from a `RolloutBuilder` or a `Replay`.
          key: consumed.
        """
        rollout = dataclasses.replace(
            rollout, observations=self._checked(rollout.observations, lead=2)
        )
        return _update(self._agent, self._meta_params, state, rollout, key)

    def save(self, state: AgentState, path: str | Path) -> None:
        """Write the agent to one npz file, whole or not at all."""
        write_file(Path(path), folder.pack(jax.device_get(_by_name(state))))

    def restore(self, path: str | Path) -> AgentState:
        """Return the agent that `save` wrote, bit for bit.

        Raises:
          UserError: there is no such file, or it is of an agent with other arrays.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        arrays = folder.unpack(path.read_bytes(), where=path)
        like = self.init(jax.random.key(0))
        expected = _by_name(like)
        if unknown := sorted(set(arrays) - set(expected)):
            raise UserError(f"{path}: this learner has no array '{unknown[0]}'")
        for name, leaf in expected.items():
            if name not in arrays:
                raise UserError(f"{path}: array '{name}' is missing")
            array = arrays[name]
            if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"{path}: array '{name}' is {_describe(array)}, this learner "
                    f"needs {_describe(leaf)}"
                )
        leaves = [jnp.asarray(arrays[name]) for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _checked(self, observations: npt.ArrayLike, *, lead: int) -> jax.Array:
        """Return observations in the dtype that the learner was made for."""
        needed = self._observations
        array = (
            observations
            if isinstance(observations, jax.Array)
            else np.asarray(observations)
        )
        if array.shape[lead:] != needed.shape[1:] or array.ndim < lead:
            lead_names = ", ".join("TB"[-lead:])
            raise UserError(
                f"observations: shape {list(array.shape)}, the learner was made for "
                f"[{lead_names}, {', '.join(map(str, needed.shape[1:]))}]"
            )
        if not np.can_cast(array.dtype, needed.dtype, "same_kind"):
            raise UserError(
                f"observations: {array.dtype}, the learner was made for {needed.dtype}"
            )
        return jnp.asarray(array, needed.dtype)


def _optimizer(
    optimizer: OptimizerConfig | None, learning_rate: float | None
) -> OptimizerConfig:
    optimizer = optimizer or OptimizerConfig()
    if learning_rate is None:
        return optimizer
    settings = {**optimizer.model_dump(), "learning_rate": learning_rate}
    return config_loader.validate(OptimizerConfig, settings)


def _no_meta_params(rule: UpdateRule) -> Params:
    """Return the empty meta-parameters of a hand-written rule."""
    shapes = jax.eval_shape(rule.init_params, jax.random.key(0))
    if jax.tree.leaves(shapes):
        raise UserError(
            f"rule: {type(rule).__name__} has meta-parameters; give what "
            "metarl.load_rule returns, which holds them"
        )
    return shapes


def _by_name(state: AgentState) -> dict[str, jax.Array]:
    """Return the arrays by their path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path).removeprefix("."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def _describe(array: np.ndarray | jax.Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
