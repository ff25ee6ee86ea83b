"""Aggregates against hand-computed cases, SciPy, published tables and simulations."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from metarl import statistics
from metarl.envs.suites import get_game
from metarl.statistics import Estimate, Runs, interval

PUBLISHED = Path(__file__).parent / "data" / "atari57_oh2025.csv"


def runs(*games) -> Runs:
    return Runs.of(games)


# --- Hand-computed ----------------------------------------------------------------


def test_iqm_is_the_mean_of_the_middle_half():
    # 8 runs: the lowest 2 (0, 1) and the highest 2 (90, 100) are left out.
    assert statistics.iqm(runs([0, 3, 5, 100], [1, 4, 6, 90])) == (3 + 4 + 5 + 6) / 4


def test_a_quarter_that_is_not_whole_is_rounded_down():
    # 6 runs: floor(1.5) = 1 at each end.
    assert statistics.iqm(runs([0, 2, 3], [4, 5, 90])) == (2 + 3 + 4 + 5) / 4
    # 3 runs: none.
    assert statistics.iqm(runs([1, 2, 9])) == 4


def test_games_with_more_seeds_count_no_more():
    # Game one has runs 0 and 8, game two only 4, which counts twice: 0, 4, 4, 8, of
    # which one at each end goes.
    assert statistics.iqm(runs([0, 8], [4])) == 4
    # L = 6: each of three runs counts twice, each of two three times. In order
    # 1 1 2 2 2 3 | 3 5 5 6 6 6; floor(12 / 4) = 3 go at each end.
    middle = [2, 2, 3, 3, 5, 5]
    assert statistics.iqm(runs([1, 3, 5], [2, 6])) == sum(middle) / 6
    # Repeating a game's runs changes nothing at all.
    assert statistics.iqm(runs([1, 3, 5] * 4, [2, 6])) == sum(middle) / 6


def test_mean_and_median_are_over_means_of_games():
    three = runs([0, 2], [5], [10, 20, 30])  # means 1, 5 and 20
    assert statistics.mean(three) == pytest.approx(26 / 3)
    assert statistics.median(three) == 5
    assert statistics.median(runs([0, 2], [5])) == 3


def test_optimality_gap_ignores_what_is_above_one():
    assert statistics.optimality_gap(runs([0.5, 3.0], [0.0])) == (0.25 + 1) / 2


def test_probability_of_improvement_counts_ties_half():
    ours, theirs = runs([1, 3], [5]), runs([1, 2], [0])
    # Game one: 1 ties 1 and loses to 2, 3 beats both: 2.5 of 4. Game two: 1 of 1.
    value = statistics.probability_of_improvement(ours, theirs)
    assert value == pytest.approx((2.5 / 4 + 1) / 2)
    other_way = statistics.probability_of_improvement(theirs, ours)
    assert value + other_way == pytest.approx(1)
    with pytest.raises(ValueError, match="same games"):
        statistics.probability_of_improvement(ours, runs([1]))


def test_profile_is_the_part_of_runs_above():
    found = statistics.performance_profile(runs([0, 1], [1, 2]), [-1, 0, 1, 2])
    np.testing.assert_array_equal(found.values, [1, 0.75, 0.25, 0])
    assert (found.low <= found.values).all()
    assert (found.values <= found.high).all()
    # A game of one run counts as much as one of two.
    uneven = statistics.performance_profile(runs([0, 1], [2]), [0.5])
    np.testing.assert_array_equal(uneven.values, [0.75])


# --- Against others ---------------------------------------------------------------


@pytest.mark.parametrize(("games", "seeds"), [(1, 1), (1, 7), (5, 3), (57, 5), (8, 4)])
def test_iqm_is_scipys_trimmed_mean_where_all_games_have_as_many_seeds(games, seeds):
    scores = np.random.default_rng(games).standard_t(2, (games, seeds))
    assert statistics.iqm(Runs.of(scores)) == pytest.approx(
        trim_mean(scores, 0.25, axis=None), rel=1e-12
    )


# Recomputed from the table by others: IQM, median, mean, games above human.
@pytest.mark.parametrize(
    ("rule", "iqm", "median", "mean", "above_human"),
    [
        ("impala", 2.85, 1.92, 9.6, 40),
        ("stacx", 5.68, 3.01, 15.2, 42),
        ("muesli", 12.97, 10.77, 25.2, 52),
        ("muzero", 13.66, 10.91, 29.7, 49),
        ("dreamer", 9.72, 8.33, 23.3, 51),
        ("disco57", 14.64, 9.59, 31.1, 50),
        ("disco103", 14.65, 10.00, 28.6, 48),
    ],
)
def test_published_scores_give_the_known_aggregates(
    rule, iqm, median, mean, above_human
):
    lines = [x for x in PUBLISHED.read_text().splitlines() if not x.startswith("#")]
    scores = []
    for row in csv.DictReader(lines):
        game = get_game(row["game"])
        # That paper takes 0 for a random policy on Video Pinball, our table 16,256.9.
        random = 0.0 if game.task_id == "VideoPinball-v5" else game.random_score
        scores.append([(float(row[rule]) - random) / (game.human_score - random)])
    assert len(scores) == 57
    table = Runs.of(scores)
    # Random and human scores have a decimal that the paper's table rounds away.
    assert float(statistics.iqm(table)) == pytest.approx(iqm, abs=0.01)
    assert float(statistics.median(table)) == pytest.approx(median, abs=0.01)
    assert float(statistics.mean(table)) == pytest.approx(mean, abs=0.1)
    (profile,) = statistics.performance_profile(table, [1.0]).values
    assert round(profile * 57) == above_human


# --- The bootstrap ----------------------------------------------------------------


def test_interval_of_a_normal_mean_is_as_wide_as_theory_says():
    scores = np.random.default_rng(0).normal(3.0, 2.0, 200)
    found = interval(statistics.mean, Runs.of([scores]), resamples=20_000)
    # The bootstrap's own standard deviation divides by n.
    half = 1.96 * scores.std() / np.sqrt(200)
    assert found.value == pytest.approx(scores.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)
    assert found.low == pytest.approx(scores.mean() - half, abs=0.05 * half)


def test_resampling_stays_within_games():
    # Games differ by a thousand, runs of one game by one: a bootstrap over all runs
    # would make the interval hundreds wide. Stratified, with n = 4 runs each,
    # the standard error of a mean over 2 games is sqrt(2 * var / 4) / 2.
    games = [0.0, 0.0, 1.0, 1.0], [1000.0, 1000.0, 1001.0, 1001.0]
    found = interval(statistics.mean, Runs.of(games), resamples=20_000)
    half = 1.96 * np.sqrt(2 * 0.25 / 4) / 2
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_discovery_seeds_are_drawn_for_all_games_at_once():
    first, second = [0.0, 1.0, 2.0], [100.0, 101.0, 102.0]
    recipe = Runs.of_recipe([[first, second], [second, first]])
    drawn = recipe.resampled(500, np.random.default_rng(0))
    assert drawn.values.shape == (500, 12)
    is_second = drawn.values.reshape(500, 2, 2, 3) >= 100
    # Each block of three is of one discovery seed, and of the same one in both games.
    assert (is_second == is_second[..., :1]).all()
    assert (is_second[:, 0] != is_second[:, 1]).all()
    # Of two seeds, both, the first alone or the second alone are drawn.
    share = is_second[:, 0, :, 0].mean(axis=1)
    np.testing.assert_allclose(
        [(share == x).mean() for x in (0, 0.5, 1)], [0.25, 0.5, 0.25], atol=0.06
    )


def test_both_levels_are_in_the_interval_of_a_recipe():
    rng = np.random.default_rng(0)
    blocks = [rng.normal(loc=at, size=6) for at in (0.0, 1.0, 3.0)]
    recipe = Runs.of_recipe([blocks])
    drawn = statistics.mean(recipe.resampled(40_000, np.random.default_rng(1)))
    # A mean over D seeds of n agents: variance between / D + variance within / (D n).
    between = np.var([x.mean() for x in blocks])
    within = np.mean([x.var() for x in blocks])
    assert drawn.var() == pytest.approx(between / 3 + within / 18, rel=0.03)
    # As if they were agents of one rule, it would be far too narrow.
    alone = interval(statistics.mean, Runs.of([np.concatenate(blocks)]))
    together = interval(statistics.mean, recipe)
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_recipe_needs_equally_many_agents_of_each_discovery():
    with pytest.raises(ValueError, match="equally many"):
        Runs.of_recipe([[[1.0, 2.0], [3.0]]])
    with pytest.raises(ValueError, match="equally many"):
        Runs.of_recipe([[[1.0], [3.0]], [[1.0]]])
    with pytest.raises(ValueError, match="one or more games"):
        Runs.of_recipe([])
    # One agent of each says nothing of how much agents differ.
    assert interval(statistics.mean, Runs.of_recipe([[[1.0], [3.0]]])).low is None


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Simulated: 10 games of different means, 20 normal runs each, 400 times.

    The percentile bootstrap's interval is sqrt((n - 1) / n) too narrow, so that 0.95
    becomes 0.944 for n = 20; four standard errors of 400 draws are 0.046.
    """
    rng = np.random.default_rng(1)
    means = np.arange(10.0)
    hits = 0
    for trial in range(400):
        drawn = Runs.of(rng.normal(means[:, None], 1.0, (10, 20)))
        found = interval(statistics.mean, drawn, resamples=500, seed=trial)
        hits += found.low <= means.mean() <= found.high
    assert 0.944 - 0.046 < hits / 400 < 0.944 + 0.046


