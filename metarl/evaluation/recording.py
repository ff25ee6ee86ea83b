"""Plays one episode for a person to watch: an agent, or nobody in particular.

Between `envs/render.py`, which shows a task, and whoever wants the frames. Pools,
screens and keys are its own, so that recording changes nothing elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from metarl.agents.agent import Agent, AgentState
from metarl.config import EnvironmentConfig
from metarl.envs.pool import Observations, Pool
from metarl.envs.render import FPS, Frame, Screen
from metarl.envs.tasks import Task

MAX_FRAMES = 180 * FPS
"""Longest recording: three minutes."""

Policy = Callable[[Observations, int], int]
"""The action for the observations ``[1, ...]`` of a step, whose number comes along."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """What happened in the episode.

    Attributes:
      episode_return: of raw rewards, as far as it was recorded.
      env_steps: it took.
      num_frames: handed out, `FPS` per second.
      is_cut: whether it was longer than `MAX_FRAMES` and ends in the middle.
    """

    episode_return: float
    env_steps: int
    num_frames: int
    is_cut: bool


@partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent,
    state: AgentState,
    observations: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """Return actions ``i32[1]``."""
    return agent.act(state, observations, jax.random.fold_in(key, step))[0]


def agent_policy(agent: Agent, state: AgentState, key: jax.Array) -> Policy:
    """Return the policy of one agent as it stands.

    Args:
      agent: what it has in common with others.
      state: of it alone, without leading axes.
      key: consumed.
    """

    def act(observations: Observations, step: int) -> int:
        given = jax.device_put((observations, np.int32(step)))
        return int(jax.device_get(_act(agent, state, given[0], key, given[1]))[0])

    return act


def random_policy(num_actions: int, *, seed: int) -> Policy:
    """Return a policy that draws every action uniformly."""
    draw = np.random.default_rng(seed)
    return lambda _, __: int(draw.integers(num_actions))


def record_episode(
    policy: Policy,
    task: Task,
    config: EnvironmentConfig,
    *,
    seed: int,
    on_frame: Callable[[Frame], None],
    max_frames: int = MAX_FRAMES,
) -> Recording:
    """Play one whole episode, all lives of it, and hand out what it looks like.

    Args:
      policy: such as `agent_policy(...)`.
      task: what is played.
      config: how.
      seed: of the environment.
      on_frame: called with every frame ``u8[H, W, 3]``; `list.append` will do.
      max_frames: after which a recording ends in the middle of the episode.

    Raises:
      UserError: the task's environment shows nothing.
      RuntimeError: the screen went another way than the pool.
    """
    pool = Pool(task, config, num_envs=1, seed=seed)
    screen = Screen(task, config, seed=seed)
    total, step, num_frames = 0.0, 0, 0
    try:
        observations, frames = pool.reset(), screen.reset()
        is_over = False
        while True:
            kept = frames[: max_frames - num_frames]
            for frame in kept:
                on_frame(frame)
            num_frames += len(kept)
            is_cut = not is_over and num_frames == max_frames
            if is_over or is_cut:
                return Recording(total, step, num_frames, is_cut)
            action = policy(observations, step)
            played, shown = pool.step(np.array([action])), screen.step(action)
            reward = float(played.raw_rewards[0])
            is_over = len(pool.drain_episodes().lengths) > 0
            if (reward, is_over) != (shown.reward, shown.is_over):
                raise RuntimeError(
                    f"{task.game.task_id}: step {step} was played and shown with "
                    f"rewards {reward} and {shown.reward}, and ends {is_over} and "
                    f"{shown.is_over}"
                )
            observations, frames = played.observations, shown.frames
            total, step = total + reward, step + 1
    finally:
        pool.close()
        screen.close()
