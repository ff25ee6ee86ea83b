"""Groups of agents as arrays: each agent's own trajectories, and its peers' outputs.

No networks: an agent is its outputs on the pooled batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from contract.experience import make_experience

from metarl.agents.lesson import others
from metarl.rules.base import Metrics, RuleState, Targets, UpdateRule
from metarl.types import Experience, Outputs, Peers, Transitions, drop_invalid

KEY = jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class Group:
    """K agents on one pooled batch; trajectory ``k B + b`` is the b-th of agent k."""

    experience: Experience  # own flags and peers are filled in per agent
    outputs: Outputs  # [K, T+1, K B, ...]
    target_outputs: Outputs
    present: jax.Array  # bool[K]

    @property
    def size(self) -> int:
        return len(self.present)

    def of(self, k: int) -> Experience:
        """Return what agent k is told."""
        t = self.experience.transitions
        owner = jnp.arange(t.valid.shape[1]) // (t.valid.shape[1] // self.size)
        own = jnp.broadcast_to(owner == k, t.valid.shape)
        rows = others(self.size)[k]
        # As the interface asks: what an absent agent collected does not exist.
        valid = t.valid & self.present[owner][None]
        return dataclasses.replace(
            self.experience,
            transitions=dataclasses.replace(t, own=own, valid=valid),
            outputs={name: x[k] for name, x in self.outputs.items()},
            target_outputs={name: x[k] for name, x in self.target_outputs.items()},
            peers=Peers(
                outputs={name: x[rows] for name, x in self.outputs.items()},
                present=self.present[rows],
                returns=self.experience.peers.returns,
                success=self.experience.peers.success,
            ),
        )


def make_group(
    rule: UpdateRule, peers: int, seed: int = 0, *, T: int = 4, B: int = 3, A: int = 3
) -> Group:
    """Return ``peers`` agents with random outputs, and B trajectories of each."""
    keys = jax.random.split(jax.random.key(seed), peers)
    all_of = [make_experience(k, rule, T=T, B=B * peers, A=A) for k in keys]

    def stack(*x: jax.Array) -> jax.Array:
        return jnp.asarray(np.stack(x))

    return Group(
        experience=all_of[0],
        outputs=jax.tree.map(stack, *(e.outputs for e in all_of)),
        target_outputs=jax.tree.map(stack, *(e.target_outputs for e in all_of)),
        present=jnp.ones(peers, bool),
    )


def teach(
    rule: UpdateRule, experience: Experience, state: RuleState | None = None
) -> tuple[Targets, RuleState, Metrics]:
    """Return a hand-written rule's targets, new state and scalars to log."""
    state = rule.init_state() if state is None else state
    meta_params = rule.init_params(jax.random.key(3))
    return rule.targets(meta_params, state, experience, KEY)


def rows(experience: Experience) -> tuple[Outputs, Outputs]:
    """Return the own and the peers' outputs that a loss reads."""
    own = {name: x[:-1] for name, x in experience.outputs.items()}
    peers = {name: x[:, :-1] for name, x in experience.peers.outputs.items()}
    return own, peers


def agent_loss(
    rule: UpdateRule,
    experience: Experience,
    targets: Targets,
    own: Outputs,
    peers: Outputs,
) -> jax.Array:
    """Return the scalar loss of one agent: per own learning transition."""
    transitions: Transitions = drop_invalid(experience.transitions)
    loss, _ = rule.loss(own, peers, targets, transitions)
    weight = transitions.valid * transitions.learn
    return jnp.sum(loss * weight) / (jnp.sum(weight * transitions.own) + 1e-8)


def loss_and_gradient(
    rule: UpdateRule, experience: Experience
) -> tuple[jax.Array, Outputs]:
    """Return one agent's loss, and its gradient for the agent's own outputs."""
    own, peers = rows(experience)

    @jax.jit
    def run(experience: Experience, own: Outputs, peers: Outputs) -> tuple:
        targets, _, _ = teach(rule, experience)
        return jax.value_and_grad(
            lambda own: agent_loss(rule, experience, targets, own, peers)
        )(own)

    return run(experience, own, peers)


def assert_finite_differences(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, *, tolerance: float = 1e-7
) -> jax.Array:
    """Assert that a scalar function's gradient is its slope everywhere; return it."""
    gradient = jax.jit(jax.grad(function))(x)
    steps = jnp.eye(x.size).reshape(x.size, *x.shape) * 1e-6
    up, down = (
        jax.jit(jax.vmap(lambda e, s=s: function(x + s * e)))(steps) for s in (1, -1)
    )
    slopes = ((up - down) / 2e-6).reshape(x.shape)
    np.testing.assert_allclose(gradient, slopes, atol=tolerance, rtol=0)
    return gradient


def joint_loss(rule: UpdateRule, group: Group) -> Callable[[Outputs], jax.Array]:
    """Return the sum of all agents' losses as a function of ``[K, T, K B, ...]``.

    Targets are those of the group's outputs, whatever the function is given.
    """
    experiences = [group.of(k) for k in range(group.size)]
    targets = [teach(rule, e)[0] for e in experiences]

    def total(outputs: Outputs) -> jax.Array:
        losses = []
        for k, experience in enumerate(experiences):
            index = others(group.size)[k]
            own = {name: x[k] for name, x in outputs.items()}
            peers = {name: x[index] for name, x in outputs.items()}
            losses.append(agent_loss(rule, experience, targets[k], own, peers))
        return sum(losses)

    return total