def test_improvement_interval_covers_the_truth():
    """Two normal rules that differ by one standard deviation: P = Phi(1 / sqrt 2)."""
    truth, rng, hits = 0.7602, np.random.default_rng(2), 0
    for trial in range(200):
        ours = Runs.of(rng.normal(1.0, 1.0, (5, 15)))
        theirs = Runs.of(rng.normal(0.0, 1.0, (5, 15)))
        found = statistics.improvement_interval(ours, theirs, resamples=300, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.88 < hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_leaves_the_global_generator():
    some = runs([0, 1, 2], [3, 5])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert interval(statistics.iqm, some) == interval(statistics.iqm, some)
    assert interval(statistics.iqm, some) != interval(statistics.iqm, some, seed=1)
    after = np.random.get_state()[1]  # noqa: NPY002
    np.testing.assert_array_equal(after, before)


# --- Degenerate -------------------------------------------------------------------


def test_one_run_per_game_has_no_interval():
    single = runs([1], [3])
    assert interval(statistics.mean, single) == Estimate(2.0, None, None)
    assert statistics.performance_profile(single, [2]).low is None
    assert statistics.improvement_interval(single, single) == Estimate(0.5)


def test_a_single_run_of_one_game_among_others_has_no_interval_either():
    mixed, whole = runs([1], [3, 5, 9]), runs([1, 2], [3, 5, 9])
    assert interval(statistics.mean, mixed) == Estimate((1 + 17 / 3) / 2)
    profile = statistics.performance_profile(mixed, [2])
    assert (profile.low, profile.high) == (None, None)
    for x, y in ((mixed, whole), (whole, mixed)):
        found = statistics.improvement_interval(x, y)
        assert (found.low, found.high) == (None, None)
    assert interval(statistics.mean, whole).low is not None
    assert statistics.performance_profile(whole, [2]).low is not None
    assert statistics.improvement_interval(whole, whole).low is not None


def test_equal_runs_have_an_interval_of_no_width():
    assert interval(statistics.iqm, runs([2, 2], [2, 2])) == Estimate(2.0, 2.0, 2.0)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []]])
def test_nothing_has_no_aggregate(scores):
    with pytest.raises(ValueError, match="one or more"):
        Runs.of(scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        Runs.of([[1.0, bad]])
