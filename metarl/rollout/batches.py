"""Batches of new and replayed trajectories, for the agents of a stack.

Host code in NumPy, between the actor and the update: every agent has a replay of its
own, from which nothing is drawn that it did not live. Must not import agents or
environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from metarl.config import PopulationReplayConfig
from metarl.errors import UserError
from metarl.rollout.replay import Replay, ReplayTree
from metarl.types import Rollout


def batch_size(config: PopulationReplayConfig, *, num_envs: int) -> int:
    """Return the trajectories of a batch that holds ``num_envs`` new ones.

    Raises:
      UserError: they are no whole number.
    """
    exact = num_envs / (1 - config.share)
    size = round(exact)
    # A share such as 0.9 is no binary fraction, and may be given with six digits.
    if abs(size - exact) > 1e-5 * exact:
        raise UserError(
            f"population.replay.share={config.share:g}: a batch of "
            f"environment.num_envs / (1 - share) = {exact:.6g} trajectories must be "
            f"whole (num_envs={num_envs} is {num_envs / size:.6g} of {size})"
        )
    return size


class ReplayedBatches:
    """A replay for each of ``G`` groups of ``K`` agents, and batches from them."""

    def __init__(
        self,
        config: PopulationReplayConfig,
        members: Sequence[int],
        *,
        num_envs: int,
        seed: int,
        frame_stack: int | None,
        peers: int = 1,
    ) -> None:
        """Make empty replays.

        Args:
          config: how much is replayed, and kept.
          members: numbers of the groups in the population, which decide their draws.
          num_envs: new trajectories of each agent.
          seed: of the run.
          frame_stack: as in `Replay`.
          peers: K.
        """
        self._config, self._members, self._seed = config, tuple(members), seed
        self._frame_stack, self._peers = frame_stack, peers
        self._replayed = batch_size(config, num_envs=num_envs) - num_envs
        self._replays = [self._new() for _ in range(len(self._members) * peers)]

    def _new(self) -> Replay:
        # Draws are told by numbers, not by a generator whose state had to be kept.
        return Replay(self._config.capacity, seed=0, frame_stack=self._frame_stack)

    @property
    def nbytes(self) -> int:
        """Memory of all replays."""
        return sum(replay.nbytes for replay in self._replays)

    def forget(self, group: int) -> None:
        """Empty the replays of a group, as for new agents."""
        start = group * self._peers
        self._replays[start : start + self._peers] = [
            self._new() for _ in range(self._peers)
        ]

    def batch(self, new: Rollout, lives: npt.NDArray[np.int64]) -> Rollout:
        """Keep new trajectories and return them together with replayed ones.

        Those are drawn from all that is kept, the new ones included: of a newborn
        agent there is nothing else.

        Args:
          new: ``[G, K, T, B]``, NumPy arrays.
          lives: lives of each group that are over, ``[G]``.

        Returns:
          ``[G, K, T, B / (1 - share)]``, the new ones first; its `env_steps` are those
          of the new ones.
        """
        drawn = []
        for index, replay in enumerate(self._replays):
            group, peer = divmod(index, self._peers)
            replay.add(jax.tree.map(lambda x, g=group, k=peer: x[g, k], new))
            # What decides a draw: nothing that a resumed run had to remember.
            path = (self._members[group], peer, int(lives[group]), replay.added)
            rng = np.random.default_rng([self._seed, *path])
            drawn.append(replay.sample(self._replayed, rng))

        def join(axis: int) -> Any:
            def of(new: Any, *drawn: Any) -> Any:
                replayed = np.stack(drawn).reshape(
                    len(self._members), self._peers, *drawn[0].shape
                )
                return np.concatenate([new, replayed], axis=axis)

            return of

        return Rollout(
            observations=join(3)(new.observations, *[x.observations for x in drawn]),
            transitions=jax.tree.map(
                join(3), new.transitions, *[x.transitions for x in drawn]
            ),
            returns=join(2)(new.returns, *[x.returns for x in drawn]),
            success=join(2)(new.success, *[x.success for x in drawn]),
            env_steps=new.env_steps,
        )

    # --- Checkpoints --------------------------------------------------------------

    def state(self) -> list[ReplayTree]:
        """Return what is kept, for each agent."""
        return [replay.state() for replay in self._replays]

    def restore(self, states: Sequence[ReplayTree]) -> None:
        """Bring back what `state` returned."""
        for replay, state in zip(self._replays, states, strict=True):
            replay.restore(state)

    def __len__(self) -> int:
        """Return how many replays there are, G K."""
        return len(self._replays)
