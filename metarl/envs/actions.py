"""What each action of each game means, so that agents of different games can compare.

EnvPool exposes no meanings: these are the Arcade Learning Environment's action names
and, per game, its minimal action set (the tests read both out of `ale-py`). A static
table; must not import envpool or jax.
"""

from __future__ import annotations

ATARI_FULL = (
    "NOOP",
    "FIRE",
    "UP",
    "RIGHT",
    "LEFT",
    "DOWN",
    "UPRIGHT",
    "UPLEFT",
    "DOWNRIGHT",
    "DOWNLEFT",
    "UPFIRE",
    "RIGHTFIRE",
    "LEFTFIRE",
    "DOWNFIRE",
    "UPRIGHTFIRE",
    "UPLEFTFIRE",
    "DOWNRIGHTFIRE",
    "DOWNLEFTFIRE",
)
"""The 18 actions of the console's joystick, in the order of ALE's enumeration."""

# Game names by minimal action set. A set is written as one letter per action, `a` for
# NOOP to `r` for DOWNLEFTFIRE, in the order of the enumeration, which is EnvPool's.
_MINIMAL_SETS = {
    "abcdefghijklmnopqr": """
        Adventure Alien BankHeist BattleZone Berzerk Boxing Centipede ChopperCommand
        Crossbow Darkchambers Defender DonkeyKong DoubleDunk Earthworld ElevatorAction
        Entombed Et FishingDerby FlagCapture Frostbite Gravitar Hangman HauntedHouse
        Hero HumanCannonball IceHockey Jamesbond Kangaroo Klax Krull LaserGates
        MarioBros MiniatureGolf MontezumaRevenge Pitfall Pitfall2 PrivateEye Riverraid
        RoadRunner Robotank Seaquest Solaris SpaceWar StarGunner Superman Tennis
        Trondead Venture VideoCube WordZapper YarsRevenge Zaxxon""",
    "acdefghijlmnopqr": "JourneyEscape",
    "abcdefghijklmn": "KeystoneKapers",
    "abcdefghklmnop": "Asteroids",
    "acdefijlmnopqr": "KungFuMaster",
    "abcdefghijlm": "Turmoil",
    "abcdefghij": "Othello TicTacToe3d VideoChess",
    "abcdefklmn": "Amidar MrDo TimePilot WizardOfWor",
    "abcdefklm": "VideoPinball",
    "abcdeghlm": "BeamRider",
    "abdefijlm": "Enduro",
    "acdefghij": "Asterix CrazyClimber Koolaid LostLuggage MsPacman",
    "abcdeklm": "Gopher",
    "abdeflmn": "Phoenix",
    "acdefklm": "Tutankham",
    "abcdelm": "Assault",
    "abcdef": "BasicMath KingKong Qbert",
    "abcfkn": "Bowling Pooyan UpNDown",
    "abdelm": """
        AirRaid Carnival DemonAttack Galaxian NameThisGame Pong SirLancelot
        SpaceInvaders""",
    "abdef": "Tetris",
    "acdef": "Frogger Pacman Surround",
    "bghij": "VideoCheckers",
    "abcf": "Blackjack Casino",
    "abde": "Breakout Kaboom",
    "ablm": "Atlantis Atlantis2",
    "acf": "Freeway",
    "ade": "Skiing",
    "bde": "Backgammon",
}

ATARI_MINIMAL: dict[str, tuple[str, ...]] = {
    f"{name}-v5": tuple(ATARI_FULL[ord(letter) - ord("a")] for letter in letters)
    for letters, names in _MINIMAL_SETS.items()
    for name in names.split()
}
"""Minimal action set of each of EnvPool's 104 Atari games, by task id."""

WITHOUT_FIRE = frozenset({"LostLuggage-v5", "Skiing-v5"})
"""Games whose "full" set in EnvPool has the nine actions without FIRE only."""

