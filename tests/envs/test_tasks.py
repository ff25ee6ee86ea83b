"""From the configuration to tasks, without any environment."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.config import AtariOptions, EnvironmentConfig
from metarl.envs.suites import GAMES, SUITES
from metarl.envs.tasks import (
    Task,
    apply_protocol,
    envpool_options,
    pool_spec,
    resolve_environment,
)
from metarl.errors import UserError


def names(tasks: tuple[Task, ...]) -> list[str]:
    return [task.game.task_id for task in tasks]


def test_a_suite_gives_its_games_with_its_options() -> None:
    assert names(resolve_environment(EnvironmentConfig(suite="atari57"))) == list(
        SUITES["atari57"].games
    )
    (catch,) = resolve_environment(EnvironmentConfig(suite="catch_5x5"))
    assert catch == Task(GAMES["Catch-v0"], (("height", 5), ("width", 5)))


def test_games_are_kept_in_order_and_may_lack_their_version() -> None:
    config = EnvironmentConfig(games=("Qbert", "Pong-v5"))
    assert names(resolve_environment(config)) == ["Qbert-v5", "Pong-v5"]


def test_a_suite_among_games_stands_for_its_own_with_its_options() -> None:
    config = EnvironmentConfig(games=("catch_5x5", "Qbert", "atari3_val", "Catch-v0"))
    found = resolve_environment(config, same_shapes=False)
    small = Task(GAMES["Catch-v0"], (("height", 5), ("width", 5)))
    expected = ["Qbert-v5", *SUITES["atari3_val"].games, "Catch-v0"]
    assert found == (small, *(Task(GAMES[name]) for name in expected))
    assert pool_spec(found[0], config).observation_shape == (5, 5)
    assert pool_spec(found[-1], config).observation_shape == (10, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvironmentConfig(), "neither is given"),
        (EnvironmentConfig(games=("catch_5x6",)), "did you mean 'catch_5x5'"),
        (EnvironmentConfig(games=("Catch", "catch")), "'Catch-v0' is given more than"),
        (EnvironmentConfig(games=("Qbert", "atari5")), "'Qbert-v5' is given more than"),
        (EnvironmentConfig(suite="catch", games=("Pong",)), "both are given"),
        (EnvironmentConfig(suite="atari58"), r"environment\.suite: unknown suite"),
        (EnvironmentConfig(games=("Pnog",)), r"environment\.games: unknown game"),
        (EnvironmentConfig(games=("Pong", "Pong-v5")), "'Pong-v5' is given more than"),
        (
            EnvironmentConfig(games=("Pong", "CartPole", "Catch")),
            r"Pong-v5 and CartPole-v1 have \[84, 84, 4\] and \[4\]",
        ),
        (
            EnvironmentConfig(games=("Catch", "FrozenLake")),
            r"Catch-v0 and FrozenLake-v1 have \[10, 5\] and \[16\]",
        ),
        (
            EnvironmentConfig(
                games=("Pong", "NameThisGame", "Breakout"),
                atari=AtariOptions(full_action_set=False),
            ),
            "Pong-v5 and Breakout-v5 have 6 and 4",
        ),
        (
            EnvironmentConfig(suite="atari5", atari=AtariOptions(max_episode_frames=3)),
            r"max_episode_frames: 3 .*frame_skip = 4",
        ),
    ],
)
def test_bad_input_is_one_clear_line(config: EnvironmentConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve_environment(config)
    assert "\n" not in str(error.value)


def test_shapes_may_differ_where_every_task_is_trained_alone() -> None:
    config = EnvironmentConfig(games=("Pong", "CartPole"))
    tasks = resolve_environment(config, same_shapes=False)
    assert names(tasks) == ["Pong-v5", "CartPole-v1"]


def test_protocols_set_what_they_name_and_nothing_else() -> None:
    atari = AtariOptions(
        frame_size=42, full_action_set=False, episodic_life=True, sticky_actions=0.1
    )
    machado = apply_protocol(
        EnvironmentConfig(atari=atari.model_copy(update={"protocol": "machado"}))
    )
    assert machado.atari.sticky_actions == 0.25
    assert machado.atari.full_action_set
    assert not machado.atari.episodic_life
    assert machado.atari.max_episode_frames == 108_000
    assert machado.atari.frame_size == 42
    assert not machado.clip_rewards
    dqn = apply_protocol(
        EnvironmentConfig(atari=atari.model_copy(update={"protocol": "dqn"}))
    )
    assert (dqn.atari.sticky_actions, dqn.atari.episodic_life) == (0.0, True)
    assert dqn.clip_rewards
    assert not dqn.atari.full_action_set
    unchanged = EnvironmentConfig(atari=atari)
    assert apply_protocol(unchanged) == unchanged


def test_every_atari_option_reaches_envpool() -> None:
    atari = AtariOptions(
        frame_size=50,
        frame_stack=3,
        frame_skip=5,
        grayscale=False,
        sticky_actions=0.5,
        noop_max=7,
        fire_reset=True,
        full_action_set=False,
        max_episode_frames=1003,
    )
    assert envpool_options(Task(GAMES["Pong-v5"]), EnvironmentConfig(atari=atari)) == {
        "img_height": 50,
        "img_width": 50,
        "stack_num": 3,
        "frame_skip": 5,
        "gray_scale": False,
        "repeat_action_probability": 0.5,
        "noop_max": 7,
        "use_fire_reset": True,
        "full_action_space": False,
        "max_episode_steps": 200,
        "episodic_life": False,
        "reward_clip": False,
    }


def test_the_full_action_set_has_all_18_meanings_even_without_fire() -> None:
    spec = pool_spec(Task(GAMES["Skiing-v5"]), EnvironmentConfig())
    assert spec.num_actions == len(set(spec.action_meanings)) == 18
    minimal = EnvironmentConfig(atari=AtariOptions(full_action_set=False))
    spec = pool_spec(Task(GAMES["Skiing-v5"]), minimal)
    assert spec.action_meanings == ("NOOP", "RIGHT", "LEFT")
    assert spec.observation_dtype == np.uint8
