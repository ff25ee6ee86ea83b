"""Games: which exist, what their actions mean, what scores are known.

A game is its EnvPool task id whatever its options: Catch on a 5 x 5 board is the game
`Catch-v0`, like Catch on any other. Static tables; must not import envpool or jax.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from importlib import resources
from typing import Literal

from metarl.envs import actions, open_games
from metarl.errors import UserError, nearest

Family = Literal[
    "atari",
    "catch",
    "cartpole",
    "acrobot",
    "mountain_car",
    "frozen_lake",
    "minigrid",
    "procgen",
    "craftax",
    "gymnasium",
    "envpool",
]
"""The last two are of games outside these tables; see `open_games.py`."""


@dataclasses.dataclass(frozen=True)
class Game:
    """One game, whatever the options it is played with.

    Attributes:
      task_id: EnvPool's name of it.
      family: decides the observations, and which options apply.
      random_score: mean return of a random policy, where published; of ProcGen the
        lower end of the published range.
      human_score: that of a human player.
      best_score: the highest return there is, where that is known.
    """

    task_id: str
    family: Family
    random_score: float | None = None
    human_score: float | None = None
    best_score: float | None = None


def _read_table(name: str) -> list[dict[str, str]]:
    path = resources.files("metarl.envs") / "data" / name
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _read_scores() -> dict[str, tuple[float, float]]:
    """Return (random, human) by task id."""
    rows = _read_table("atari57_scores.csv")
    return {row["game"]: (float(row["random"]), float(row["human"])) for row in rows}


def _procgen_games() -> list[Game]:
    """Return the 16 games in both modes, each with its range of scores."""
    return [
        Game(
            f"{row['game'].capitalize()}{mode}-v0",
            "procgen",
            random_score=float(row[f"{mode.lower()}_min"]),
            best_score=float(row[f"{mode.lower()}_max"]),
        )
        for mode in ("Hard", "Easy")
        for row in _read_table("procgen_scores.csv")
    ]


# MiniGrid tasks whose mission never changes: it is a sentence, which agents don't see.
_MINIGRID_GAMES = (
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-Dynamic-Obstacles-5x5-v0",
    "MiniGrid-Dynamic-Obstacles-6x6-v0",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-Empty-5x5-v0",
    "MiniGrid-Empty-6x6-v0",
    "MiniGrid-Empty-8x8-v0",
    "MiniGrid-Empty-Random-5x5-v0",
    "MiniGrid-Empty-Random-6x6-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-LavaCrossingS9N1-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-LavaGapS6-v0",
    "MiniGrid-LavaGapS7-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-SimpleCrossingS9N1-v0",
    "MiniGrid-SimpleCrossingS9N2-v0",
    "MiniGrid-SimpleCrossingS9N3-v0",
    "MiniGrid-Unlock-v0",
)


def _all_games() -> dict[str, Game]:
    scores = _read_scores()
    games = [
        Game(task_id, "atari", *scores.get(task_id, (None, None)))
        for task_id in sorted(actions.ATARI_MINIMAL)
    ]
    games += [
        Game("Catch-v0", "catch", best_score=1.0),
        Game("CartPole-v1", "cartpole", best_score=500.0),
        Game("Acrobot-v1", "acrobot"),
        Game("MountainCar-v0", "mountain_car"),
        Game("FrozenLake-v1", "frozen_lake", best_score=1.0),
        Game("FrozenLake8x8-v1", "frozen_lake", best_score=1.0),
    ]
    games += [Game(name, "minigrid", best_score=1.0) for name in _MINIGRID_GAMES]
    games += _procgen_games()
    # All achievements: Matthews et al. (2024), and Hafner (2021) for the classic form.
    games += [
        Game("Craftax-Symbolic-v1", "craftax", best_score=226.0),
        Game("Craftax-Classic-Symbolic-v1", "craftax", best_score=22.0),
    ]
    return {game.task_id: game for game in games}


GAMES: dict[str, Game] = _all_games()
"""Every game that can be named, by task id."""


def get_game(name: str, *, field: str = "game", also: Iterable[str] = ()) -> Game:
    """Return the game of a task id, with or without its version (`Pong-v5`, `Pong`).

    Beyond the tables: `gym:CartPole-v1` is Gymnasium's environment of that name, and
    EnvPool's other task ids are what they are.

    Args:
      name: what the user wrote.
      field: where the user wrote it, for the message.
      also: names of other things that are allowed there, for the message.

    Raises:
      UserError: no game has that name.
    """
    if name in GAMES:
        return GAMES[name]
    matches = [game for game in GAMES if game.rpartition("-v")[0] == name]
    if len(matches) == 1:
        return GAMES[matches[0]]
    if name.startswith(open_games.GYMNASIUM):
        return Game(name, "gymnasium")
    if open_games.is_envpools(name):
        return Game(name, "envpool")
    names = [*GAMES, *(game.rpartition("-v")[0] for game in GAMES), *also]
    raise UserError(
        f"{field}: unknown game '{name}'{nearest(name, names)} "
        "(`metarl games` lists them all)"
    )


def human_normalized_score(game: str | Game, episode_return: float) -> float | None:
    """Return (return - random) / (human - random); None where no scores are known."""
    game = get_game(game) if isinstance(game, str) else game
    if game.random_score is None or game.human_score is None:
        return None
    span = game.human_score - game.random_score
    return (episode_return - game.random_score) / span


def action_meanings(task_id: str, *, full: bool = False) -> tuple[str, ...]:
    """Return what each action of a game means; `full` applies to Atari alone."""
    family = get_game(task_id).family
    if family in ("gymnasium", "envpool"):
        number = open_games.interface_of(task_id).num_actions
        return tuple(f"ACTION_{i}" for i in range(number))
    if family == "craftax":
        is_classic = task_id.startswith("Craftax-Classic")
        return actions.CRAFTAX_CLASSIC if is_classic else actions.CRAFTAX
    if family == "atari":
        return actions.atari_meanings(task_id, full=full)
    if family == "minigrid":
        moves_only = task_id.startswith("MiniGrid-Dynamic-Obstacles")
        return actions.MINIGRID_MOVES if moves_only else actions.MINIGRID
    return {
        "catch": actions.CATCH,
        "cartpole": actions.CARTPOLE,
        "acrobot": actions.ACROBOT,
        "mountain_car": actions.MOUNTAIN_CAR,
        "frozen_lake": actions.FROZEN_LAKE,
        "procgen": actions.PROCGEN,
    }[family]
