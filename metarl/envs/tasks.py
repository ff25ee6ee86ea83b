"""From the configuration to tasks: which games, with which options, of which shapes.

Between `suites.py` (what exists) and `pool.py` (what runs). Everything about shapes is
known here without building an environment, but for games outside the tables, of which
one is built and asked; must not import envpool or jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from metarl.config import EnvironmentConfig
from metarl.envs import actions, availability, open_games, suites
from metarl.errors import UserError

FROZEN_LAKE_SIZE = {"FrozenLake-v1": 4, "FrozenLake8x8-v1": 8}
"""Cells on each side of the lake."""

STATE_SIZE = {"cartpole": 4, "acrobot": 6, "mountain_car": 2}
"""Numbers that describe the state, in the families of classic control."""

PROCGEN_SHAPE = (64, 64, 3)
CRAFTAX_SIZE = {"Craftax-Symbolic-v1": 8268, "Craftax-Classic-Symbolic-v1": 1345}
"""Numbers that describe what the agent sees and has."""

MINIGRID_VIEW = 7
"""Cells on each side of what a MiniGrid agent sees."""
MINIGRID_CODES = (11, 6, 3)
"""How many object types, colours and states a cell's three codes tell apart."""
MINIGRID_DIRECTIONS = 4


@dataclasses.dataclass(frozen=True)
class Task:
    """A game as it is played: with the options of the suite it came from."""

    game: suites.Game
    options: suites.Options = ()


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """Shapes of a task.

    Attributes:
      observation_shape: of one observation; Atari ``[H, W, C]`` with the newest frame
        last, C = frame_stack (3 * frame_stack in colour).
      observation_dtype: ``uint8`` for pixels in [0, 255], to be scaled by 1 / 255;
        ``bool`` for one-hot codes; ``float32`` for everything else.
      num_actions: how many actions there are.
      action_meanings: a name for each, by which games can be compared.
      frame_stack: how many frames lie behind one another on an observation's last
        axis, oldest first; None where observations are no frames.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[np.generic]
    num_actions: int
    action_meanings: tuple[str, ...]
    frame_stack: int | None = None

    @property
    def is_picture(self) -> bool:
        """Whether observations are made of pixels."""
        return self.observation_dtype == np.uint8 and len(self.observation_shape) == 3


def apply_protocol(config: EnvironmentConfig) -> EnvironmentConfig:
    """Return the configuration with the options that `atari.protocol` names set.

    `machado`: Machado et al. (2018). `dqn`: Mnih et al. (2015), where the loss of a
    life is terminal and rewards are clipped.
    """
    atari = config.atari
    if atari.protocol == "default":
        return config
    if atari.protocol == "machado":
        options = {
            "sticky_actions": 0.25,
            "full_action_set": True,
            "episodic_life": False,
            "max_episode_frames": 108_000,
        }
        return config.model_copy(update={"atari": atari.model_copy(update=options)})
    options = {"sticky_actions": 0.0, "episodic_life": True}
    return config.model_copy(
        update={"clip_rewards": True, "atari": atari.model_copy(update=options)}
    )


def as_played(task: Task, config: EnvironmentConfig) -> EnvironmentConfig:
    """Return the configuration that is in force; a protocol is for Atari alone."""
    return apply_protocol(config) if task.game.family == "atari" else config


def pool_spec(task: Task, config: EnvironmentConfig) -> PoolSpec:
    """Return the shapes of a task's observations and actions."""
    config = as_played(task, config)
    name, family = task.game.task_id, task.game.family
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    if family == "atari":
        channels = config.atari.frame_stack * (1 if config.atari.grayscale else 3)
        shape = (config.atari.frame_size, config.atari.frame_size, channels)
        dtype = np.dtype(np.uint8)
    elif family == "catch":
        options = dict(task.options)
        shape = (options.get("height", 10), options.get("width", 5))
        dtype = np.dtype(np.float32)
        if (side := config.catch_pixels) is not None:
            shape = (side * shape[0], side * shape[1], 3)
            dtype = np.dtype(np.uint8)
    elif family in STATE_SIZE:
        shape, dtype = (STATE_SIZE[family],), np.dtype(np.float32)
    elif family == "procgen":
        shape, dtype = PROCGEN_SHAPE, np.dtype(np.uint8)
    elif family == "craftax":
        shape, dtype = (CRAFTAX_SIZE[name],), np.dtype(np.float32)
    elif family in ("gymnasium", "envpool"):
        interface = open_games.interface_of(name)
        shape, dtype = interface.shape, np.dtype(interface.dtype)
    elif family == "frozen_lake":
        shape, dtype = (FROZEN_LAKE_SIZE[name] ** 2,), np.dtype(np.bool_)
    else:
        cells = MINIGRID_VIEW**2
        shape = (cells * sum(MINIGRID_CODES) + MINIGRID_DIRECTIONS,)
        dtype = np.dtype(np.bool_)
    meanings = suites.action_meanings(name, full=config.atari.full_action_set)
    stack = config.atari.frame_stack if family == "atari" else None
    return PoolSpec(shape, dtype, len(meanings), meanings, stack)


