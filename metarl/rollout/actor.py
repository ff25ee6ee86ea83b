"""Acting: pools and a population of agents make rollouts.

Host code. All groups' pools step concurrently, in EnvPool's threads, while the device
acts for one chunk of groups after another. Sits between `envs` and `agents`; must not
import `meta`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from metarl.agents.agent import Agent, AgentState
from metarl.config import EnvironmentConfig
from metarl.envs.pool import Episodes, PoolState, Step
from metarl.envs.pools import make_pools, pool_seed, restore_pools
from metarl.envs.tasks import Task
from metarl.rollout.buffers import Buffers, as_rollout, empty_buffers
from metarl.types import Rollout

_NO_EPISODES = Episodes(np.zeros(0), np.zeros(0, np.int64))

POOL_KEYS = (
    "epoch",
    "seed",
    "actions",
    "drained_steps",
    "checksum",
    "early_returns",
    "early_lengths",
)
"""What a pool's state consists of."""

PoolTree = dict[str, npt.NDArray[Any]]
"""A pool's state as arrays, for a checkpoint."""

Tree = TypeVar("Tree")


@partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent,
    agents: AgentState,
    observations: jax.Array,
    keys: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return actions ``[c, K, B]`` and behaviour logits ``[c, K, B, A]``."""

    def act_one(
        state: AgentState, observations: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return agent.act(state, observations, jax.random.fold_in(key, step))

    return jax.vmap(jax.vmap(act_one))(agents, observations, keys)


@partial(jax.jit, static_argnames="size")
def _chunk(tree: Tree, start: jax.Array, *, size: int) -> Tree:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=0), tree
    )


def split_groups(tree: Tree, sizes: tuple[int, ...]) -> list[Tree]:
    """Cut the axis G into chunks, once per rollout rather than once per step.

    One program per size: one for all chunks would grow with the number of groups.
    """
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    return [
        _chunk(tree, jax.device_put(start), size=size)
        for start, size in zip(starts, sizes, strict=True)
    ]


class Actor:
    """Lets the agents of ``G`` groups of ``K`` act, each in a pool of its own."""

    def __init__(
        self,
        agent: Agent,
        tasks: Sequence[Task],
        config: EnvironmentConfig,
        *,
        seeds: Sequence[int],
        seed_indices: Sequence[int] | None = None,
        peers: int = 1,
        chunk: int = 1,
    ) -> None:
        """Describe the actor; `start` or `restore` builds its pools.

        Args:
          agent: what all agents have in common.
          tasks: one per group.
          config: how they are played.
          seeds: base seed of each group's pools (the same one for all is fine, as
            the index of the group enters too).
          seed_indices: what enters beside it in place of the group's own index, so
            that a group's seeds need not depend on the groups beside it.
          peers: K.
          chunk: groups that one device call acts for.
        """
        self._agent, self._base_seeds, self._peers = agent, tuple(seeds), peers
        groups = len(tasks)
        self._seed_indices = tuple(seed_indices or range(groups))
        self._epochs = np.zeros((groups, peers), np.int64)
        self._pools = make_pools(
            [task for task in tasks for _ in range(peers)],
            config,
            seeds=[self._seed(i) for i in range(groups * peers)],
        )
        sizes = [chunk] * (groups // chunk)
        self._sizes = tuple(sizes + [groups % chunk] * (groups % chunk > 0))
        # Episodes of the epoch before, that were not drained when it ended.
        self._early = [_NO_EPISODES] * (groups * peers)
        self._times = {"env": 0.0, "inference": 0.0, "transfer": 0.0}
        self._interrupted = False
        self._shares_memory = jax.default_backend() == "cpu"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups G, peers K and environments B of each."""
        return len(self._base_seeds), self._peers, self._pools[0].num_envs

    def _seed(self, index: int) -> int:
        group, peer = divmod(index, self._peers)
        epoch = int(self._epochs[group, peer])
        index = self._seed_indices[group]
        return pool_seed(self._base_seeds[group], index, peer, epoch)

    def start(self, *, epoch: int = 0) -> None:
        """Build the pools and reset them.

        Args:
          epoch: of the pools; each has seeds of its own.
        """
        self._epochs[:] = epoch
        for i, pool in enumerate(self._pools):
            pool.rebuild(self._seed(i))

    def interrupt(self) -> None:
        """Let another thread's `collect` raise RuntimeError at its next step."""
        self._interrupted = True

    def close(self) -> None:
        """Free the environments."""
        for pool in self._pools:
            pool.close()

    def collect(
        self,
        agents: AgentState | list[AgentState],
        length: int,
        key: jax.Array,
    ) -> Rollout:
        """Act for ``length`` steps.

        On CPU the device reads the host's memory, which nobody writes to any more.

        Args:
          agents: ``[G, K]``, or the chunks of that; they act with the parameters
            they have.
          length: T.
          key: consumed; one key, or one for each agent, ``[G, K]``.

        Returns:
          A rollout ``[G, K, T, B]`` on the device.
        """
        on_host = self.collect_on_host(agents, length, key)
        start = time.perf_counter()
        rollout = jax.block_until_ready(jax.device_put(on_host))
        self._times["transfer"] += time.perf_counter() - start
        return rollout

    def collect_on_host(
        self,
        agents: AgentState | list[AgentState],
        length: int,
        key: jax.Array,
    ) -> Rollout:
        """Return what `collect` does, in NumPy arrays, for a replay."""
        self._begin_epochs()
        groups, peers, _ = self.shape
        chunks: list[AgentState] = (
            [_policy(chunk) for chunk in agents]
            if isinstance(agents, list)
            else split_groups(_policy(agents), self._sizes)
        )
        if key.ndim == 0:
            key = jax.random.split(key, (groups, peers))
        keys = split_groups(key, self._sizes)
        buffers = empty_buffers(self._pools[0].spec, self.shape, length=length)
        starts = np.concatenate([[0], np.cumsum(self._sizes)])
        steps = jax.device_put(list(np.arange(length, dtype=np.int32)))
        for g, k in self._members(range(groups)):
            pool = self._pools[g * self._peers + k]
            buffers["observations"][g, k, 0] = pool.observations
        # What moves is said, and moves once; between host and CPU nothing does.
        guard = "allow" if self._shares_memory else "disallow"
        with jax.transfer_guard(guard):
            for t in range(length):
                if self._interrupted:
                    raise RuntimeError("interrupted while acting")
                for i, (chunk, chunk_keys) in enumerate(zip(chunks, keys, strict=True)):
                    members = range(starts[i], starts[i + 1])
                    if t > 0:
                        self._receive(buffers, members, t - 1)
                    self._act(buffers, members, t, (chunk, chunk_keys, steps[t]))
            self._receive(buffers, range(groups), length - 1)
        return as_rollout(buffers)

    @property
    def num_pools(self) -> int:
        """How many pools there are, G K."""
        return len(self._pools)

    def begin_epoch(self, group: int) -> None:
        """Rebuild the pools of a group with new seeds, as for new agents."""
        for k in range(self._peers):
            self._renew(group * self._peers + k)

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent on each stage since the last call."""
        times, self._times = self._times, dict.fromkeys(self._times, 0.0)
        return times

    def drain_episodes(self) -> list[list[Episodes]]:
        """Return the episodes finished since the last call, ``[G][K]``."""
        drained = [
            _join(early, pool.drain_episodes())
            for early, pool in zip(self._early, self._pools, strict=True)
        ]
        self._early = [_NO_EPISODES] * len(self._pools)
        return [
            drained[i : i + self._peers] for i in range(0, len(drained), self._peers)
        ]

    # --- Checkpoints --------------------------------------------------------------

    def state(self) -> list[PoolTree]:
        """Return every pool's seed and actions; disturbs nothing."""
        trees: list[PoolTree] = []
        for pool, epoch, early in zip(
            self._pools, self._epochs.flat, self._early, strict=True
        ):
            state = pool.state()
            trees.append(
                {
                    "epoch": np.asarray(epoch),
                    "early_returns": early.returns,
                    "early_lengths": early.lengths,
                    "seed": np.asarray(state.seed),
                    "actions": state.actions,
                    "drained_steps": np.asarray(state.drained_steps),
                    "checksum": np.asarray(state.checksum),
                }
            )
        return trees

    def restore(
        self,
        states: Sequence[PoolTree],
        *,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Bring back what `state` returned, by replaying the actions.

        Args:
          states: one per pool.
          report: called with the environment steps done and to do.
        """
        epochs = [int(tree["epoch"]) for tree in states]
        self._epochs = np.array(epochs, np.int64).reshape(self._epochs.shape)
        self._early = [
            Episodes(
                np.asarray(tree["early_returns"]), np.asarray(tree["early_lengths"])
            )
            for tree in states
        ]
        pool_states = [
            PoolState(
                seed=int(tree["seed"]),
                actions=np.asarray(tree["actions"]),
                drained_steps=int(tree["drained_steps"]),
                checksum=int(tree["checksum"]),
            )
            for tree in states
        ]
        restore_pools(self._pools, pool_states, report=report)

    # --- One step -----------------------------------------------------------------

    def _begin_epochs(self) -> None:
        """Rebuild the pools whose history has grown long."""
        for i, pool in enumerate(self._pools):
            if pool.needs_new_epoch:
                self._renew(i)

    def _renew(self, index: int) -> None:
        pool = self._pools[index]
        # Not drained yet, and lost otherwise.
        self._early[index] = _join(self._early[index], pool.drain_episodes())
        self._epochs.flat[index] += 1
        pool.rebuild(self._seed(index))

    def _members(self, groups: range) -> list[tuple[int, int]]:
        return [(g, k) for g in groups for k in range(self._peers)]

    def _act(
        self,
        buffers: Buffers,
        groups: range,
        t: int,
        chunk: tuple[AgentState, jax.Array, jax.Array],
    ) -> None:
        start = time.perf_counter()
        agents, keys, step = chunk
        # On CPU the device reads this memory itself: see `empty_buffers`.
        seen = buffers["observations"][groups.start : groups.stop, :, t]
        if self._shares_memory:
            # As it is: put and get would hand a small network's work to another thread
            # and wait for it, which takes several times as long as the work.
            acted = _act(self._agent, agents, seen, keys, step)
            actions, logits = (np.asarray(x) for x in acted)
        else:
            actions, logits = jax.device_get(
                _act(self._agent, agents, jax.device_put(seen), keys, step)
            )
        buffers["actions"][groups.start : groups.stop, :, t] = actions
        buffers["behaviour_logits"][groups.start : groups.stop, :, t] = logits
        for g, k in self._members(groups):
            self._pools[g * self._peers + k].send(buffers["actions"][g, k, t])
        self._times["inference"] += time.perf_counter() - start

    def _receive(self, buffers: Buffers, groups: range, t: int) -> None:
        start = time.perf_counter()
        for g, k in self._members(groups):
            into = buffers["observations"][g, k, t + 1]
            step: Step = self._pools[g * self._peers + k].recv(into)
            for name in ("rewards", "raw_rewards", "is_terminal", "cut", "valid"):
                buffers[name][g, k, t] = getattr(step, name)
        self._times["env"] += time.perf_counter() - start


def _policy(agents: AgentState) -> AgentState:
    """Return the agents without what learning alone needs, for there is much of it."""
    return dataclasses.replace(
        agents,
        target_params={},
        optimizer=dataclasses.replace(agents.optimizer, mu={}, nu={}),
        rule_state={},
    )


def _join(first: Episodes, then: Episodes) -> Episodes:
    return Episodes(
        returns=np.concatenate([first.returns, then.returns]),
        lengths=np.concatenate([first.lengths, then.lengths]),
    )
