"""Many pools at once: their seeds, their threads, and bringing them back.

Host code, between `pool.py` and the actor; must not import jax.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from metarl.config import EnvironmentConfig
from metarl.envs.pool import MAX_ENVS, Pool, PoolState
from metarl.envs.tasks import Task

_MAX_PEERS = 64
_MAX_GROUPS = 2**31 // (MAX_ENVS * _MAX_PEERS)
_ENDED = object()


def pool_seed(base_seed: int, group: int, peer: int, epoch: int) -> int:
    """Return the seed of one pool; environment i of it is seeded with that + i.

    SHA-256 of (base_seed, epoch) gives 19 bits, which are XORed with the pool's index
    group * 64 + peer and multiplied by 4,096. So two pools of the same epoch never
    share the seed of an environment, and those of different epochs or base seeds
    share one as rarely as random seeds do. The result is in [0, 2**31 - 4096].
    """
    if not (0 <= group < _MAX_GROUPS and 0 <= peer < _MAX_PEERS):
        raise ValueError(
            f"group {group}, peer {peer}: seeds are for up to {_MAX_GROUPS} groups "
            f"of {_MAX_PEERS} peers"
        )
    digest = hashlib.sha256(f"{base_seed},{epoch}".encode()).digest()
    blocks = _MAX_GROUPS * _MAX_PEERS
    block = int.from_bytes(digest[:8], "little") % blocks
    return (block ^ (group * _MAX_PEERS + peer)) * MAX_ENVS


def make_pools(
    tasks: Sequence[Task],
    config: EnvironmentConfig,
    *,
    seeds: Sequence[int],
    num_envs: int | None = None,
) -> tuple[Pool, ...]:
    """Return a pool per task, not built yet, that share `config.num_threads`.

    Args:
      tasks: one per pool.
      config: how to play them.
      seeds: one per pool; see `pool_seed`.
      num_envs: of each pool; None: `config.num_envs`.
    """
    threads = max(1, config.num_threads // max(1, len(tasks)))
    return tuple(
        Pool(
            task,
            config,
            num_envs=config.num_envs if num_envs is None else num_envs,
            seed=seed,
            num_threads=threads,
        )
        for task, seed in zip(tasks, seeds, strict=True)
    )


def restore_pools(
    pools: Sequence[Pool],
    states: Sequence[PoolState],
    *,
    report: Callable[[int, int], None] | None = None,
    report_every: int = 256,
) -> None:
    """Bring back the states of pools, all of them replaying at the same time.

    Args:
      pools: of the tasks and configuration that the states are of.
      states: one per pool.
      report: called with the environment steps done and to do, at the start, after
        every `report_every` steps and at the end.
      report_every: steps of a pool.

    Raises:
      RuntimeError: a replay led elsewhere, as another version of EnvPool may.
    """
    pairs = list(zip(pools, states, strict=True))
    replaying = [(pool.replaying(state), pool.num_envs) for pool, state in pairs]
    to_do = sum(state.actions.size for state in states)
    done = rounds = 0
    while replaying:
        if report is not None and rounds % report_every == 0:
            report(done, to_do)
        still = []
        for steps, num_envs in replaying:
            # Receives what it sent in the round before, while the others work.
            if next(steps, _ENDED) is not _ENDED:
                done += num_envs
                still.append((steps, num_envs))
        replaying = still
        rounds += 1
    if report is not None:
        report(done, to_do)