def envpool_options(task: Task, config: EnvironmentConfig) -> dict[str, int | float]:
    """Return EnvPool's keyword arguments for a task.

    Rewards are clipped, and life losses told, by our adapter: EnvPool's `episodic_life`
    would play no-ops in the middle of the game, whose rewards the returns would lack.

    Raises:
      UserError: a value that EnvPool cannot play.
    """
    config = apply_protocol(config)
    if task.game.family != "atari":
        return dict(task.options)
    atari = config.atari
    if atari.max_episode_frames < atari.frame_skip:
        raise UserError(
            f"environment.atari.max_episode_frames: {atari.max_episode_frames} is less "
            f"than one step of frame_skip = {atari.frame_skip} frames"
        )
    return {
        "img_height": atari.frame_size,
        "img_width": atari.frame_size,
        "stack_num": atari.frame_stack,
        "frame_skip": atari.frame_skip,
        "gray_scale": atari.grayscale,
        "repeat_action_probability": atari.sticky_actions,
        "noop_max": atari.noop_max,
        "use_fire_reset": atari.fire_reset,
        "full_action_space": atari.full_action_set,
        "max_episode_steps": atari.max_episode_frames // atari.frame_skip,
        "episodic_life": False,
        "reward_clip": False,
        **dict(task.options),
    }


def action_map(task: Task, config: EnvironmentConfig) -> npt.NDArray[np.int32] | None:
    """Return EnvPool's index of each action, or None where they are the same."""
    if task.game.family != "atari":
        return None
    full = apply_protocol(config).atari.full_action_set
    indices = actions.atari_action_map(task.game.task_id, full=full)
    return None if indices is None else np.array(indices, np.int32)


def resolve_environment(
    config: EnvironmentConfig, *, same_shapes: bool = True
) -> tuple[Task, ...]:
    """Return the tasks that `environment.suite` or `environment.games` names.

    Args:
      config: the environment section.
      same_shapes: refuse tasks whose observations or numbers of actions differ, which
        one program cannot serve.

    Raises:
      UserError: neither or both are given, a name is unknown, a game is given twice
        with the same options, or two games differ in shape.
    """
    if bool(config.suite) == bool(config.games):
        given = "both are given" if config.suite else "neither is given"
        raise UserError(
            f"environment: one of suite and games is needed, {given} "
            "(such as environment.suite=atari57, or environment.games='[Pong-v5]')"
        )
    if config.suite:
        suite = suites.get_suite(config.suite, field="environment.suite")
        tasks = tasks_named([suite.name], field="environment.suite")
    else:
        tasks = tasks_named(config.games, field="environment.games")
    for task in tasks:
        if tasks.count(task) > 1:
            raise UserError(
                f"environment.games: '{task.game.task_id}' is given more than once "
                "(population.num_agents sets how many agents share the games)"
            )
    for task in tasks:  # refuses what cannot be played
        envpool_options(task, config)
        availability.require(task.game.task_id, task.game.family)
        if task.game.family in ("gymnasium", "envpool"):
            open_games.interface_of(task.game.task_id)
        _require_a_picture(task, config)
    if same_shapes:
        _require_same_shapes(tasks, config)
    return tuple(tasks)


def _require_a_picture(task: Task, config: EnvironmentConfig) -> None:
    kind = config.distractors.kind
    if kind != "none" and not pool_spec(task, config).is_picture:
        name, family = task.game.task_id, task.game.family
        fix = " (it is with environment.catch_pixels=2)" if family == "catch" else ""
        raise UserError(
            f"environment.distractors.kind={kind}: is for games that agents see as "
            f"pictures, and {name} is none{fix}"
        )


def tasks_named(names: Iterable[str], *, field: str) -> list[Task]:
    """Return the tasks of games, and of suites by name, in order.

    Args:
      names: task ids; a suite's stands for its games, with its options.
      field: where the user wrote them, for the message.

    Raises:
      UserError: a name is of neither.
    """
    tasks = []
    for name in names:
        if name in suites.SUITES:
            suite = suites.SUITES[name]
            tasks += [Task(suites.GAMES[game], suite.options) for game in suite.games]
        else:
            tasks.append(Task(suites.get_game(name, field=field, also=suites.SUITES)))
    return tasks


def _require_same_shapes(tasks: Sequence[Task], config: EnvironmentConfig) -> None:
    first = pool_spec(tasks[0], config)
    for task in tasks[1:]:
        spec = pool_spec(task, config)
        pair = f"{tasks[0].game.task_id} and {task.game.task_id}"
        if spec.observation_shape != first.observation_shape:
            raise UserError(
                f"environment: games that share a program need observations of one "
                f"shape, but {pair} have {list(first.observation_shape)} and "
                f"{list(spec.observation_shape)}"
            )
        if spec.num_actions != first.num_actions:
            atari = task.game.family == "atari"
            fix = " (atari.full_action_set=true gives all of them 18)" if atari else ""
            raise UserError(
                f"environment: games that share a program need equally many actions, "
                f"but {pair} have {first.num_actions} and {spec.num_actions}{fix}"
            )
