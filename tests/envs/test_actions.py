"""The action tables against ALE, and against what EnvPool accepts and does."""

from __future__ import annotations

import ale_py
import envpool
import numpy as np
import pytest
from ale_py import ALEInterface, roms
from envpool.registration import registry

from metarl.envs import actions, suites


def atari_tasks() -> dict[str, str]:
    """ROM names by task id, from EnvPool's registry."""
    return {
        task_id: registry.specs[task_id][2]["task"]
        for task_id in envpool.list_all_envs()
        if registry.specs[task_id][0] == "envpool.atari"
    }


def emulator(rom: str, seed: int = 0) -> ALEInterface:
    ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(rom))
    return ale


def test_full_set_is_the_emulators_enumeration() -> None:
    names = tuple(ale_py.Action(index).name for index in range(18))
    assert names == actions.ATARI_FULL


def test_sets_are_the_emulators_for_all_104_games() -> None:
    tasks = atari_tasks()
    assert len(tasks) == 104
    minimal, without_fire = {}, set()
    for task_id, rom in tasks.items():
        ale = emulator(rom)
        minimal[task_id] = tuple(action.name for action in ale.getMinimalActionSet())
        legal = tuple(action.name for action in ale.getLegalActionSet())
        if legal != actions.ATARI_FULL:
            assert legal == tuple(n for n in actions.ATARI_FULL if "FIRE" not in n)
            without_fire.add(task_id)
    assert minimal == actions.ATARI_MINIMAL
    assert without_fire == actions.WITHOUT_FIRE


def test_minimal_sets_are_as_large_as_envpools_for_all_104_games() -> None:
    accepted = {
        task_id: envpool.make_spec(task_id).action_space.n
        for task_id in actions.ATARI_MINIMAL
    }
    assert accepted == {name: len(s) for name, s in actions.ATARI_MINIMAL.items()}


@pytest.mark.parametrize(
    "task_id", ["Pong-v5", "Alien-v5", *sorted(actions.WITHOUT_FIRE)]
)
def test_full_sets_are_as_large_as_envpools(task_id: str) -> None:
    accepted = envpool.make_spec(task_id, full_action_space=True).action_space.n
    indices = actions.atari_action_map(task_id, full=True) or range(18)
    assert accepted == max(indices) + 1
    assert len(indices) == 18


@pytest.mark.parametrize(
    ("task_id", "full"), [("Pong-v5", False), ("Pong-v5", True), ("Skiing-v5", True)]
)
def test_actions_do_in_envpool_what_they_do_in_the_emulator(
    task_id: str, full: bool
) -> None:
    """Hold each action for 10 steps and compare the console's memory."""
    meanings = actions.atari_meanings(task_id, full=full)
    held = np.array(
        actions.atari_action_map(task_id, full=full) or range(len(meanings))
    )
    pool = envpool.make(
        task_id,
        env_type="gymnasium",
        num_envs=len(held),
        num_threads=1,
        seed=[5] * len(held),
        img_height=42,
        img_width=42,
        noop_max=1,
        use_fire_reset=False,
        full_action_space=full,
    )
    pool.reset()
    for action in [0 * held] * 15 + [held] * 10:
        _, _, _, _, info = pool.step(action)
    ale = emulator(atari_tasks()[task_id], seed=5)
    for meaning, memory in zip(meanings, info["ram"], strict=True):
        ale.reset_game()
        ale.act(0)  # the no-op that noop_max=1 plays
        for action in [0] * 15 + [ale_py.Action[meaning].value] * 10:
            for _ in range(4):
                ale.act(action)
        assert np.array_equal(memory, ale.getRAM()), meaning
    assert len(np.unique(info["ram"], axis=0)) > 2


def test_other_families_have_a_meaning_per_action() -> None:
    elsewhere = ("atari", "procgen", "craftax")  # the latter: test_families.py
    names = [n for n, game in suites.GAMES.items() if game.family not in elsewhere]
    assert len(names) == 27
    for name in names:
        accepted = envpool.make_spec(name).action_space.n
        assert len(suites.action_meanings(name)) == accepted, name
