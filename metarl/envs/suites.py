"""Suites: games that are trained on, or compared, together, and how they are split.

The games themselves are in `games.py`, and can be had from here too; suites carry the
options. Static tables; must not import envpool or jax.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from metarl.envs.games import (
    GAMES,
    Family,
    Game,
    action_meanings,
    get_game,
    human_normalized_score,
)
from metarl.errors import UserError, nearest

__all__ = [
    "GAMES",
    "SUITES",
    "Family",
    "Game",
    "GameRow",
    "Split",
    "Suite",
    "action_meanings",
    "game_rows",
    "get_game",
    "get_suite",
    "human_normalized_score",
    "list_suites",
    "split_of",
]

Split = Literal["discovery", "validation", "held_out"]
Options = tuple[tuple[str, int], ...]
"""EnvPool options of a task beyond the configuration's, such as the board's size."""


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


def _procgen(mode: str) -> tuple[str, ...]:
    return tuple(
        name
        for name, game in GAMES.items()
        if game.family == "procgen" and f"{mode}-" in name
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
    Suite(
        "procgen",
        "procgen",
        _procgen("Hard"),
        # Oh et al. (2025), Extended Data Table 2, which train and score on 500 levels.
        50_000_000,
        "the 16 ProcGen games, hard, on 500 levels each",
        (("num_levels", 500),),
    ),
    Suite(
        "procgen_easy",
        "procgen",
        _procgen("Easy"),
        25_000_000,  # Cobbe et al. (2020)
        "the 16 ProcGen games, easy, on all levels",
    ),
    Suite(
        "craftax",
        "craftax",
        ("Craftax-Symbolic-v1",),
        100_000_000,
        "Craftax with symbolic observations",
    ),
    Suite(
        "craftax_classic",
        "craftax",
        ("Craftax-Classic-Symbolic-v1",),
        10_000_000,
        "Craftax-Classic with symbolic observations",
    ),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
"""Every suite, by name."""

_SPLITS: dict[Split, str] = {
    "discovery": "atari49_discovery",
    "validation": "atari3_val",
    "held_out": "atari5",
}


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
