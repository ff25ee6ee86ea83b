"""Agents that are tested among distractors: returns, divergences, what is stored."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from metarl.config import (
    ActorCriticConfig,
    DistractorsConfig,
    EnvironmentConfig,
    EvaluationConfig,
    RobustnessConfig,
    TrainConfig,
)
from metarl.envs.distractors import training_set, unseen_set
from metarl.envs.pool import Pool
from metarl.envs.suites import get_game
from metarl.envs.tasks import Task
from metarl.errors import UserError
from metarl.evaluation import evaluate, results
from metarl.evaluation.cell_records import make_result
from metarl.evaluation.cells import plan
from metarl.evaluation.robustness import kl_divergence, measure
from metarl.evaluation.robustness_records import Robustness, mean_over
from metarl.evaluation.tuning_grid import plan_grids
from metarl.rule_files import LoadedRule, new_manifest
from metarl.rules import make_rule

CATCH = Task(get_game("Catch-v0"))
BACKGROUNDS = DistractorsConfig(kind="backgrounds", strength=0.8)
AMONG = EnvironmentConfig(catch_pixels=2, distractors=BACKGROUNDS)
KINDS = ["environment.catch_pixels=1", "environment.distractors.kind=backgrounds"]
TINY = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=300",
    "curve_points=3",
    "seeds=[1]",
]
TESTED = [*KINDS, "robustness={episodes: 6, unseen: 5}"]


def small_rule() -> LoadedRule:
    config = ActorCriticConfig(num_bins=5, max_abs_value=2.0)
    return LoadedRule(make_rule(config), {}, new_manifest(config), "small")


def to_the_ball(frames: np.ndarray) -> np.ndarray:
    """Return logits ``[B, 3]`` of the way to the ball, of what is white alone."""
    board = (frames[:, ::2, ::2].min(axis=-1) == 255).reshape(-1, 10, 5)
    paddle = board[:, -1].argmax(axis=-1)
    # In the last row the paddle alone; the ball is above it until the very end.
    ball = board[:, :-1].any(axis=1).argmax(axis=-1)
    return 30.0 * np.eye(3)[1 + np.sign(ball - paddle)]


def greedy(logits_of):
    def policy(frames, _):
        logits = logits_of(frames)
        return logits.argmax(axis=-1).astype(np.int32), logits

    return policy


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- What is measured -------------------------------------------------------------


def test_the_divergence_is_the_formulas():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    # Logits of any level give the same policy.
    found = kl_divergence(np.log(p)[None] + 7, np.log(q)[None] - 3)
    expected = 0.5 * np.log(2.5) + 0.25 * np.log(1.25) + 0.25 * np.log(0.25 / 0.6)
    np.testing.assert_allclose(found, [expected], rtol=1e-12)
    same = np.random.default_rng(0).normal(size=(5, 3))
    assert kl_divergence(same, same).tolist() == [0.0] * 5
    assert (kl_divergence(same[:-1], same[1:]) > 0).all()


def test_an_action_without_a_chance_counts_where_the_first_policy_takes_it():
    never = np.array([[0.0, -np.inf]])
    even = np.zeros((1, 2))
    assert kl_divergence(never, never).tolist() == [0.0]
    np.testing.assert_allclose(kl_divergence(never, even), [np.log(2)])
    assert kl_divergence(even, never).tolist() == [np.inf]


def test_a_policy_that_is_not_finite_has_no_divergence():
    even, broken = np.zeros((1, 2)), np.full((1, 2), np.nan)
    for pair in ((broken, even), (even, broken), (broken, broken)):
        assert np.isnan(kl_divergence(*pair)).all()


def test_a_policy_that_ignores_what_is_altered_does_not_move_at_all():
    config = RobustnessConfig(episodes=40, unseen=20)
    found = measure(greedy(to_the_ball), CATCH, AMONG, config, seed=5)
    # Backgrounds of strength 0.8 are never white.
    assert found == Robustness(40, 1.0, 1.0, 1.0, 0.0, 0.0)


def test_the_same_agent_is_measured_alike_and_from_other_seeds_otherwise():
    def doubtful(frames):
        return 0.1 * to_the_ball(frames) + frames[:, 4, 4] / 100

    def policy(frames, step):
        logits = doubtful(frames)
        draws = np.random.default_rng(step).gumbel(size=logits.shape)
        return (logits + draws).argmax(axis=-1).astype(np.int32), logits

    config = RobustnessConfig(episodes=30)
    first, again, other = (
        measure(policy, CATCH, AMONG, config, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.clean_return != other.clean_return
    assert first.unseen_kl != other.unseen_kl


def test_a_policy_that_sees_it_moves_as_the_formula_says():
    """Of a policy that never acts by it, so that the states are known."""

    def of_brightness(frames):
        mean = frames.astype(np.float64).mean(axis=(1, 2, 3)) / 255
        return np.stack([np.zeros_like(mean), 5 + mean, np.zeros_like(mean)], axis=-1)

    config = RobustnessConfig(episodes=7, unseen=3)
    found = measure(greedy(of_brightness), CATCH, AMONG, config, seed=5)
    clean = AMONG.model_copy(update={"distractors": DistractorsConfig()})
    pool = Pool(CATCH, clean, num_envs=7, seed=5)
    sets = (
        training_set(BACKGROUNDS, pool.spec),
        unseen_set(BACKGROUNDS, pool.spec, 3),
    )
    frames, total, states = pool.reset(), np.zeros(2), 0
    returns = np.zeros(7)
    for _ in range(9):  # of an episode of Catch
        for i, members in enumerate(sets):
            seen = members.altered(frames, np.arange(7) % len(members))
            p, q = (
                np.exp(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
                for x in (of_brightness(frames), of_brightness(seen))
            )
            total[i] += (p * np.log(p / q)).sum()
        states += 7
        step = pool.step(np.ones(7, np.int32))
        frames, returns = step.observations, returns + step.raw_rewards
    assert step.is_terminal.all()
    np.testing.assert_allclose(
        [found.train_kl, found.unseen_kl], total / states, rtol=1e-9
    )
    assert min(found.train_kl, found.unseen_kl) > 1e-5
    stays = returns.mean()
    assert (found.clean_return, found.train_return, found.unseen_return) == (stays,) * 3


def test_a_policy_is_judged_by_what_it_does_among_each_set():
    """Catches on clean frames, and wherever it knows the distractor."""
    config = RobustnessConfig(episodes=60, unseen=20)
    pool = Pool(CATCH, AMONG, num_envs=1, seed=0)
    black = np.zeros((8, *pool.spec.observation_shape), np.uint8)
    known = training_set(BACKGROUNDS, pool.spec).altered(black, np.arange(8))

    def of_known(frames):
        board = np.where(frames == 255, 0, frames)
        white = (frames == 255).all(axis=-1, keepdims=True)
        is_known = [
            (np.where(w, 0, known) == b).all(axis=(1, 2, 3)).any() or not b.any()
            for b, w in zip(board, white, strict=True)
        ]
        away = -to_the_ball(frames)
        return np.where(np.array(is_known)[:, None], to_the_ball(frames), away)

    found = measure(greedy(of_known), CATCH, AMONG, config, seed=5)
    assert (found.clean_return, found.train_return) == (1.0, 1.0)
    assert found.unseen_return < 0
    assert found.train_kl == 0.0
    assert found.unseen_kl > 10


def test_a_policy_whose_divergence_is_infinite_has_none():
    def certain(frames):
        dark = frames.mean(axis=(1, 2, 3)) < 20
        return np.where(dark[:, None], [0.0, 0.0, 0.0], [0.0, 0.0, -np.inf])

    config = RobustnessConfig(episodes=8)
    found = measure(greedy(certain), CATCH, AMONG, config, seed=5)
    assert (found.train_kl, found.unseen_kl) == (None, None)
    assert found.clean_return is not None


def test_a_group_has_the_mean_over_its_peers():
    one = Robustness(6, 1.0, 0.5, 0.0, 0.1, 0.2)
    other = Robustness(6, 0.0, 0.5, -1.0, None, 0.4)
    assert mean_over([one]) == one
    assert mean_over([]) is None
    found = mean_over([one, other])
    assert (found.episodes, found.unseen_return, found.train_kl) == (12, -0.5, None)
    assert found.unseen_kl == pytest.approx(0.3)


# --- In an evaluation -------------------------------------------------------------


def test_agents_are_tested_when_they_have_learned_and_learn_as_without(tmp_path):
    for name, given in (("with", TESTED), ("without", KINDS)):
        place = f"results_dir={tmp_path / name}"
        evaluate([small_rule()], overrides=[*TINY, *given, place])
    (tested,), (plain,) = (
        results.read_cells(tmp_path / name) for name in ("with", "without")
    )
    (found,) = tested.robustness
    assert found.episodes == 6
    # A young agent's policy moves, if not far.
    assert 0 < found.train_kl < 1
    assert 0 < found.unseen_kl < 1
    returns = (found.clean_return, found.train_return, found.unseen_return)
    assert all(-1 <= value <= 1 for value in returns)
    assert tested.curve == plain.curve
    assert tested.result.mean_return == plain.result.mean_return
    assert plain.robustness == ()
    assert "robustness" not in json.loads(
        next((tmp_path / "without" / "cells").glob("*.json")).read_text()
    )
    assert not (tmp_path / "without" / "robustness.csv").exists()
    (row,) = rows_of(tmp_path / "with" / "robustness.csv")
    assert float(row["unseen_kl"]) == found.unseen_kl
    assert (row["rule"], row["group_size"], row["peer"]) == ("small", "1", "")


def test_every_peer_of_a_group_is_tested(tmp_path):
    evaluate(
        [small_rule()],
        overrides=[*TINY, *TESTED, "group_size=2", f"results_dir={tmp_path}"],
    )
    (record,) = results.read_cells(tmp_path)
    one, other = record.robustness
    assert one != other
    rows = rows_of(tmp_path / "robustness.csv")
    assert [row["peer"] for row in rows] == ["", "1", "2"]
    assert float(rows[0]["train_kl"]) == pytest.approx(
        (one.train_kl + other.train_kl) / 2
    )
    assert [row["episodes"] for row in rows] == ["12", "6", "6"]
    assert float(rows[2]["unseen_return"]) == other.unseen_return


def test_a_file_from_before_there_were_distractors_goes_on_to_count(tmp_path):
    (cell,) = plan([small_rule()], overrides=TINY)
    done = make_result(cell, env_steps=300, episodes=1, last_returns=[1.0])
    results.write_cell(tmp_path, cell, done, [], {})
    path = results.cell_path(tmp_path, cell)
    tree = json.loads(path.read_text())
    del tree["settings"]["robustness"]
    for name in ("distractors", "catch_pixels"):
        del tree["settings"]["environment"][name]
    path.write_text(json.dumps(tree))
    assert results.is_finished(tmp_path, cell)
    (other,) = plan([small_rule()], overrides=[*TINY, *KINDS])
    with pytest.raises(UserError, match=r"catch_pixels = null, not 1|kind = "):
        results.is_finished(tmp_path, other)


def test_tries_of_learning_rates_are_not_tested():
    overrides = [
        *TESTED,
        "environment.games=[Catch-v0]",
        "env_steps=2000",
        "tuning.learning_rates=[1e-3]",
        "tuning.games=[Breakout-v5]",
    ]
    cells = plan([small_rule()], overrides=overrides)
    (grid,) = plan_grids(cells, [], overrides)
    assert cells[0].settings.robustness.episodes == 6
    assert grid.tries[0][0].settings.robustness == RobustnessConfig()


# --- Mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["environment.catch_pixels=2", "robustness.episodes=10"],
            "robustness.episodes=10: compares frames with and without distractors, and "
            "there are none (give environment.distractors.kind, such as backgrounds, "
            "too, or leave this out)",
        ),
        (
            [*KINDS, "robustness.unseen=8"],
            "robustness.unseen=8: has no effect without robustness.episodes=100 "
            "(give that too, or leave this out)",
        ),
        (
            ["environment.distractors.strength=0.2"],
            "environment.distractors.strength=0.2: has no effect without "
            "environment.distractors.kind, such as backgrounds (give that too, or "
            "leave this out)",
        ),
        (
            ["environment.distractors.kind=noise"],
            "environment.distractors.kind=noise: is for games that agents see as "
            "pictures, and Catch-v0 is none (it is with environment.catch_pixels=2)",
        ),
        (
            ["environment.suite=cartpole", "environment.catch_pixels=2"],
            "environment.catch_pixels=2: is for Catch alone, and cartpole has no such "
            "game (leave it out)",
        ),
    ],
)
def test_what_has_no_effect_is_refused_in_one_line(overrides, message):
    with pytest.raises(UserError) as caught:
        plan([small_rule()], overrides=[*TINY, *overrides])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("environment.distractors.kind=blur", "none, noise, colours, backgrounds"),
        ("environment.distractors.train=0", "greater than or equal to 1"),
        ("environment.distractors.strength=0", "greater than 0"),
        ("environment.catch_pixels=0", "greater than or equal to 1"),
        ("robustness.episodes=-1", "greater than or equal to 0"),
    ],
)
def test_values_out_of_range_are_refused_with_their_field(override, allowed):
    with pytest.raises(UserError) as caught:
        plan([small_rule()], overrides=[*TINY, *KINDS[:1], override])
    field = override.partition("=")[0]
    assert field in str(caught.value)
    assert allowed in str(caught.value)


def test_distractors_can_be_turned_off_over_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "environment: {catch_pixels: 1, distractors: {kind: noise, train: 4}}\n"
        "robustness: {episodes: 4, unseen: 3}\n"
    )
    off = ["environment.distractors.kind=none", "robustness.episodes=0"]
    (cell,) = plan([small_rule()], [file], [*TINY, *off])
    assert cell.settings.environment.distractors.kind == "none"
    assert EvaluationConfig().robustness.episodes == 0
    assert TrainConfig().environment.distractors.kind == "none"


def test_catch_that_only_tries_rates_may_be_a_picture():
    given = ["environment.games=[Breakout-v5]", "environment.catch_pixels=2"]
    tries = ["tuning.games=[Catch-v0]", "tuning.learning_rates=[1e-3]"]
    assert len(plan([small_rule()], overrides=[*given, *tries])) == 3
    with pytest.raises(UserError, match="is for Catch alone, and Breakout-v5 has no"):
        plan([small_rule()], overrides=given)
