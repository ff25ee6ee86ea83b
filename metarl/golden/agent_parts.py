"""Parts c, d and e: learner steps of a tiny agent, and meta-gradients through them.

Computed by `metarl.agents` (the update of a group of one) and `metarl.meta` (the
inner loop, the outer objective, the estimator); the setting is in `tiny_agent`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.golden.files import GoldenFile
from metarl.golden.subject import (
    Arrays,
    Subject,
    join,
    moments_arrays,
    read_state,
    state_arrays,
    under,
)
from metarl.golden.tiny_agent import (
    adam_arrays,
    agent_arrays,
    of_one,
    read_adam,
    read_agent_params,
    read_rollout,
    read_value_state,
    tiny_agent,
    tiny_inner_loop,
    value_arrays,
)
from metarl.meta.estimators import ExactEstimator
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.mixed_mode import MixedMode
from metarl.meta.objective import ValueState
from metarl.numerics import adam_init, global_norm, take_action
from metarl.rules.base import Metrics
from metarl.rules.disco import DiscoState
from metarl.rules.disco_names import to_published
from metarl.types import Outputs, Params, Rollout

Tree = TypeVar("Tree")

LEARNER_LOG = {
    "total_loss": "loss",
    "global_gradient_norm": "grad_norm",
    "global_update_norm": "update_norm",
    "q_loss": "value_loss",
    "pi_loss": "pi_loss",
    "aux_kl_loss": "aux_policy_loss",
    "entropy": "entropy",
    "q_target": "q_target",
    "td": "td",
}
"""Part c: golden names of scalars, and ours."""

META_LOG = {
    "meta_loss": "loss",
    "reg_mean_pi": "squared_mean_pi",
    "reg_mean_y": "squared_mean_y",
    "reg_mean_z": "squared_mean_z",
    **{
        name: name
        for name in (
            "adv",
            "entropy",
            "normalized_adv",
            "pg_loss",
            "reg_loss",
            "target_kl",
            "val_importance_weight",
            "value",
            "y_entropy_loss",
            "z_entropy_loss",
        )
    },
}
"""Parts d and e: likewise."""


def learner_chain(file: GoldenFile, subject: Subject) -> Arrays:
    """Return the outputs of part c: learner steps on one rollout."""
    rule = subject.rule(file)
    agent = tiny_agent(file, rule)
    rollout = of_one(read_rollout(file, "rollout/"))
    params = read_agent_params(file, "initial/params/")
    zero = jnp.zeros((), jnp.int32)
    states = of_one(
        AgentState(params, params, adam_init(params), rule.init_state(), zero, zero)
    )
    found = []
    for step in file.numbers(r"step(\d+)/"):
        states, record, grads = _learner_step(agent, subject.params, states, rollout)
        state = _only(states)
        log = {name: record.metrics[ours] for name, ours in LEARNER_LOG.items()}
        arrays = [
            agent_arrays("grad/", grads),
            agent_arrays("params/", state.params),
            adam_arrays("opt/", state.optimizer, agent_arrays),
            _rule_state_arrays("meta_state/", state),
            under("log/", _only(log)),
            under("meta_out/", {k: record.targets[k][0] for k in ("pi", "y", "z")}),
        ]
        if step == 0:
            arrays.append(under("agent_out/", _only(record.experience.outputs)))
        found.append(under(f"step{step}/", join(arrays)))
    return join(found)


@functools.partial(jax.jit, static_argnums=0)
def _learner_step(
    agent: Agent, meta_params: Params, states: AgentState, rollouts: Rollout
) -> tuple[AgentState, group.UpdateRecord, Params]:
    """Return the group of one after an update, its record, and the gradient."""
    key = jax.random.key(0)
    # With b1 = 0, Adam's first moment after an update is the gradient itself. The
    # compiler joins what the two updates have in common.
    bare = dataclasses.replace(
        agent, optimizer=agent.optimizer.model_copy(update={"b1": 0.0})
    )
    after, _ = group.update(bare, meta_params, states, rollouts, key)
    new_states, record = group.update(agent, meta_params, states, rollouts, key)
    return new_states, record, _only(after.optimizer.mu)


def meta_gradient(
    file: GoldenFile,
    subject: Subject,
    estimator: type[ExactEstimator] = MixedMode,
) -> Arrays:
    """Return the outputs of parts d and e: a meta-gradient and what leads to it.

    By default as meta-training computes it by default.
    """
    rule = subject.rule(file)
    meta_params = subject.params
    if "_randometa_" in file.stem:
        meta_params = subject.read_params(file, "initial/eta/")
    inner_loop = tiny_inner_loop(file, tiny_agent(file, rule))
    window = _read_window(file)
    grads, values, metrics = estimator(inner_loop).gradient(
        meta_params, jax.tree.map(lambda x: x[None], window)
    )
    grads, values = _only(grads), _only(_only(values))
    log = {name: metrics[ours][0] for name, ours in META_LOG.items()}
    return under(
        "out/",
        join(
            [
                under("meta_grad/", to_published(grads)),
                {"meta_grad_global_norm": np.asarray(global_norm(grads))},
                under("log/", log),
                _moments_of("final_value_", values),
                _steps(inner_loop, meta_params, window),
            ]
        ),
    )


def _read_window(file: GoldenFile) -> Window:
    """Return the inner rollouts, the validation rollout and the state before them."""
    agents = AgentState(
        params=read_agent_params(file, "initial/agent_params/"),
        target_params=read_agent_params(file, "initial/meta_state/target_params/"),
        optimizer=read_adam(file, "initial/agent_opt/", read_agent_params),
        rule_state=read_state(file, "initial/meta_state/"),
        env_steps=jnp.zeros((), jnp.int32),
        agent_updates=jnp.asarray(file["initial/agent_opt/count"]),
    )
    steps = file["train/rewards"].shape[0]
    rollouts = [of_one(read_rollout(file, "train/", at=n)) for n in range(steps)]
    return Window(
        agents=of_one(agents),
        values=of_one(read_value_state(file, "initial/")),
        rollouts=jax.tree.map(lambda *x: jnp.stack(x), *rollouts),
        keys=jax.random.split(jax.random.key(0), steps),
        validation=of_one(read_rollout(file, "valid/")),
    )


def _steps(inner_loop: InnerLoop, meta_params: Params, window: Window) -> Arrays:
    """Return what each inner step leaves, and the validation after the last."""
    agents, values = window.agents, window.values
    per_step: list[Arrays] = []
    for n in range(window.keys.shape[0]):
        rollouts = jax.tree.map(lambda x, n=n: x[n], window.rollouts)
        agents, values, arrays = _inner_step(
            inner_loop, meta_params, agents, values, rollouts, window.keys[n]
        )
        agent, value = _only(agents), _only(values)
        per_step.append(
            join(
                [
                    under("", arrays),
                    agent_arrays("agent_params_per_inner_step/", agent.params),
                    value_arrays("value_params_per_inner_step/", value.params),
                ]
            )
        )
    stacked = {key: np.stack([step[key] for step in per_step]) for key in per_step[0]}
    validation = _validate(inner_loop, agent, value, _only(window.validation))
    return join(
        [
            stacked,
            _rule_state_arrays("final_meta_state/", agent),
            under("log/", validation),
        ]
    )


@functools.partial(jax.jit, static_argnums=0)
def _inner_step(
    inner_loop: InnerLoop,
    meta_params: Params,
    agents: AgentState,
    values: ValueState,
    rollouts: Rollout,
    key: jax.Array,
) -> tuple[AgentState, ValueState, Outputs]:
    """Return agents and value functions after one inner update, and its arrays."""
    new_agents, new_values, (log, record) = inner_loop.step(
        meta_params, agents, values, rollouts, key
    )
    experience = _only(record.experience)
    # What the value function's update computes on its way.
    advantages, _ = inner_loop.value_function.advantages(
        _only(values),
        rollouts.observations[0],
        experience.transitions,
        experience.outputs["logits"],
    )
    arrays = {
        "inner_total_loss": log.metrics["loss"][0],
        "inner_value_loss": log.value_loss[0],
        "inner_value_td": advantages.errors,
        "log/target_logits": experience.target_outputs["logits"],
        **{f"log/meta_{name}": record.targets[name][0] for name in ("pi", "y", "z")},
    }
    return new_agents, new_values, arrays


@functools.partial(jax.jit, static_argnums=0)
def _validate(
    inner_loop: InnerLoop, state: AgentState, values: ValueState, rollout: Rollout
) -> Metrics:
    """Return the arrays behind the outer loss on the validation rollout."""
    outputs = jax.vmap(inner_loop.agent.network.apply, in_axes=(None, 0))(
        state.params, rollout.observations
    )
    transitions = rollout.transitions
    advantages, _ = inner_loop.value_function.advantages(
        values, rollout.observations, transitions, outputs["logits"]
    )
    log_pi = jax.nn.log_softmax(outputs["logits"][:-1])
    return {
        # The outer loss is the mean of this; its metrics hold no array per step.
        "pg_loss_per_step": -advantages.normalized
        * take_action(log_pi, transitions.actions),
        "valid_logits": outputs["logits"],
        "valid_y": outputs["y"],
        "valid_z": outputs["z"],
        "valid_value": advantages.values,
        "valid_adv": advantages.advantages,
        "valid_normalized_adv": advantages.normalized,
        "valid_rho": advantages.rhos,
    }


def _rule_state_arrays(prefix: str, state: AgentState) -> Arrays:
    """Return rule state and target parameters, which the reference keeps together."""
    assert isinstance(state.rule_state, DiscoState)
    return join(
        [
            under(prefix, state_arrays(state.rule_state)),
            agent_arrays(f"{prefix}target_params/", state.target_params),
        ]
    )


def _moments_of(prefix: str, values: ValueState) -> Arrays:
    return join(
        [
            under(prefix, moments_arrays("adv_ema/", values.adv_moments)),
            under(prefix, moments_arrays("td_ema/", values.td_moments)),
        ]
    )


def _only(tree: Tree) -> Tree:
    """Return the one entry of a leading axis of length 1, of every leaf."""
    return jax.tree.map(lambda x: x[0], tree)
