"""The rollouts of a meta-step, acted ahead of their use where that changes nothing.

Host code, between the actor and the training loop. Which parameters act for which
rollout is fixed by the configuration and never by what happens to be ready, so the
results are the same with and without a thread; must not import `meta`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from metarl.agents.agent import AgentState
from metarl.config import Acting, MetaConfig
from metarl.envs.pool import Episodes
from metarl.rollout.actor import Actor, PoolTree
from metarl.types import Rollout

MAX_AHEAD = 2
"""Rollouts that are acted, or being acted, before they are asked for: each takes
memory, and one that waits while the next is acted keeps the environments busy."""

Wait = Callable[[], Rollout]
"""Returns the rollout once it was acted; called once, in the order of requests."""

Request = Callable[[AgentState, int, jax.Array], Wait]
"""Asks for a rollout of a length, acted with a key."""


def updates_before(rollout: int, acting: Acting) -> int:
    """Return after how many of a meta-step's updates a rollout's policy is taken.

    Args:
      rollout: its place in the meta-step, from 0; the last one is for validation.
      acting: `meta.acting`.
    """
    return {"current": rollout, "lagged": max(0, rollout - 1), "initial": 0}[acting]


class MetaStepRollouts:
    """The rollouts of one meta-step: of every update, and then for validation."""

    def __init__(
        self,
        request: Request,
        acting: Acting,
        agents: AgentState,
        *,
        lengths: Sequence[int],
        keys: Sequence[jax.Array],
    ) -> None:
        """Begin to act.

        Args:
          request: asks for a rollout.
          acting: `meta.acting`.
          agents: before the first update.
          lengths: of the rollouts.
          keys: to act with, one per rollout; consumed.
        """
        self._ask, self._acting = request, acting
        self._lengths, self._keys = lengths, keys
        self._agents = {0: agents}  # by updates; those that will act yet
        self._updates = self._requested = 0
        self._pending: collections.deque[Wait] = collections.deque()
        self.start = agents
        self._request()

    def take(self) -> Rollout:
        """Return the next rollout, once it was acted."""
        rollout = self._pending.popleft()()
        self._request()
        return rollout

    def updated(self, agents: AgentState) -> None:
        """Tell what the agents are after one more update."""
        self._updates += 1
        self._agents[self._updates] = agents
        self._request()

    def _request(self) -> None:
        """Ask for the rollouts whose policy is known by now."""
        while self._requested < len(self._keys) and len(self._pending) < MAX_AHEAD:
            policy = updates_before(self._requested, self._acting)
            if policy > self._updates:
                return
            self._agents = {n: a for n, a in self._agents.items() if n >= policy}
            wait = self._ask(
                self._agents[policy],
                self._lengths[self._requested],
                self._keys[self._requested],
            )
            self._pending.append(wait)
            self._requested += 1


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """What the next meta-step has begun with, and what this one left."""

    rollouts: MetaStepRollouts
    pools: list[PoolTree]
    episodes: list[list[Episodes]] | None  # None: none were asked for


class RolloutQueue:
    """Lets an actor act for one meta-step after another.

    In a thread, as soon as it is known who acts; or when a rollout is waited for.
    """

    def __init__(
        self,
        actor: Actor,
        meta: MetaConfig,
        *,
        rollout_length: int,
        in_thread: bool,
        on_host: bool = False,
    ) -> None:
        """Make a queue that alone lets ``actor`` act.

        Args:
          actor: not used by anybody else from here on.
          meta: how many rollouts a meta-step has, and who acts.
          rollout_length: of those that are learned from.
          in_thread: act in a thread.
          on_host: give rollouts in NumPy arrays, for a replay.
        """
        self._actor, self._acting = actor, meta.acting
        self._collect = actor.collect_on_host if on_host else actor.collect
        validation = rollout_length * meta.validation_rollouts
        self._lengths = [rollout_length] * meta.acted_updates + [validation]
        self._thread = (
            ThreadPoolExecutor(1, thread_name_prefix="acting") if in_thread else None
        )
        self._ahead: _Ahead | None = None

    def begin(self, agents: AgentState, keys: Sequence[jax.Array]) -> MetaStepRollouts:
        """Return a meta-step's rollouts, which may be under way already.

        Args:
          agents: before its first update.
          keys: to act with, one per rollout; consumed.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return MetaStepRollouts(
                self.request, self._acting, agents, lengths=self._lengths, keys=keys
            )
        assert ahead.rollouts.start is agents, "other agents have acted already"
        return ahead.rollouts

    def begin_ahead(
        self, agents: AgentState, keys: Sequence[jax.Array], *, drain: bool
    ) -> None:
        """Begin to act for the next meta-step, if there is a thread for it.

        Args:
          agents: as in `begin`, which must come next with the same.
          keys: as in `begin`.
          drain: whether `drain_episodes` will be called before that.
        """
        if self._thread is None:
            return
        episodes = self._actor.drain_episodes() if drain else None
        pools = self._actor.state()
        self._ahead = _Ahead(self.begin(agents, keys), pools, episodes)

    def pool_states(self) -> list[PoolTree]:
        """Return the pools as the last meta-step left them."""
        return self._actor.state() if self._ahead is None else self._ahead.pools

    def drain_episodes(self) -> list[list[Episodes]]:
        """Return the episodes that the meta-steps finished since the last call."""
        if self._ahead is None:
            return self._actor.drain_episodes()
        episodes = self._ahead.episodes
        assert episodes is not None, "they were not set aside"
        return episodes

    def request(self, agents: AgentState, length: int, key: jax.Array) -> Wait:
        """Return what waits for a rollout."""
        collect = functools.partial(self._collect, agents, length, key)
        return collect if self._thread is None else self._thread.submit(collect).result

    def close(self) -> None:
        """Break off what is being acted."""
        if self._thread is not None:
            self._actor.interrupt()
            self._thread.shutdown(cancel_futures=True)
