"""How many cells fit beside one another: an estimate of what each takes.

Host code, before anything is built. Must not train anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax

from metarl.agents.build import build_agent
from metarl.evaluation.cells import Cell

MOST_ON_CPU, MOST_ELSEWHERE = 4, 16
"""Cells beside one another however much memory there is. On CPU they are updated one
after another, and more of them only keep the environments busy; elsewhere they are one
program, whose last batch of another size is compiled anew."""

_SHARE = 0.5
"""Of the free memory that is planned with: programs, and other processes, need some."""
_COPIES = 6
"""Of an agent's parameters: themselves, target, two moments, gradient, their update."""
_ACTIVATIONS = 5
"""Bytes of activations per byte of float32 observations in a gradient: patches of a
convolution by im2col, its outputs, and the same again backwards."""
# Resident memory that 64 more environments take, divided by 64 (EnvPool 1.2.5 and
# 1.2.7), and rounded up; those that nobody measured count as the largest.
_ENVIRONMENT_BYTES = {
    "catch": 30_000,
    "cartpole": 30_000,
    "frozen_lake": 30_000,
    "minigrid": 30_000,
    "craftax": 900_000,
}
_OTHER_ENVIRONMENT_BYTES = 1_400_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory that cells take.

    Attributes:
      cell_bytes: of each cell beside others: replay, batches, parameters, environments.
      update_bytes: once, of the gradient that is being computed.
    """

    cell_bytes: int
    update_bytes: int


def cells_at_once(cells: Sequence[Cell]) -> int:
    """Return how many of ``cells``, of equal shapes, are trained side by side."""
    first = cells[0]
    asked = first.settings.cells_at_once
    if asked is not None:
        return asked
    on_cpu = jax.default_backend() == "cpu"
    most = MOST_ON_CPU if on_cpu else MOST_ELSEWHERE
    estimated = estimate(first)
    each, once = estimated.cell_bytes, estimated.update_bytes
    fits = most
    if (free := available_bytes()) is not None:
        fits = _how_many(free, each, once if on_cpu else 0)
    if not on_cpu and (free := _device_bytes()) is not None:
        # The replay stays on the host; what a batch needs is on the device.
        fits = min(fits, _how_many(free, each - _replay_bytes(first) + once, 0))
    return max(1, min(most, fits))


def estimate(cell: Cell) -> Estimate:
    """Return about how much memory a cell takes: all agents of its group."""
    settings, spec, peers = cell.settings, cell.spec, cell.group_size
    reads = cell.rule.rule.spec(spec.num_actions).reads
    # Each on its own trajectories, or on those of all.
    evaluated = peers if reads == "own" else peers**2
    num_envs, steps = settings.environment.num_envs, settings.rollout_length + 1
    values = math.prod(spec.observation_shape)
    observation = values * spec.observation_dtype.itemsize
    step = observation + 4 * spec.num_actions + 32  # logits; flags, action, reward
    replay = settings.replay
    batch = num_envs
    if replay.capacity:
        batch = min(replay.ratio * num_envs, replay.capacity)
    family = cell.task.game.family
    environment = _ENVIRONMENT_BYTES.get(family, _OTHER_ENVIRONMENT_BYTES)
    parameters = _parameter_bytes(cell)
    return Estimate(
        cell_bytes=_replay_bytes(cell)
        + peers
        * (
            2 * (batch + num_envs) * steps * step  # on the host and on the device
            + num_envs * environment
            + _COPIES * parameters
        ),
        update_bytes=_ACTIVATIONS * 4 * batch * steps * values * evaluated,
    )


def _how_many(free: int, each: int, once: int) -> int:
    return int((_SHARE * free - once) // each)


def _replay_bytes(cell: Cell) -> int:
    settings, spec = cell.settings, cell.spec
    if not settings.replay.capacity:
        return 0
    # Each frame of a stack is kept once, with a hundred bytes that find it.
    stack = spec.frame_stack or 1
    values = math.prod(spec.observation_shape) // stack
    kept = values * spec.observation_dtype.itemsize + 4 * spec.num_actions + 132
    trajectories = settings.replay.capacity * cell.group_size
    return trajectories * (settings.rollout_length + 1) * kept


def _parameter_bytes(cell: Cell) -> int:
    spec = cell.spec
    agent = build_agent(
        cell.settings.agent,
        cell.rule.rule,
        spec.num_actions,
        lifetime_env_steps=cell.env_steps,
    )
    shape = (1, *spec.observation_shape)
    example = jax.ShapeDtypeStruct(shape, spec.observation_dtype)
    state = jax.eval_shape(agent.init, jax.random.key(0), example)
    leaves = jax.tree.leaves(state.params)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def available_bytes() -> int | None:
    """Return the free memory of this machine, or of this job; None: unknown."""
    known = [_meminfo(), *_control_groups()]
    return min((value for value in known if value is not None), default=None)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_groups() -> list[int]:
    """Return what the limits of our control groups (containers, SLURM) leave free."""
    free = []
    for folder in _control_group_folders():
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                most = int((folder / limit).read_text())
                free.append(max(0, most - int((folder / usage).read_text())))
            except (OSError, ValueError):
                continue  # no such file, or "max": no limit
    return free


def _control_group_folders() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup")
        if "memory" in controllers.split(","):
            root = root / "memory"
        elif controllers:
            continue
        # A container may see its own group as the root.
        place = root / path.lstrip("/")
        folders += [root, *(p for p in (place, *place.parents) if root in p.parents)]
    return folders


def _device_bytes() -> int | None:
    stats = jax.devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
