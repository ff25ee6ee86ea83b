"""What one update of a single agent gave before there were groups, by rule.

`data/group_of_one.npz` was written by this file, run as a script, at the last commit
whose agents evaluated the pooled batch whatever their rule read. It is not to be
written again: what it holds is the behaviour that groups must leave as it was.

    PYTHONPATH=.:tests python -m contract.recorded
"""

from __future__ import annotations

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from contract.rule_cases import RULES

from metarl.agents import group
from metarl.agents.agent import Agent, AgentState
from metarl.config import OptimizerConfig
from metarl.rules.base import UpdateRule
from metarl.types import Params, Rollout

FILE = Path(__file__).parent / "data" / "group_of_one.npz"
STEPS, BATCH = 5, 4  # 20 transitions, which the 4 minibatches of PPO divide

Inputs = tuple[Params, AgentState, Rollout, jax.Array]


def agent_of(rule: UpdateRule) -> Agent:
    """Return agents on a tiny network, whose optimiser leaves no option out."""
    optimizer = OptimizerConfig(
        learning_rate=0.05, max_abs_update=0.9, weight_decay=0.1, max_grad_norm=0.8
    )
    network = tiny.network_for(rule)
    return Agent(rule, network, tiny.NUM_ACTIONS, optimizer, 1000)


def inputs_of(name: str, rule: UpdateRule, *, peers: int = 1) -> Inputs:
    """Return meta-parameters, agents in mid-life ``[K]``, rollouts ``[K]`` and a key.

    Drawn by NumPy, so that they do not depend on how agents are born. Those of the
    first agent do not depend on how many there are.
    """
    seed = zlib.crc32(name.encode())
    rng = np.random.default_rng(seed)
    meta_params = _drawn(rng, jax.eval_shape(rule.init_params, jax.random.key(0)), 0.3)
    agents = [_agent(rule, seed + 1 + k) for k in range(peers)]
    rollouts = [tiny.rollout(100 + k, steps=STEPS, batch=BATCH) for k in range(peers)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *agents)
    joined = jax.tree.map(lambda *x: jnp.stack(x), *rollouts)
    return meta_params, stacked, joined, jax.random.key(3)


def leaves_of(after: AgentState, record: group.UpdateRecord) -> dict[str, np.ndarray]:
    """Return what an update gave as arrays by name, axis K as it is."""
    tree = {
        "after": after,
        "targets": record.targets,
        "grads": record.grads,
        "metrics": record.metrics,
    }
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}


def _agent(rule: UpdateRule, seed: int) -> AgentState:
    rng = np.random.default_rng(seed)
    agent = agent_of(rule)
    example = jax.ShapeDtypeStruct((1, tiny.OBSERVATION), jnp.result_type(float))
    shapes = jax.eval_shape(agent.init, jax.random.key(0), example)
    optimizer = shapes.optimizer
    return AgentState(
        params=_drawn(rng, shapes.params, 0.5),
        target_params=_drawn(rng, shapes.target_params, 0.5),
        optimizer=type(optimizer)(
            count=jnp.asarray(4, optimizer.count.dtype),
            mu=_drawn(rng, optimizer.mu, 0.03),
            nu=jax.tree.map(jnp.square, _drawn(rng, optimizer.nu, 0.03)),
        ),
        # Positive, as variances and decays are.
        rule_state=jax.tree.map(
            lambda x: jnp.asarray(rng.uniform(0.1, 0.9, x.shape), x.dtype),
            shapes.rule_state,
        ),
        env_steps=jnp.asarray(60, jnp.int32),
        agent_updates=jnp.asarray(3, jnp.int32),
    )


def _drawn(rng: np.random.Generator, shapes: Params, scale: float) -> Params:
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes
    )


def _write() -> None:
    arrays: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        for name, rule in RULES.items():
            agent, inputs = agent_of(rule), inputs_of(name, rule)
            update = jax.jit(
                lambda *x, agent=agent: group.update(agent, *x),
                compiler_options=tiny.QUICK,
            )
            found = leaves_of(*update(*inputs))
            arrays |= {f"{name}{path}": x for path, x in found.items()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    _write()
