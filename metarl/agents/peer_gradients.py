"""Whether a rule's loss moves the peers whose outputs it reads: found by tracing.

A rule stops what it wants stopped. Where it stops all, going back through the peers'
networks would give zeros at full price.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metarl.rules.base import Head, UpdateRule
from metarl.types import Clock, Experience, Outputs, Peers, Transitions

_T, _B, _P = 2, 2, 1


@functools.cache
def moves_peers(rule: UpdateRule, num_actions: int) -> bool:
    """Return whether a rule's loss has a gradient for its peers' outputs.

    That is, whether any of them reaches it past every `stop_gradient`.

    Args:
      rule: that learns from others.
      num_actions: A.
    """
    heads = rule.spec(num_actions).heads
    key = jax.eval_shape(lambda: jax.random.key(0))
    found: list[str] = []

    def back(experience: Experience, key: jax.Array) -> Outputs:
        targets, _, _ = rule.targets(
            rule.init_params(key), rule.init_state(), experience, key
        )
        own, peers = (
            _rows(outputs, heads)
            for outputs in (experience.outputs, experience.peers.outputs)
        )

        def loss(peers: Outputs) -> jax.Array:
            noted = {name: _noting(name, found)(x) for name, x in peers.items()}
            return rule.loss(own, noted, targets, experience.transitions)[0]

        value, backward = jax.vjp(loss, peers)
        (gradient,) = backward(jnp.ones_like(value))
        return gradient

    batch = jax.eval_shape(functools.partial(_experience, heads, num_actions))
    jax.eval_shape(back, batch, key)
    return bool(found)


def _noting(name: str, found: list[str]) -> jax.custom_vjp[jax.Array]:
    """Return an identity whose way back takes note that it is part of a gradient."""

    @jax.custom_vjp
    def identity(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
        found.append(name)
        return (cotangent,)

    identity.defvjp(lambda x: (x, None), backward)
    return identity


def _rows(outputs: Outputs, heads: tuple[Head, ...]) -> Outputs:
    """Return what a loss reads of outputs ``[..., T + 1, B, ...]``, in shape alone."""
    axis = -3
    rows = {}
    for head in heads:
        x = outputs[head.name]
        x = jax.lax.slice_in_dim(x, 0, _T, axis=x.ndim + axis - head.per_action)
        rows[head.name] = x[..., 0, :] if head.taken else x
    return rows


def _experience(heads: tuple[Head, ...], num_actions: int) -> Experience:
    """Return a small batch, for shapes."""

    def outputs(*lead: int) -> Outputs:
        lead = (*lead, _T + 1, _B)
        actions = {head.name: (num_actions,) * head.per_action for head in heads}
        return {h.name: jnp.zeros((*lead, *actions[h.name], h.size)) for h in heads}

    numbers, flags = jnp.zeros((_T, _B)), jnp.zeros((_T, _B), bool)
    return Experience(
        transitions=Transitions(
            actions=jnp.zeros((_T, _B), jnp.int32),
            behaviour_logits=jnp.zeros((_T, _B, num_actions)),
            rewards=numbers,
            is_terminal=flags,
            cut=flags,
            valid=flags,
            learn=numbers,
            own=flags,
        ),
        outputs=outputs(),
        target_outputs=outputs(),
        peers=Peers(
            outputs=outputs(_P),
            present=jnp.ones(_P, bool),
            returns=jnp.zeros(_B),
            success=jnp.zeros(_B, bool),
        ),
        clock=Clock(
            env_steps=jnp.zeros(()),
            agent_updates=jnp.zeros((), jnp.int32),
            lifetime_fraction=jnp.zeros(()),
        ),
    )
