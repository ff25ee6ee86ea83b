"""Games, suites, splits and scores."""

from __future__ import annotations

import hashlib
import math

import envpool
import pytest
from envpool.registration import registry

from metarl.envs import suites
from metarl.envs.suites import GAMES, SUITES, get_game, get_suite
from metarl.errors import UserError


def atari_ids() -> set[str]:
    return {
        name
        for name in envpool.list_all_envs()
        if registry.specs[name][0] == "envpool.atari"
    }


def test_every_game_is_one_of_envpools() -> None:
    everywhere = {name for name, game in GAMES.items() if game.family != "craftax"}
    assert everywhere <= set(envpool.list_all_envs())
    assert {n for n, game in GAMES.items() if game.family == "atari"} == atari_ids()


def test_atari_suites_partition_the_104_games() -> None:
    assert len(SUITES["atari57"].games) == 57
    assert len(SUITES["atari47"].games) == 47
    assert set(SUITES["atari57"].games) | set(SUITES["atari47"].games) == atari_ids()
    assert set(SUITES["atari47_dense8"].games) < set(SUITES["atari47"].games)
    assert len(SUITES["atari47_dense8"].games) == 8


def test_the_default_split_partitions_atari57() -> None:
    parts = [
        get_suite("atari57", split=split).games
        for split in ("discovery", "validation", "held_out")
    ]
    assert [len(part) for part in parts] == [49, 3, 5]
    assert sorted(sum(parts, ())) == list(SUITES["atari57"].games)
    assert parts[1] == ("Assault-v5", "MsPacman-v5", "YarsRevenge-v5")
    assert parts[2] == SUITES["atari5"].games
    assert set(parts[2]) == {
        f"{name}-v5"
        for name in ("BattleZone", "DoubleDunk", "NameThisGame", "Phoenix", "Qbert")
    }
    assert suites.split_of("Qbert-v5") == "held_out"
    assert suites.split_of("Assault-v5") == "validation"
    assert suites.split_of("Pong-v5") == "discovery"
    assert suites.split_of("Kaboom-v5") is None
    with pytest.raises(UserError, match=r"no split 'test' of atari57.*held_out"):
        get_suite("atari57", split="test")
    with pytest.raises(UserError, match="catch has no splits"):
        get_suite("catch", split="discovery")


def test_atari16_random_is_the_documented_draw() -> None:
    by_digest = sorted(
        SUITES["atari49_discovery"].games,
        key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
    )
    assert SUITES["atari16_random"].games == tuple(sorted(by_digest[:16]))


def test_suites_name_known_games_of_their_family_once() -> None:
    for suite in suites.list_suites():
        assert {GAMES[name].family for name in suite.games} == {suite.family}
        assert len(set(suite.games)) == len(suite.games)
        assert suite.env_steps > 0
    assert SUITES["catch"].games == SUITES["catch_5x5"].games == ("Catch-v0",)
    assert dict(SUITES["catch_5x5"].options) == {"height": 5, "width": 5}
    assert SUITES["atari57"].env_steps == 50_000_000


def test_names_are_accepted_without_their_version() -> None:
    assert get_game("Pong") is get_game("Pong-v5") is GAMES["Pong-v5"]
    assert get_game("FrozenLake").task_id == "FrozenLake-v1"
    assert get_game("MiniGrid-Unlock").task_id == "MiniGrid-Unlock-v0"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("Pogn", "Pong"), ("pong-v5", "Pong-v5"), ("MiniGrid-DoorKey-5x", "DoorKey-5x5")],
)
def test_unknown_games_are_refused_with_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UserError) as error:
        get_game(name, field="environment.games")
    message = str(error.value)
    assert message.startswith(f"environment.games: unknown game '{name}'; did you mean")
    assert suggestion in message
    assert "\n" not in message


def test_unknown_suites_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown suite 'catch5x5'; .*'catch_5x5'\?"):
        get_suite("catch5x5")


def test_scores_are_normalized_between_random_and_human() -> None:
    assert suites.human_normalized_score("Pong", -20.7) == 0.0
    assert suites.human_normalized_score("Pong-v5", 14.6) == 1.0
    score = suites.human_normalized_score(GAMES["Breakout-v5"], 400.0)
    assert score is not None
    assert math.isclose(score, (400.0 - 1.7) / (30.5 - 1.7))
    assert suites.human_normalized_score("Kaboom-v5", 100.0) is None
    assert suites.human_normalized_score("Catch-v0", 1.0) is None


def test_procgen_has_16_games_in_two_modes() -> None:
    hard, easy = SUITES["procgen"].games, SUITES["procgen_easy"].games
    assert len(hard) == len(easy) == 16
    assert [name.replace("Hard", "Easy") for name in hard] == list(easy)
    assert dict(SUITES["procgen"].options) == {"num_levels": 500}
    assert SUITES["procgen_easy"].options == ()
    # Ranges of Cobbe et al. (2020), appendix C.
    assert GAMES["CaveflyerHard-v0"].random_score == 2.0
    assert GAMES["CaveflyerHard-v0"].best_score == 13.4
    assert GAMES["FruitbotEasy-v0"].random_score == -1.5
    assert GAMES["StarpilotEasy-v0"].best_score == 64.0
    assert len(suites.action_meanings("MazeHard-v0")) == 15
    assert len(suites.action_meanings("Craftax-Symbolic-v1")) == 43
    assert len(suites.action_meanings("Craftax-Classic-Symbolic-v1")) == 17


def test_rows_list_every_game_and_each_suites_games() -> None:
    rows = {row.game: row for row in suites.game_rows()}
    assert list(rows) == list(GAMES)
    pong = rows["Pong-v5"]
    assert pong.suites == ("atari57", "atari49_discovery", "atari16_random")
    assert (pong.split, pong.random_score, pong.human_score) == (
        "discovery",
        -20.7,
        14.6,
    )
    assert pong.num_actions == 6
    assert pong.action_meanings[:3] == ("NOOP", "FIRE", "RIGHT")
    assert rows["CartPole-v1"].best_score == 500.0
    assert [row.game for row in suites.game_rows("catch_5x5")] == ["Catch-v0"]
    with pytest.raises(UserError, match="--suite: unknown suite 'nope'"):
        suites.game_rows("nope")
