"""Which games a rule has seen, its parents' included."""

from __future__ import annotations

import pytest
from small_rules import SMALL

from metarl.rule_files import Manifest, inherit, status


def _manifest(seen: list[str], validation: list[str]) -> Manifest:
    return Manifest(
        config=SMALL, games_seen=tuple(seen), games_validation=tuple(validation)
    )


def test_status_follows_from_the_manifest() -> None:
    manifest = _manifest(["Pong-v5", "CoinrunHard-v0"], ["Pong-v5", "Assault-v5"])
    assert status(manifest, "Pong-v5") == "seen"  # seen wins over validation
    assert status(manifest, "Assault-v5") == "validation"
    assert status(manifest, "Breakout-v5") == "held_out"
    assert status(manifest, "CoinrunEasy-v0") == "seen"  # an option, not another game
    assert status(manifest, "CoinrunExploration-v0") == "seen"
    assert status(manifest, "MinerEasy-v0") == "held_out"
    assert status(None, "Pong-v5") == "unknown"
    partly = manifest.model_copy(update={"seen_is_complete": False})
    assert status(partly, "Pong-v5") == "seen"
    assert status(partly, "Breakout-v5") == "unknown"
    assert status(partly, "Assault-v5") == "unknown"


@pytest.mark.parametrize(
    ("seen", "same", "others"),
    [
        ("FrozenLake-v1", ["FrozenLake8x8-v1", "gym:FrozenLake-v1"], ["Catch-v0"]),
        (
            "MiniGrid-Empty-5x5-v0",
            ["MiniGrid-Empty-Random-6x6-v0", "gym:minigrid:MiniGrid-Empty-8x8-v0"],
            ["MiniGrid-FourRooms-v0", "MiniGrid-DoorKey-5x5-v0"],
        ),
        (
            "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
            ["MiniGrid-Dynamic-Obstacles-8x8-v0"],
            ["MiniGrid-Empty-8x8-v0"],
        ),
        (
            "MiniGrid-LavaCrossingS9N1-v0",
            ["MiniGrid-LavaCrossingS11N5-v0"],
            ["MiniGrid-SimpleCrossingS9N1-v0", "MiniGrid-LavaGapS5-v0"],
        ),
        ("MiniGrid-LavaGapS5-v0", ["MiniGrid-LavaGapS7-v0"], []),
        ("MiniGrid-MultiRoom-N2-S4-v0", ["MiniGrid-MultiRoom-N6-v0"], []),
        ("MiniGrid-Fetch-5x5-N2-v0", ["MiniGrid-Fetch-8x8-N3-v0"], []),
        ("MiniGrid-MemoryS17Random-v0", ["MiniGrid-MemoryS7-v0"], []),
        ("MiniGrid-DistShift1-v0", ["MiniGrid-DistShift2-v0"], []),
        (
            "MiniGrid-ObstructedMaze-1Dlhb-v0",
            ["MiniGrid-ObstructedMaze-2Dl-v0", "MiniGrid-ObstructedMaze-Full-v1"],
            [],
        ),
        (
            "MiniGrid-Unlock-v0",
            [],
            ["MiniGrid-UnlockPickup-v0", "MiniGrid-WFC-RoomsFabric-v0"],
        ),
        (
            "BabyAI-KeyCorridorS3R1-v0",
            ["BabyAI-KeyCorridor-v0"],
            ["BabyAI-GoToLocalS5N2-v0"],
        ),
    ],
)
def test_all_sizes_of_a_task_are_one_game(
    seen: str, same: list[str], others: list[str]
) -> None:
    manifest = _manifest([seen], [])
    assert {status(manifest, game) for game in [seen, *same]} == {"seen"}
    assert {status(manifest, game) for game in others} <= {"held_out"}


def test_a_rule_inherits_what_its_parents_saw() -> None:
    grandparent = _manifest(["Alien-v5"], ["Qbert-v5"])
    grandparent = grandparent.model_copy(update={"sha256": "a" * 64})
    parent = inherit(_manifest(["Pong-v5"], []), [("old", grandparent)])
    other = _manifest(["Hero-v5"], ["Pong-v5"]).model_copy(update={"sha256": "b" * 64})
    child = inherit(
        _manifest(["Catch-v0"], ["Krull-v5"]), [("mid", parent), ("other", other)]
    )
    assert child.games_seen == ("Alien-v5", "Catch-v0", "Hero-v5", "Pong-v5")
    assert child.games_validation == ("Krull-v5", "Pong-v5", "Qbert-v5")
    assert [p.name for p in child.parents] == ["mid", "other"]
    assert child.parents[1].sha256 == "b" * 64
    assert child.seen_is_complete
    assert status(child, "Pong-v5") == "seen"
    assert status(child, "Qbert-v5") == "validation"
    unsure = other.model_copy(update={"seen_is_complete": False})
    assert not inherit(child, [("unsure", unsure)]).seen_is_complete
