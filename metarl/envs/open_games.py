"""Environments outside our tables: any of Gymnasium's or EnvPool's, by name.

What is known of them is what they say of themselves: plain arrays in, one of n actions
out. Beside `suites.py`; imports the two libraries only when such a name is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metarl.errors import UserError, nearest
from metarl.user_modules import see_working_directory

if TYPE_CHECKING:
    import gymnasium

GYMNASIUM = "gym:"
"""What names of Gymnasium's environments begin with: `gym:CartPole-v1`, and
`gym:my_package:MyTask-v0` for one that a module registers."""

MAX_ACTIONS = 256  # a pool keeps its actions in bytes
MAX_CODES = 4096
"""Of an observation that is one number of so many, given to agents one-hot."""

Encoding = Literal["plain", "channels_first", "add_channel", "one_hot"]


@dataclasses.dataclass(frozen=True)
class Interface:
    """What an environment takes and returns.

    Attributes:
      shape: of an observation as agents see it; pictures are ``[H, W, C]``.
      dtype: its NumPy name: `uint8` for pixels in [0, 255], `bool` for one-hot codes,
        else `float32`.
      encoding: how it is made of what the environment returns.
      num_actions: how many there are.
      first_code: the lowest code of a one-hot observation.
      first_action: the environment's number of our action 0.
    """

    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding
    num_actions: int
    first_code: int = 0
    first_action: int = 0


def is_envpools(name: str) -> bool:
    """Return whether EnvPool has an environment of that name."""
    import envpool

    return name in envpool.list_all_envs()


@functools.cache
def interface_of(name: str) -> Interface:
    """Return what an environment takes and returns.

    Args:
      name: with `gym:` before it, or EnvPool's task id.

    Raises:
      UserError: there is none, or it is none that our agents can play.
    """
    if name.startswith(GYMNASIUM):
        environment = make_gymnasium(name)
        spaces = environment.observation_space, environment.action_space
        environment.close()
    else:
        spaces = _envpool_spaces(name)
    return describe(name, *spaces)


def describe(
    name: str, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]
) -> Interface:
    """Return how to play an environment with these spaces.

    Raises:
      UserError: our agents cannot.
    """
    from gymnasium import spaces

    if not isinstance(actions, spaces.Discrete):
        raise _cannot(name, f"its actions are {_kind(actions)}", "one of n actions")
    num_actions, first_action = int(actions.n), int(actions.start)
    if num_actions > MAX_ACTIONS:
        raise _cannot(name, f"it has {num_actions} actions", f"at most {MAX_ACTIONS}")
    if isinstance(observations, spaces.Discrete):
        codes = int(observations.n)
        if codes > MAX_CODES:
            raise _cannot(
                name,
                f"its observation is one of {codes} numbers",
                f"at most {MAX_CODES}, which agents see one-hot",
            )
        return Interface(
            (codes,),
            "bool",
            "one_hot",
            num_actions,
            first_code=int(observations.start),
            first_action=first_action,
        )
    if not isinstance(observations, spaces.Box | spaces.MultiBinary):
        raise _cannot(name, f"it shows {_kind(observations)}", "a plain array")
    shape, dtype, encoding = _array(observations)
    return Interface(shape, dtype, encoding, num_actions, first_action=first_action)


def make_gymnasium(
    name: str, *, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """Return one of Gymnasium's environments.

    Args:
      name: with `gym:` before it.
      render_mode: Gymnasium's.

    Raises:
      UserError: Gymnasium is not installed, has no such environment, or cannot make it.
    """
    if importlib.util.find_spec("gymnasium") is None:
        raise UserError(f"{name}: Gymnasium is not installed (pip install gymnasium)")
    import gymnasium

    see_working_directory()
    task_id = name.removeprefix(GYMNASIUM)
    # Of which not all environments know.
    options: dict[str, Any] = (
        {} if render_mode is None else {"render_mode": render_mode}
    )
    try:
        with quiet():
            # The checker's remarks on first steps could be silenced there alone.
            return gymnasium.make(task_id, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        known = list(gymnasium.registry)
        raise UserError(
            f"{name}: Gymnasium has no '{task_id}'{nearest(task_id, known)} ({error}); "
            "one that a module registers is gym:MODULE:ID"
        ) from None
    except Exception as error:  # whatever the environment raises
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: Gymnasium cannot make it ({what})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence remarks of environments, such as that there is a newer version.

    While they are made: the filters of warnings are the whole process's, and setting
    them takes longer than many a step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _envpool_spaces(name: str) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    import envpool

    try:
        with quiet():
            spec = envpool.make_spec(name)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"{name}: EnvPool cannot make it ({error})") from None
    if getattr(spec.config, "max_num_players", 1) > 1:
        raise _cannot(name, "it is for several players", "one")
    with quiet():
        return spec.observation_space, spec.action_space


def _array(
    space: gymnasium.spaces.Box[Any] | gymnasium.spaces.MultiBinary,
) -> tuple[tuple[int, ...], str, Encoding]:
    """Return shape and dtype as agents see them, and how to get there."""
    shape = tuple(int(size) for size in space.shape)
    if not shape:
        return (1,), "float32", "add_channel"
    high = getattr(space, "high", 1)  # of bits
    is_pixels = str(space.dtype) == "uint8" and bool(np.all(high == 255))
    dtype = "uint8" if is_pixels else "float32"
    if is_pixels and len(shape) == 2:
        return (*shape, 1), dtype, "add_channel"
    if is_pixels and len(shape) == 3 and shape[0] < min(shape[1:]):
        return (*shape[1:], shape[0]), dtype, "channels_first"
    return shape, dtype, "plain"


def _cannot(name: str, what: str, allowed: str) -> UserError:
    return UserError(
        f"{name}: {what}, which agents here cannot play (allowed: {allowed})"
    )


def _kind(space: gymnasium.Space[Any]) -> str:
    """Return a word or two for a space."""
    if isinstance(getattr(space, "spaces", None), Mapping):
        return "a dictionary"
    shape = space.shape
    numbers = "" if shape is None else f" of {math.prod(shape)} numbers"
    return f"{type(space).__name__}{numbers}"
