"""Tests agents that have learned: among distractors, among unseen ones, and without.

After Zhang et al. (MDPO, arXiv 2501.02481), who measure how far a policy moves when
what is irrelevant in a frame changes. Pools and keys are its own, so that testing
changes nothing elsewhere. Host code under `training.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
import numpy.typing as npt

from metarl.agents.agent import Agent, AgentState
from metarl.config import DistractorsConfig, EnvironmentConfig, RobustnessConfig
from metarl.console import heartbeat
from metarl.envs.distractors import DistractorSet, Frames, training_set, unseen_set
from metarl.envs.pool import Pool
from metarl.envs.pools import pool_seed
from metarl.envs.tasks import Task
from metarl.evaluation.cell_records import (
    finite,
)
from metarl.evaluation.cells import Cell
from metarl.evaluation.robustness_records import Robustness

Floats = npt.NDArray[np.float64]

Policy = Callable[[Frames, int], tuple[npt.NDArray[np.int32], Floats]]
"""Actions ``[B]`` and logits ``[B, A]`` for the frames of a step, by its number."""

MAX_STEPS = 27_000
"""Of an episode: the longest of Atari, 108,000 frames. Games of which an episode may
be longer count up to there."""

# What tells these pools and keys from those that learn (index 0; keys folded with the
# number of the iteration) and those of videos (1; 2**32 - 1).
_POOL_INDEX = 2
_KEY = np.uint32(2**32 - 2)


def robustness_of(
    cell: Cell, agent: Agent, states: Sequence[AgentState]
) -> tuple[Robustness, ...]:
    """Return how robust the agents of a cell are; of none where that is not asked.

    All of them, and those of other rules with the same seed, play from the same
    seeds, each distractor in the same environments.

    Args:
      cell: that is done.
      agent: what its agents have in common.
      states: of each peer.
    """
    settings = cell.settings
    if settings.robustness.episodes == 0:
        return ()
    key = jax.random.fold_in(jax.random.key(cell.base_seed), _KEY)
    seed = pool_seed(cell.base_seed, _POOL_INDEX, 0, 0)
    with heartbeat(f"testing {cell.name} among distractors"):
        return tuple(
            measure(
                policy_of(agent, state, key),
                cell.task,
                settings.environment,
                settings.robustness,
                seed=seed,
            )
            for state in states
        )


def measure(
    policy: Policy,
    task: Task,
    environment: EnvironmentConfig,
    config: RobustnessConfig,
    *,
    seed: int,
) -> Robustness:
    """Return how a policy plays, and moves, among distractors.

    Args:
      policy: such as `policy_of(...)`.
      task: what is played.
      environment: how, and which distractors agents learn among.
      config: how many episodes and unseen distractors.
      seed: of the environments, of which each plays one episode.
    """
    clean = environment.model_copy(update={"distractors": DistractorsConfig()})
    pool = Pool(
        task,
        clean,
        num_envs=config.episodes,
        seed=seed,
        num_threads=environment.num_threads,
    )
    train = training_set(environment.distractors, pool.spec)
    unseen = unseen_set(environment.distractors, pool.spec, config.unseen)
    try:
        clean_play = _play(policy, pool, compared=(train, unseen))
        train_play = _play(policy, pool, shown=train)
        unseen_play = _play(policy, pool, shown=unseen)
    finally:
        pool.close()
    train_kl, unseen_kl = clean_play.divergences
    return Robustness(
        episodes=config.episodes,
        clean_return=finite(clean_play.mean_return),
        train_return=finite(train_play.mean_return),
        unseen_return=finite(unseen_play.mean_return),
        train_kl=finite(train_kl),
        unseen_kl=finite(unseen_kl),
    )


def policy_of(agent: Agent, state: AgentState, key: jax.Array) -> Policy:
    """Return the policy of one agent as it acts while it learns.

    Args:
      agent: what it has in common with others.
      state: of it alone, without leading axes.
      key: consumed.
    """

    def act(frames: Frames, step: int) -> tuple[npt.NDArray[np.int32], Floats]:
        given = jax.device_put((frames, np.uint32(step)))
        actions, logits = jax.device_get(_act(agent, state, given[0], key, given[1]))
        return actions, logits.astype(np.float64)

    return act


@partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent,
    state: AgentState,
    frames: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return actions ``i32[B]`` and logits ``[B, A]``."""
    return agent.act(state, frames, jax.random.fold_in(key, step))


@dataclasses.dataclass(frozen=True)
class _Play:
    """One episode of each environment of a pool.

    Attributes:
      mean_return: of the episodes.
      divergences: of each set that was compared, mean over all states.
    """

    mean_return: float
    divergences: tuple[float, ...]


def _play(
    policy: Policy,
    pool: Pool,
    *,
    shown: DistractorSet | None = None,
    compared: Sequence[DistractorSet] = (),
) -> _Play:
    """Play one episode in each environment.

    In environment i an episode has distractor i of a set, or i modulo its size.

    Args:
      policy: sees the frames.
      pool: shows clean ones.
      shown: the set that the policy acts among; None: on clean frames.
      compared: sets that its policy is compared with the present one on.
    """
    numbers = np.arange(pool.num_envs)
    frames = pool.reset()
    returns, is_on = np.zeros(pool.num_envs), np.ones(pool.num_envs, np.bool_)
    totals, num_states = np.zeros(len(compared)), 0
    for step in range(MAX_STEPS):
        seen = frames if shown is None else shown.altered(frames, numbers % len(shown))
        actions, logits = policy(seen, step)
        moved = [
            kl_divergence(
                logits, policy(others.altered(frames, numbers % len(others)), step)[1]
            )
            for others in compared
        ]
        played = pool.step(actions)
        # Where this was the reset after its end, an episode is over.
        is_on &= played.valid
        if not is_on.any():
            break
        returns[is_on] += played.raw_rewards[is_on]
        totals += [float(found[is_on].sum()) for found in moved]
        num_states += int(is_on.sum())
        frames = played.observations
    return _Play(float(returns.mean()), tuple(float(x) for x in totals / num_states))


def kl_divergence(logits: Floats, others: Floats) -> Floats:
    """Return KL(softmax(logits) || softmax(others)) in nats, ``[B]``.

    Infinite where an action has no chance in the second alone; nan of policies that
    are nan.
    """
    log_p, log_q = _log_softmax(logits), _log_softmax(others)
    chance = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # of two actions without a chance
        terms = chance * (log_p - log_q)
    found: Floats = np.where(chance == 0, 0.0, terms).sum(axis=-1)
    return found


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_pi: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_pi
