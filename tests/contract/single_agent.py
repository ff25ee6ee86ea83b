"""One agent's update, written from the formulas, without metarl's agents.

Losses of the published rules by name, given their targets; the normalisation of
DESIGN's callers; and Adam with a bounded gradient, as papers write it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from contract.recorded import Inputs

from metarl.agents.agent import Agent
from metarl.rules.base import Targets
from metarl.types import (
    Clock,
    Experience,
    Outputs,
    Params,
    Peers,
    Transitions,
    drop_invalid,
)


def _log_pi(outputs: Outputs) -> jax.Array:
    return jax.nn.log_softmax(outputs["logits"])


def _of(x: jax.Array, actions: jax.Array) -> jax.Array:
    """Return the row ``[T, B, ...]`` of the action taken of ``[T, B, A, ...]``."""
    one_hot = jax.nn.one_hot(actions, tiny.NUM_ACTIONS, dtype=x.dtype)
    return jnp.einsum("tba,tba...->tb...", one_hot, x)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return jnp.sum(jax.nn.softmax(p) * (log_p - log_q), -1)


def _cross_entropy(p: jax.Array, q: jax.Array) -> jax.Array:
    return -jnp.sum(p * jax.nn.log_softmax(q), -1)


def _entropy(outputs: Outputs) -> jax.Array:
    log_pi = _log_pi(outputs)
    return -jnp.sum(jnp.exp(log_pi) * log_pi, -1)


def _policy_gradient(config, outputs, targets, t):
    taken = _of(_log_pi(outputs), t.actions)
    return -targets["advantages"] * taken - config.entropy_cost * _entropy(outputs)


def _actor_critic(config, outputs, targets, t):
    value = _cross_entropy(targets["value"], outputs["v"])
    return _policy_gradient(config, outputs, targets, t) + config.value_cost * value


def _ppo(config, outputs, targets, t):
    behaviour = _of(jax.nn.log_softmax(t.behaviour_logits), t.actions)
    ratio = jnp.exp(_of(_log_pi(outputs), t.actions) - behaviour)
    some = jnp.sum(t.own)
    mean = jnp.sum(targets["advantages"] * t.own) / some
    variance = jnp.sum((targets["advantages"] - mean) ** 2 * t.own) / some
    advantages = (targets["advantages"] - mean) / (jnp.sqrt(variance) + 1e-8)
    low, high = 1 - config.clip, 1 + config.clip
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages)
    v, old = outputs["v"][..., 0], targets["old_value"]
    near = old + jnp.clip(v - old, -config.clip, config.clip)
    errors = [jnp.square(x - targets["value"]) for x in (v, near)]
    value = 0.5 * jnp.maximum(*errors)
    bonus = config.entropy_cost * _entropy(outputs)
    return -surrogate + config.value_cost * value - bonus


def _disco(config, outputs, targets, t):
    a, lasts = t.actions, t.is_terminal
    next_policy = _kl(targets["next_logits"], _of(outputs["aux_pi"], a))
    return (
        config.pi_cost * _kl(targets["pi"], outputs["logits"])
        + config.y_cost * _kl(targets["y"], outputs["y"])
        + config.z_cost * _kl(targets["z"], _of(outputs["z"], a))
        + config.aux_policy_cost * jnp.where(lasts, 0, next_policy)
        + config.value_cost * _cross_entropy(targets["q"], _of(outputs["q"], a))
    )


def _lpg(config, outputs, targets, t):
    reinforced = targets["pi"] * _of(_log_pi(outputs), t.actions)
    return -reinforced + config.y_cost * _kl(outputs["y"], targets["y"])


def _lpg_critic(config, outputs, targets, t):
    mean = jnp.sum(targets["pi"] * t.own) / jnp.sum(t.own)
    centred = {**targets, "pi": targets["pi"] - mean}
    value = _cross_entropy(targets["value"], outputs["v"])
    return _lpg(config, outputs, centred, t) + config.value_cost * value


def _advantage_weighted(config, outputs, targets, t):
    error = outputs["v"][..., 0] - targets["value"]
    return -targets["weight"] * _of(_log_pi(outputs), t.actions) + 0.5 * error**2


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "policy_gradient": _policy_gradient,
    "actor_critic": _actor_critic,
    "ppo": _ppo,
    "disco": _disco,
    "lpg": _lpg,
    "lpg_critic": _lpg_critic,
    "docs_example": _advantage_weighted,
}
"""Of a rule's configuration, outputs, targets and transitions: the loss ``[T, B]``."""