CATCH = ("LEFT", "NOOP", "RIGHT")
CARTPOLE = ("LEFT", "RIGHT")
ACROBOT = ("TORQUE_MINUS", "NOOP", "TORQUE_PLUS")
MOUNTAIN_CAR = ("LEFT", "NOOP", "RIGHT")
FROZEN_LAKE = ("LEFT", "DOWN", "RIGHT", "UP")
# openai/procgen, procgen/env.py: keys held together, then the six special keys.
PROCGEN = (
    "LEFT_DOWN",
    "LEFT",
    "LEFT_UP",
    "DOWN",
    "NOOP",
    "UP",
    "RIGHT_DOWN",
    "RIGHT",
    "RIGHT_UP",
    "KEY_D",
    "KEY_A",
    "KEY_W",
    "KEY_S",
    "KEY_Q",
    "KEY_E",
)
# Matthews et al., "Craftax" (2024): the actions of its classic form, and then those
# that its full form adds.
CRAFTAX_CLASSIC = (
    "NOOP",
    "LEFT",
    "RIGHT",
    "UP",
    "DOWN",
    "DO",
    "SLEEP",
    "PLACE_STONE",
    "PLACE_TABLE",
    "PLACE_FURNACE",
    "PLACE_PLANT",
    "MAKE_WOOD_PICKAXE",
    "MAKE_STONE_PICKAXE",
    "MAKE_IRON_PICKAXE",
    "MAKE_WOOD_SWORD",
    "MAKE_STONE_SWORD",
    "MAKE_IRON_SWORD",
)
CRAFTAX = (
    *CRAFTAX_CLASSIC,
    *[
        "REST",
        "DESCEND",
        "ASCEND",
        "MAKE_DIAMOND_PICKAXE",
        "MAKE_DIAMOND_SWORD",
        "MAKE_IRON_ARMOUR",
        "MAKE_DIAMOND_ARMOUR",
        "SHOOT_ARROW",
        "MAKE_ARROW",
        "CAST_FIREBALL",
        "CAST_ICEBALL",
        "PLACE_TORCH",
        "DRINK_POTION_RED",
        "DRINK_POTION_GREEN",
        "DRINK_POTION_BLUE",
        "DRINK_POTION_PINK",
        "DRINK_POTION_CYAN",
        "DRINK_POTION_YELLOW",
        "READ_BOOK",
        "ENCHANT_SWORD",
        "ENCHANT_ARMOUR",
        "MAKE_TORCH",
        "LEVEL_UP_DEXTERITY",
        "LEVEL_UP_STRENGTH",
        "LEVEL_UP_INTELLIGENCE",
        "ENCHANT_BOW",
    ],
)
MINIGRID = (
    "TURN_LEFT",
    "TURN_RIGHT",
    "FORWARD",
    "PICKUP",
    "DROP",
    "TOGGLE",
    "DONE",
)
MINIGRID_MOVES = MINIGRID[:3]
"""All that the Dynamic-Obstacles tasks accept."""


def atari_meanings(task_id: str, *, full: bool) -> tuple[str, ...]:
    """Return the meaning of each action of an Atari game.

    Args:
      task_id: EnvPool's task id, such as `Pong-v5`.
      full: all 18 actions, otherwise the game's minimal set.
    """
    return ATARI_FULL if full else ATARI_MINIMAL[task_id]


def atari_action_map(task_id: str, *, full: bool) -> tuple[int, ...] | None:
    """Return EnvPool's index of each action, or None where the two are the same.

    EnvPool accepts nine actions where others have 18 in the games of `WITHOUT_FIRE`
    (and reads past the end of its table at a higher index). There the actions with
    FIRE do nothing, as in ALE itself, so that all games share the 18 actions.
    """
    if not (full and task_id in WITHOUT_FIRE):
        return None
    accepted = [name for name in ATARI_FULL if "FIRE" not in name]
    return tuple(accepted.index(name) if name in accepted else 0 for name in ATARI_FULL)
