"""From what a meta-step computed to rows of metrics and lines for a person.

Host code beside `train.py`; `docs/metrics.md` says what every key means.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from metarl.console import format_duration, say
from metarl.envs.pool import Episodes
from metarl.envs.suites import human_normalized_score
from metarl.experiment import Experiment, Stack
from metarl.meta.evolution import EvolutionStrategies
from metarl.tracking import logged_name
from metarl.types import Params


class MetaLog:
    """Makes a row of each logged meta-step, with rates since the row before."""

    def __init__(self, experiment: Experiment) -> None:
        """Say whose metrics they are."""
        self._experiment = experiment
        self._times = {"learn": 0.0, "meta": 0.0}
        self.start(0)
        self.newest: dict[str, float] = {}

    def start(self, env_steps: int) -> None:
        """Start the clock of the rates, at the environment steps done so far."""
        self._logged_at, self._logged_steps = time.perf_counter(), env_steps

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's time to ``stats/{stage}_time``."""
        start = time.perf_counter()
        yield
        self._times[stage] += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out of the rates."""
        start = time.perf_counter()
        yield
        self._logged_at += time.perf_counter() - start

    def row(
        self,
        metrics: Mapping[str, np.ndarray],
        episodes: Sequence[Sequence[Episodes]],
        *,
        env_steps: int,
        times: Mapping[str, float],
    ) -> dict[str, float]:
        """Return a row by the names of `docs/metrics.md`.

        Args:
          metrics: of one meta-step, on the host; of all groups, or scalars.
          episodes: that finished since the row before, ``[G][K]``.
          env_steps: so far.
          times: seconds of each stage of acting since the row before.
        """
        row: dict[str, float] = {}
        for name, values in metrics.items():
            mean = float(np.mean(values))
            if not name.startswith("inner/"):
                row[f"meta/{name}"] = mean
                continue
            row[logged_name(name.removeprefix("inner/"))] = mean
        row |= self._agents(episodes) | self._speed(env_steps, times)
        self.newest = row | {"global_step": float(env_steps)}
        return row

    def _agents(self, episodes: Sequence[Sequence[Episodes]]) -> dict[str, float]:
        """Return what the finished episodes were worth."""
        finished: dict[str, list[np.ndarray]] = {}
        lengths: list[np.ndarray] = []
        for task, peers in zip(self._experiment.tasks, episodes, strict=True):
            for of_agent in peers:
                finished.setdefault(task.game.task_id, []).append(of_agent.returns)
                lengths.append(of_agent.lengths)
        row: dict[str, float] = {}
        for game, returns in finished.items():
            together = np.concatenate(returns)
            if not together.size:
                continue
            mean = float(together.mean())
            row[f"agents/{game}/episodic_return"] = mean
            score = human_normalized_score(game, mean)
            if score is not None:
                row[f"agents/{game}/human_normalized_score"] = score
            if len(finished) == 1:
                row["charts/episodic_return"] = mean
                row["charts/episodic_length"] = float(np.concatenate(lengths).mean())
        return row

    def _speed(self, env_steps: int, times: Mapping[str, float]) -> dict[str, float]:
        now = time.perf_counter()
        seconds, steps = now - self._logged_at, env_steps - self._logged_steps
        self._logged_at, self._logged_steps = now, env_steps
        times = {**times, **self._times}
        self._times = dict.fromkeys(self._times, 0.0)
        row = {f"stats/{stage}_time": value for stage, value in times.items()}
        row["charts/SPS"] = steps / seconds
        memory = jax.devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            row["stats/device_memory_peak_bytes"] = float(memory["peak_bytes_in_use"])
        return row


def frames_per_step(experiment: Experiment) -> int | None:
    """Return the emulator's frames in an environment step; None where games differ."""
    skips = {
        stack.environment.atari.frame_skip if task.game.family == "atari" else 1
        for stack in experiment.stacks
        for task in stack.tasks
    }
    return skips.pop() if len(skips) == 1 else None


def shown(
    row: Mapping[str, float], *, frames_per_step: int | None
) -> dict[str, float | None]:
    """Return the numbers that the console shows of a row."""
    scores = [v for k, v in row.items() if k.endswith("/human_normalized_score")]
    steps = row["global_step"]
    return {
        "global_step": int(steps),
        "frames": None if frames_per_step is None else int(steps * frames_per_step),
        "episodic_return": row.get("charts/episodic_return"),
        "human_normalized_score": float(np.mean(scores)) if scores else None,
        "meta_loss": row.get("meta/loss"),
        "meta_grad_norm": row.get("meta/grad_norm"),
        "moved": row.get("meta/distance"),
        "SPS": int(row["charts/SPS"]),
    }


def announcement(experiment: Experiment, meta_params: Params) -> list[str]:
    """Return the lines that a run begins with: device, games, sizes."""
    device = jax.devices()[0]
    games = experiment.games
    names = ", ".join(games[:6]) + (f" and {len(games) - 6} more" if games[6:] else "")
    return [
        f"devices={jax.device_count()} platform={device.platform} "
        f"device={device.device_kind.replace(' ', '_')}",
        f"agents={len(experiment.tasks)} games={len(games)}: {names}",
        *_tried_rules(experiment),
        *_parameters(experiment.stacks, meta_params),
    ]


def _tried_rules(experiment: Experiment) -> list[str]:
    """Return a line on the rules that are tried, if the meta-gradient is of them."""
    estimator = experiment.stacks[0].estimator
    if not isinstance(estimator, EvolutionStrategies):
        return []
    pairs = estimator.config.pairs
    spent = "one unroll" if estimator.persistent else "a lifetime"
    return [
        f"rules tried: {2 * pairs} for each of the agents, in {pairs} pairs; by each "
        f"an agent of its own lives {spent} per meta-step"
    ]


def _parameters(stacks: Sequence[Stack], meta_params: Params) -> list[str]:
    """Return a line on sizes; a further one for each stack where there are several."""
    of_rule = f"parameters: {_count(meta_params):,} of the rule"
    of_stacks = []
    for stack in stacks:
        spec = stack.pool_spec
        example = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
        agent = jax.eval_shape(stack.agent.init, jax.random.key(0), example)
        of_stacks.append(
            f"{_count(agent.params):,} of each agent; observations "
            f"{list(spec.observation_shape)}, {spec.num_actions} actions"
        )
    if len(stacks) == 1:
        return [f"{of_rule}, {of_stacks[0]}"]
    lines = [
        f"{len(stack.tasks)} of the agents on {'+'.join(stack.games)}: {sizes}"
        for stack, sizes in zip(stacks, of_stacks, strict=True)
    ]
    return [of_rule, *lines]


def report_replay() -> Callable[[int, int], None]:
    """Return a reporter of how far the pools' replay is, and how long it will take."""
    start = said = time.monotonic()

    def report(done: int, to_do: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done in (0, to_do):
            say(f"replaying the environments: {done:,} of {to_do:,} steps")
        elif now - said > 5:
            said = now
            eta = format_duration((now - start) * (to_do - done) / done)
            say(f"replaying the environments: {done:,} of {to_do:,} steps eta={eta}")

    return report


def _count(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