def single_agent_update(
    name: str, agent: Agent, *inputs: object
) -> tuple[Params, Params]:
    """Return parameters and first moments of the first agent after an update.

    Args:
      name: of its loss.
      agent: rule, network and optimiser.
      *inputs: as `group.update` takes them.
    """
    meta_params, states, rollouts, key = inputs
    state, rollout = jax.tree.map(lambda x: x[0], (states, rollouts))
    transitions = drop_invalid(rollout.transitions)
    targets = _targets(agent, (meta_params, state, rollout, key))
    config = getattr(agent.rule, "config", None)

    def loss(params: Params, observations, targets: Targets, t: Transitions):
        outputs = _outputs(agent, params, observations)
        weight = t.valid * t.learn
        total = jnp.sum(LOSSES[name](config, outputs, targets, t) * weight)
        return total / (jnp.sum(weight) + 1e-8)

    gradient = jax.jit(jax.grad(loss), compiler_options=tiny.QUICK)
    columns = (rollout.observations[:-1], targets, transitions)
    spec = agent.spec
    if spec.minibatch_of == "transitions":
        columns = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), columns)
    count = columns[0].shape[1]
    _, order_key = jax.random.split(key)
    moments = (state.params, state.optimizer.mu, state.optimizer.nu)
    steps = int(state.optimizer.count)
    for epoch_key in jax.random.split(order_key, spec.epochs):
        order = np.arange(count)
        if spec.epochs * spec.minibatches > 1:
            order = np.asarray(jax.random.permutation(epoch_key, count))
        for chosen in order.reshape(spec.minibatches, -1):
            part = jax.tree.map(lambda x, i=chosen: x[:, i], columns)
            steps += 1
            moments = _adam(agent, moments, gradient(moments[0], *part), steps)
    return moments[0], moments[1]


def _targets(agent: Agent, inputs: Inputs) -> Targets:
    meta_params, state, rollout, key = inputs
    outputs = _outputs(agent, state.params, rollout.observations)
    has_target = agent.spec.target_network.kind != "none"
    peers = {k: jnp.zeros((0, *x.shape), x.dtype) for k, x in outputs.items()}
    experience = Experience(
        transitions=dataclasses.replace(
            rollout.transitions, own=jnp.ones_like(rollout.transitions.own)
        ),
        outputs=outputs,
        target_outputs=_outputs(agent, state.target_params, rollout.observations)
        if has_target
        else {},
        peers=Peers(peers, jnp.ones(0, bool), rollout.returns, rollout.success),
        clock=Clock(
            env_steps=jnp.asarray(60.0),
            agent_updates=state.agent_updates,
            lifetime_fraction=jnp.asarray(0.06),
        ),
    )

    def targets(*arguments):
        return agent.rule.targets(*arguments)[0]

    compute = jax.jit(targets, compiler_options=tiny.QUICK)
    return compute(meta_params, state.rule_state, experience, key)


def _outputs(agent: Agent, params: Params, observations: jax.Array) -> Outputs:
    lead = observations.shape[:2]
    flat = agent.network.apply(params, observations.reshape(-1, tiny.OBSERVATION))
    return {k: x.reshape(*lead, *x.shape[1:]) for k, x in flat.items()}


def _adam(agent: Agent, moments: tuple, grads: Params, count: int) -> tuple:
    """Return parameters and moments after the ``count``-th step of a lifetime."""
    c = agent.optimizer
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    bounded = jax.tree.map(lambda g: g * min(1.0, c.max_grad_norm / norm), grads)
    params, mu, nu = moments
    mu = jax.tree.map(lambda m, g: c.b1 * m + (1 - c.b1) * g, mu, bounded)
    nu = jax.tree.map(lambda n, g: c.b2 * n + (1 - c.b2) * g**2, nu, bounded)

    def moved(p: jax.Array, m: jax.Array, n: jax.Array) -> jax.Array:
        slow = m / (1 - c.b1**count)
        direction = slow / (np.sqrt(n / (1 - c.b2**count)) + c.eps)
        direction = np.clip(direction, -c.max_abs_update, c.max_abs_update)
        return p - c.learning_rate * (direction + c.weight_decay * p)

    return jax.tree.map(moved, params, mu, nu), mu, nu
