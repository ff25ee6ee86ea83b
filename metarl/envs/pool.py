"""The EnvPool adapter: every fact about how environments behave is here.

Host code in NumPy: actions in, steps out. The actor (`metarl/rollout`) puts its arrays
on the device; must not import jax.

What EnvPool does, and the tests pin:
- the call after a done discards its action and returns the first observation of the
  next episode, with reward 0: a transition that does not exist, ``valid`` False;
- a time limit sets `truncated`, even where the world ended the episode in the same
  step, which `families.py` tells apart;
- environment i of a pool is seeded with seed + i, and all that happens follows from
  the seed and the actions, whatever the number of threads. It cannot save an emulator:
  a pool's state is its seed and its actions so far, and restoring replays them.

What agents see may be altered by distractors (`distractors.py`), and by nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import envpool
import numpy as np
import numpy.typing as npt

from metarl.config import EnvironmentConfig
from metarl.envs import distractors, families, suites, tasks

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Observations = npt.NDArray[np.generic]

MAX_ENVS = 4096
"""Environments that a pool may have; `pools.pool_seed` spaces its seeds by that."""


class _Environments(Protocol):
    """The part of EnvPool's interface that is used."""

    def reset(self) -> tuple[families.Raw, Mapping[str, families.Array]]: ...

    def send(self, action: npt.NDArray[np.int32]) -> None: ...

    def recv(
        self,
    ) -> tuple[families.Raw, Floats, Bools, Bools, Mapping[str, families.Array]]: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Step:
    """What one call returned for each environment."""

    observations: Observations  # [B, ...] after the transition
    rewards: Floats  # f32[B] to train on: clipped if so configured
    raw_rewards: Floats  # f32[B]
    is_terminal: Bools  # bool[B] the episode (or life, if asked for) ended
    cut: Bools  # bool[B] the time limit ended it: bootstrap from observations
    valid: Bools  # bool[B] False where this was the reset after a done


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Finished episodes, in the order in which they ended."""

    returns: npt.NDArray[np.float64]  # sums of raw rewards, over all lives
    lengths: npt.NDArray[np.int64]  # in agent steps


@dataclasses.dataclass(frozen=True, eq=False)
class PoolState:
    """All that is needed to bring a pool back.

    Attributes:
      seed: that it was built with.
      actions: ``u8[S, B]``, every action since.
      drained_steps: steps after which its episodes were last drained.
      checksum: CRC-32 of the last observations, by which a replay is checked.
    """

    seed: int
    actions: npt.NDArray[np.uint8]
    drained_steps: int
    checksum: int


class Pool:
    """A batch of environments that play one task in step.

    `send` returns at once, so that several pools step at the same time: send to all,
    then `recv` from each.
    """

    def __init__(
        self,
        task: tasks.Task | suites.Game | str,
        config: EnvironmentConfig,
        *,
        num_envs: int,
        seed: int,
        num_threads: int = 1,
    ) -> None:
        """Describe a pool; `reset` (or `restore`) builds it.

        Args:
          task: what to play; a game alone is played without suite options.
          config: how to play it.
          num_envs: B.
          seed: of the first environment; see `pools.pool_seed`.
          num_threads: EnvPool's; changes no result.
        """
        if not 1 <= num_envs <= MAX_ENVS:
            raise ValueError(f"num_envs: {num_envs} (allowed: 1 to {MAX_ENVS})")
        _check_seed(seed, num_envs)
        if isinstance(task, str):
            task = suites.get_game(task)
        if isinstance(task, suites.Game):
            task = tasks.Task(task)
        self.task = task
        self.config = tasks.as_played(task, config)
        self.spec = tasks.pool_spec(task, config)
        self.num_envs = num_envs
        self.seed = seed
        self.num_threads = num_threads
        self._options = tasks.envpool_options(task, config)
        self._action_map = tasks.action_map(task, config)
        self._family = families.family_of(task, config)
        self._distractors: distractors.DistractorSet | None = None
        if config.distractors.kind != "none":
            self._distractors = distractors.training_set(config.distractors, self.spec)
        self._env: _Environments | None = None
        self._in_flight = False

    # --- Playing ------------------------------------------------------------------

    def reset(self) -> Observations:
        """Build the environments anew from the seed; return what they show first."""
        self.close()
        with quiet():
            environments = self._build()
            raw, info = environments.reset()
        self._env = environments
        self._episode = np.zeros(self.num_envs, np.int64)  # of each environment
        self._observations = self._encode(raw)
        self._done = np.zeros(self.num_envs, np.bool_)
        self._lives = _lives(info, self.num_envs)
        self._actions = np.empty((256, self.num_envs), np.uint8)
        self._steps = 0
        self._drained_steps = 0
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._finished: list[tuple[float, int]] = []
        return self._observations

    def _build(self) -> _Environments:
        task_id = self.task.game.task_id
        if self.task.game.family == "gymnasium":
            from metarl.envs.gymnasium_pool import GymnasiumEnvironments

            return GymnasiumEnvironments(
                task_id, num_envs=self.num_envs, seed=self.seed
            )
        environments: _Environments = envpool.make(
            task_id,
            env_type="gymnasium",
            num_envs=self.num_envs,
            batch_size=self.num_envs,  # synchronous: outputs in the order of ids
            num_threads=min(self.num_threads, self.num_envs),
            seed=self.seed,
            **self._options,
        )
        return environments

    @property
    def observations(self) -> Observations:
        """The newest observations ``[B, ...]``, read-only."""
        return self._observations

    @property
    def distractor_numbers(self) -> distractors.Numbers:
        """Which distractor each environment shows in this episode, ``[B]``."""
        if self._distractors is None:
            return np.full(self.num_envs, distractors.CLEAN)
        seeds = self.seed + np.arange(self.num_envs)
        return distractors.draw(len(self._distractors), seeds, self._episode)

    def send(self, actions: npt.NDArray[np.integer]) -> None:
        """Let every environment take its action ``[B]``; returns at once."""
        if self._env is None or self._in_flight:
            raise RuntimeError("send needs a pool after reset, and a recv in between")
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions: shape {actions.shape}, not ({self.num_envs},)")
        if actions.min() < 0 or actions.max() >= self.spec.num_actions:
            # EnvPool would read past the end of its table of actions.
            raise ValueError(
                f"actions: {actions.min()} to {actions.max()} "
                f"(allowed: 0 to {self.spec.num_actions - 1})"
            )
        if self._steps == len(self._actions):
            self._actions = np.concatenate(
                [self._actions, np.empty_like(self._actions)]
            )
        self._actions[self._steps] = actions
        sent = actions.astype(np.int32)
        self._env.send(sent if self._action_map is None else self._action_map[sent])
        self._in_flight = True

    def recv(self, into: Observations | None = None) -> Step:
        """Wait for what the last `send` led to.

        Args:
          into: ``[B, ...]``, where the observations are written, and then left alone
            until the next call; None: a new array.
        """
        return self._receive(encode=True, into=into)

    def step(self, actions: npt.NDArray[np.integer]) -> Step:
        """`send` and `recv`."""
        self.send(actions)
        return self.recv()

    def drain_episodes(self) -> Episodes:
        """Return the episodes that finished since the last call."""
        finished, self._finished = self._finished, []
        self._drained_steps = self._steps
        return Episodes(
            returns=np.array([total for total, _ in finished], np.float64),
            lengths=np.array([length for _, length in finished], np.int64),
        )

    def close(self) -> None:
        """Stop the threads and free the environments."""
        if self._env is not None:
            if self._in_flight:
                self._env.recv()
            self._env.close()
        self._env = None
        self._in_flight = False

    def _receive(self, *, encode: bool, into: Observations | None = None) -> Step:
        if self._env is None or not self._in_flight:
            raise RuntimeError("recv needs a send before it")
        raw, raw_rewards, terminated, truncated, info = self._env.recv()
        self._in_flight = False
        self._steps += 1
        valid = ~self._done
        self._episode += self._done
        self._done = terminated | truncated
        is_terminal = terminated.copy()
        if truncated.any():
            is_terminal |= truncated & self._family.ended(raw, raw_rewards, info)
        lives = _lives(info, self.num_envs)
        if self.config.atari.episodic_life:
            # Some games count 0 lives for a while before the game is over: that end
            # comes with `terminated`.
            is_terminal |= valid & (lives > 0) & (lives < self._lives)
        self._lives = lives
        self._count_episodes(raw_rewards, valid)
        if encode:
            self._observations = self._encode(raw, into)
        rewards = raw_rewards
        if self.config.clip_rewards:
            rewards = np.clip(raw_rewards, -1, 1)
        return Step(
            observations=self._observations,
            rewards=rewards,
            raw_rewards=raw_rewards,
            is_terminal=is_terminal,
            cut=truncated & ~is_terminal,
            valid=valid,
        )

    def _encode(
        self, raw: families.Raw, into: Observations | None = None
    ) -> Observations:
        if into is None:
            shape = (self.num_envs, *self.spec.observation_shape)
            into = np.empty(shape, self.spec.observation_dtype)
        self._family.encode(raw, into)
        if self._distractors is not None:
            self._distractors.alter(into, self.distractor_numbers)
        observations = into.view()
        observations.flags.writeable = False  # the caller and the pool share it
        return observations

    def _count_episodes(self, raw_rewards: Floats, valid: Bools) -> None:
        self._returns += raw_rewards
        self._lengths += valid
        for i in np.flatnonzero(self._done):
            self._finished.append((float(self._returns[i]), int(self._lengths[i])))
        self._returns[self._done] = 0.0
        self._lengths[self._done] = 0

    # --- Epochs and checkpoints ---------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps of each environment since the pool was built."""
        return self._steps

    @property
    def needs_new_epoch(self) -> bool:
        """Whether it is time for `rebuild`, which bounds the replay at resume."""
        return self._steps >= self.config.epoch_steps

    def rebuild(self, seed: int) -> Observations:
        """Start anew with another seed; unfinished and undrained episodes are lost."""
        _check_seed(seed, self.num_envs)
        self.seed = seed
        return self.reset()

    def state(self) -> PoolState:
        """Return what `restore` needs, which stays as it is; disturbs nothing."""
        if self._in_flight:
            raise RuntimeError("state needs a recv after the last send")
        actions = self._actions[: self._steps]  # to which later ones are only added
        actions.flags.writeable = False
        return PoolState(
            seed=self.seed,
            actions=actions,
            drained_steps=self._drained_steps,
            checksum=zlib.crc32(self._observations.tobytes()),
        )

    def restore(self, state: PoolState) -> Observations:
        """Bring back what `state` was taken of, by replaying its actions."""
        for _ in self.replaying(state):
            pass
        return self._observations

    def replaying(self, state: PoolState) -> Iterator[None]:
        """Restore step by step, pausing while the environments are at work.

        So that several pools can replay at the same time; see `restore_pools`.

        Raises:
          RuntimeError: the replay led elsewhere, as another version of EnvPool may.
        """
        num_steps, num_envs = state.actions.shape
        game = self.task.game.task_id
        if num_envs != self.num_envs:
            raise ValueError(
                f"num_envs: the saved state of {game} has {num_envs} environments, "
                f"this pool {self.num_envs}"
            )
        self.rebuild(state.seed)
        for t in range(num_steps):
            self.send(state.actions[t])
            yield
            self._receive(encode=t == num_steps - 1)
            if t + 1 == state.drained_steps:
                self.drain_episodes()
        if self.state().checksum != state.checksum:
            raise RuntimeError(
                f"{game}: replaying {num_steps} steps led to other observations; was "
                "the state saved with another EnvPool, or with other options?"
            )


def _check_seed(seed: int, num_envs: int) -> None:
    # The seeds of all environments are int32; -1 would be the emulator's time of day.
    if not 0 <= seed <= 2**31 - num_envs:
        raise ValueError(f"seed: {seed} (allowed: 0 to {2**31 - num_envs})")


def _lives(info: Mapping[str, object], num_envs: int) -> npt.NDArray[np.int32]:
    """Return the lives left, 0 where a game has none."""
    return np.asarray(info.get("lives", np.zeros(num_envs)), np.int32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Gymnasium's remark that CartPole's bounds are rounded to float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield
