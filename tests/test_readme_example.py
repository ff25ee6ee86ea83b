"""The example of README.md learns, on three seeds."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from linear_learners import assert_same_bits

import metarl

README = Path(__file__).parents[1] / "README.md"
SETTINGS = "seed, updates, length = 1, 200, 16"


def readme_blocks() -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    return blocks


@functools.cache
def readme_network() -> dict[str, object]:
    """The network, once: its functions are what compiled programs are kept under."""
    namespace: dict[str, object] = {}
    exec(compile(readme_blocks()[0], README, "exec"), namespace)
    return namespace


def run_readme(seed: int, updates: int) -> dict[str, object]:
    """Return the names that the example leaves behind."""
    code = readme_blocks()[1]
    assert SETTINGS in code
    code = code.replace(SETTINGS, f"seed, updates, length = {seed}, {updates}, 16")
    namespace = dict(readme_network())
    exec(compile(code, README, "exec"), namespace)
    return namespace


def episodes(act: Callable[[np.ndarray, int], np.ndarray], seed: int) -> float:
    """Return the mean return of the first episode in each of 16 environments."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=16)
    observations, _ = envs.reset(seed=seed)
    returns, running = np.zeros(16), np.ones(16, bool)
    for step in range(501):
        if not running.any():
            break
        observations, rewards, terminated, truncated, _ = envs.step(
            act(observations, step)
        )
        returns += rewards * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


def random_return() -> float:
    rng = np.random.default_rng(0)
    act = lambda *_: rng.integers(2, size=16)  # noqa: E731
    return float(np.mean([episodes(act, seed) for seed in range(8)]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_readmes_agent_learns_and_is_restored(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_readme(seed, updates=200)
    learner = names["learner"]
    assert isinstance(learner, metarl.Learner)
    state = learner.restore("agent.npz")
    assert_same_bits(state, names["state"])
    assert state.agent_updates == 200

    def act(observations: np.ndarray, step: int) -> np.ndarray:
        return learner.act(state, observations, jax.random.key(step))[0]

    baseline = random_return()
    assert 15 < baseline < 30
    assert episodes(act, seed=100 + seed) >= 3 * baseline
