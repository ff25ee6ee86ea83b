"""Games and suites: which exist, how they are split, what scores are known.

A game is its EnvPool task id whatever its options: Catch on a 5 x 5 board is the game
`Catch-v0`, like Catch on any other. Suites carry the options. Static tables; must not
import envpool or jax.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from importlib import resources
from typing import Literal

from metarl.envs import actions
from metarl.errors import UserError, nearest

Family = Literal[
    "atari",
    "catch",
    "cartpole",
    "acrobot",
    "mountain_car",
    "frozen_lake",
    "minigrid",
]
Split = Literal["discovery", "validation", "held_out"]
Options = tuple[tuple[str, int], ...]
"""EnvPool options of a task beyond the configuration's, such as the board's size."""


@dataclasses.dataclass(frozen=True)
class Game:
    """One game, whatever the options it is played with.

    Attributes:
      task_id: EnvPool's name of it.
      family: decides the observations, and which options apply.
      random_score: mean return of a random policy, where published.
      human_score: that of a human player.
      best_score: the highest return there is, where that is known.
    """

    task_id: str
    family: Family
    random_score: float | None = None
    human_score: float | None = None
    best_score: float | None = None


@dataclasses.dataclass(frozen=True)
class Suite:
    """Games that are trained on, or compared, together.

    Attributes:
      name: what users call it.
      family: of all its games.
      games: task ids, in the order in which a population cycles through them.
      env_steps: default budget of one agent (group) on one game, in environment steps.
      description: one line.
      options: EnvPool options of every task.
    """

    name: str
    family: Family
    games: tuple[str, ...]
    env_steps: int
    description: str
    options: Options = ()


@dataclasses.dataclass(frozen=True)
class GameRow:
    """One line of `metarl games`."""

    game: str
    family: Family
    split: Split | None
    suites: tuple[str, ...]
    random_score: float | None
    human_score: float | None
    best_score: float | None
    num_actions: int
    action_meanings: tuple[str, ...]


def _read_scores() -> dict[str, tuple[float, float]]:
    """Return (random, human) by task id."""
    path = resources.files("metarl.envs") / "data" / "atari57_scores.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["game"]: (float(row["random"]), float(row["human"])) for row in rows}


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
    return {game.task_id: game for game in games}


GAMES: dict[str, Game] = _all_games()
"""Every game that can be named, by task id."""

_ATARI57 = tuple(name for name, game in GAMES.items() if game.human_score is not None)
_ATARI47 = tuple(
    name
    for name, game in GAMES.items()
    if game.family == "atari" and game.human_score is None
)
# Aitchison, Sweetser and Hutter, "Atari-5" (ICML 2023): five games whose scores
# predict the median over all 57 best, and three others to validate on.
_ATARI5 = (
    "BattleZone-v5",
    "DoubleDunk-v5",
    "NameThisGame-v5",
    "Phoenix-v5",
    "Qbert-v5",
)
_ATARI3_VAL = ("Assault-v5", "MsPacman-v5", "YarsRevenge-v5")
_ATARI49 = tuple(name for name in _ATARI57 if name not in _ATARI5 + _ATARI3_VAL)
# Drawn once from the 49 discovery games, so that what is held out stays so: the 16 task
# ids with the smallest SHA-256.
_ATARI16 = (
    "Alien-v5",
    "Asterix-v5",
    "Atlantis-v5",
    "BeamRider-v5",
    "Boxing-v5",
    "CrazyClimber-v5",
    "Defender-v5",
    "Freeway-v5",
    "Kangaroo-v5",
    "MontezumaRevenge-v5",
    "Pong-v5",
    "Solaris-v5",
    "TimePilot-v5",
    "UpNDown-v5",
    "WizardOfWor-v5",
    "Zaxxon-v5",
)
_DENSE8 = (
    "AirRaid-v5",
    "Carnival-v5",
    "Frogger-v5",
    "Galaxian-v5",
    "Kaboom-v5",
    "MrDo-v5",
    "Pooyan-v5",
    "Turmoil-v5",
)

# 200 million frames with frame-skip 4 (Machado et al. 2018).
_ATARI_ENV_STEPS = 50_000_000


def _atari(name: str, games: tuple[str, ...], description: str) -> Suite:
    return Suite(name, "atari", games, _ATARI_ENV_STEPS, description)


_SUITES = (
    _atari("atari57", _ATARI57, "the 57 games with human scores"),
    _atari("atari49_discovery", _ATARI49, "atari57 without atari5 and atari3_val"),
    _atari("atari3_val", _ATARI3_VAL, "atari57's games to validate rules on"),
    _atari("atari5", _ATARI5, "atari57's held-out games"),
    _atari("atari16_random", _ATARI16, "16 of atari49_discovery, drawn once"),
    _atari("atari47", _ATARI47, "EnvPool's Atari games outside atari57; raw scores"),
    _atari(
        "atari47_dense8",
        _DENSE8,
        "games of atari47 in which a random policy is often rewarded",
    ),
    Suite("catch", "catch", ("Catch-v0",), 200_000, "Catch on EnvPool's 10 x 5 board"),
    Suite(
        "catch_5x5",
        "catch",
        ("Catch-v0",),
        100_000,
        "Catch on a 5 x 5 board",
        (("height", 5), ("width", 5)),
    ),
    Suite(
        "catch_8x8",
        "catch",
        ("Catch-v0",),
        200_000,
        "Catch on an 8 x 8 board",
        (("height", 8), ("width", 8)),
    ),
    Suite("cartpole", "cartpole", ("CartPole-v1",), 500_000, "balance a pole"),
    Suite("acrobot", "acrobot", ("Acrobot-v1",), 500_000, "swing two links up"),
    Suite(
        "mountain_car",
        "mountain_car",
        ("MountainCar-v0",),
        500_000,
        "drive out of a valley, without reward before",
    ),
    Suite("frozen_lake", "frozen_lake", ("FrozenLake-v1",), 500_000, "slippery 4 x 4"),
    Suite(
        "minigrid",
        "minigrid",
        (
            "MiniGrid-DoorKey-5x5-v0",
            "MiniGrid-Empty-Random-6x6-v0",
            "MiniGrid-FourRooms-v0",
            "MiniGrid-LavaGapS5-v0",
            "MiniGrid-MultiRoom-N2-S4-v0",
            "MiniGrid-SimpleCrossingS9N1-v0",
            "MiniGrid-Unlock-v0",
        ),
        2_000_000,
        "seven MiniGrid tasks with one fixed mission each",
    ),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
"""Every suite, by name."""

_SPLITS: dict[Split, str] = {
    "discovery": "atari49_discovery",
    "validation": "atari3_val",
    "held_out": "atari5",
}


def get_game(name: str, *, field: str = "game") -> Game:
    """Return the game of a task id, with or without its version (`Pong-v5`, `Pong`).

    Args:
      name: what the user wrote.
      field: where the user wrote it, for the message.

    Raises:
      UserError: no game has that name.
    """
    if name in GAMES:
        return GAMES[name]
    matches = [game for game in GAMES if game.rpartition("-v")[0] == name]
    if len(matches) == 1:
        return GAMES[matches[0]]
    names = [*GAMES, *(game.rpartition("-v")[0] for game in GAMES)]
    raise UserError(
        f"{field}: unknown game '{name}'{nearest(name, names)} "
        "(`metarl games` lists them all)"
    )


def get_suite(name: str, *, split: str | None = None, field: str = "suite") -> Suite:
    """Return a suite, or the part of it that one split of its games makes up.

    Args:
      name: of the suite.
      split: `discovery`, `validation` or `held_out`, for atari57.
      field: where the user wrote it, for the message.

    Raises:
      UserError: no suite has that name, or it has no such split.
    """
    if name not in SUITES:
        raise UserError(
            f"{field}: unknown suite '{name}'{nearest(name, SUITES)} "
            f"(allowed: {', '.join(SUITES)})"
        )
    if split is None:
        return SUITES[name]
    if name != "atari57":
        raise UserError(f"{field}: {name} has no splits, atari57 has")
    for part, suite in _SPLITS.items():
        if part == split:
            return SUITES[suite]
    raise UserError(
        f"{field}: no split '{split}' of atari57{nearest(split, _SPLITS)} "
        f"(allowed: {', '.join(_SPLITS)})"
    )


def list_suites() -> tuple[Suite, ...]:
    """Return all suites, Atari first."""
    return tuple(SUITES.values())


def split_of(task_id: str) -> Split | None:
    """Return the part of the default split that a game is in; None outside atari57.

    Whether a rule has *seen* a game is in the rule's manifest, not here.
    """
    for split, suite in _SPLITS.items():
        if task_id in SUITES[suite].games:
            return split
    return None


def human_normalized_score(game: str | Game, episode_return: float) -> float | None:
    """Return (return - random) / (human - random); None where no scores are known."""
    game = get_game(game) if isinstance(game, str) else game
    if game.random_score is None or game.human_score is None:
        return None
    span = game.human_score - game.random_score
    return (episode_return - game.random_score) / span


def action_meanings(task_id: str, *, full: bool = False) -> tuple[str, ...]:
    """Return what each action of a game means; `full` applies to Atari alone."""
    family = GAMES[task_id].family
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
    }[family]


@functools.cache
def game_rows(suite: str | None = None) -> tuple[GameRow, ...]:
    """Return what `metarl games [--suite SUITE]` lists, a row per game.

    Actions are the minimal set of Atari games; populations use all 18 by default.
    """
    names = GAMES if suite is None else get_suite(suite, field="--suite").games
    return tuple(
        GameRow(
            game=name,
            family=GAMES[name].family,
            split=split_of(name),
            suites=tuple(s.name for s in list_suites() if name in s.games),
            random_score=GAMES[name].random_score,
            human_score=GAMES[name].human_score,
            best_score=GAMES[name].best_score,
            num_actions=len(action_meanings(name)),
            action_meanings=action_meanings(name),
        )
        for name in names
    )
