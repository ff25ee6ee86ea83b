"""Synthetic experience for any rule: random outputs, and flags of every kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metarl.rules.base import Head, UpdateRule
from metarl.types import Clock, Experience, Outputs, Peers, Transitions


def make_transitions(
    rng: np.random.Generator, *, T: int, B: int, A: int, dtype: np.dtype
) -> Transitions:
    """Return random transitions ``[T, B]``; ends of episodes are as in EnvPool.

    The transition after a terminal or cut one does not exist: it leads to the reset
    frame. Whatever B and T >= 3 are, trajectory 0 has a terminal transition, and
    trajectory B - 1 a cut one. All are the agent's own.
    """
    is_terminal, cut = rng.random((2, T, B)) < 0.1
    is_terminal[1, 0], cut[1, -1] = True, True
    valid = np.ones((T, B), bool)
    for t in range(T - 1):
        valid[t + 1] = ~((is_terminal[t] | cut[t]) & valid[t])
    return Transitions(
        actions=jnp.asarray(rng.integers(A, size=(T, B)), jnp.int32),
        behaviour_logits=jnp.asarray(rng.normal(size=(T, B, A)), dtype),
        rewards=jnp.asarray(rng.normal(size=(T, B)), dtype),
        is_terminal=jnp.asarray(is_terminal),
        cut=jnp.asarray(cut & ~is_terminal),
        valid=jnp.asarray(valid),
        learn=jnp.asarray(rng.choice([0, 0.5, 1, 1], size=(T, B)), dtype),
        own=jnp.ones((T, B), bool),
    )


def make_outputs(
    rng: np.random.Generator,
    heads: tuple[Head, ...],
    lead: tuple[int, ...],
    *,
    A: int,
    dtype: np.dtype,
) -> Outputs:
    """Return random outputs ``[*lead, size]``, or ``[*lead, A, size]`` per action."""

    def shape(head: Head) -> tuple[int, ...]:
        return (*lead, A, head.size) if head.per_action else (*lead, head.size)

    return {
        head.name: jnp.asarray(rng.normal(size=shape(head)), dtype) for head in heads
    }


def make_experience(
    key: jax.Array,
    rule: UpdateRule,
    *,
    T: int = 6,
    B: int = 4,
    A: int = 3,
    P: int = 0,
    dtype: np.dtype | type | None = None,
) -> Experience:
    """Return a random batch as ``rule`` would get it.

    Args:
      key: what everything is drawn from; not traced.
      rule: whose heads the outputs have.
      T: transitions.
      B: trajectories.
      A: actions.
      P: other agents.
      dtype: of the floats; None: JAX's default float.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    dtype = jnp.result_type(float) if dtype is None else np.dtype(dtype)
    spec = rule.spec(A)

    def outputs(*lead: int) -> Outputs:
        return make_outputs(rng, spec.heads, (*lead, T + 1, B), A=A, dtype=dtype)

    return Experience(
        transitions=make_transitions(rng, T=T, B=B, A=A, dtype=dtype),
        outputs=outputs(),
        target_outputs=outputs() if spec.target_network.kind != "none" else {},
        peers=Peers(
            outputs=outputs(P),
            present=jnp.ones(P, bool),
            returns=jnp.asarray(rng.normal(size=B), dtype),
            success=jnp.asarray(rng.random(B) < 0.5),
        ),
        clock=Clock(
            env_steps=jnp.asarray(1000, dtype),
            agent_updates=jnp.asarray(10, jnp.int32),
            lifetime_fraction=jnp.asarray(0.1, dtype),
        ),
    )
