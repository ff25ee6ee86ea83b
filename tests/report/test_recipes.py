"""Rules that one recipe discovered with several seeds, compared as one."""

from __future__ import annotations

import numpy as np
import pytest
from report_cells import store_all

from metarl import statistics
from metarl.errors import UserError
from metarl.report import compare, scores, write_report
from metarl.report.inputs import read_inputs
from metarl.report.recipes import parse_recipes, with_recipes
from metarl.report.scores import Evaluation
from metarl.statistics import Runs

FINALS = {
    # Catch's best return is 1 and random has -1 here, so scores are (x + 1) / 2.
    ("mine1", "Catch-v0"): [0.0, 0.1, 0.2],
    ("mine2", "Catch-v0"): [0.8, 0.9, 1.0],
    ("actor_critic", "Catch-v0"): [0.3, 0.4, 0.5],
    ("random", "Catch-v0"): [-1.0, -1.0],
    # CartPole's is 500, and random has 0: x / 500.
    ("mine1", "CartPole-v1"): [100.0, 150.0, 200.0],
    ("mine2", "CartPole-v1"): [400.0, 450.0, 500.0],
    ("actor_critic", "CartPole-v1"): [300.0, 300.0, 350.0],
    ("random", "CartPole-v1"): [0.0, 0.0],
}
NAME = "mine (2 discoveries)"


def read(folder, *together: str) -> Evaluation:
    evaluation = scores.gather(read_inputs([folder]).records, None)
    return with_recipes(evaluation, parse_recipes(together))


def by_name(found) -> dict[str, compare.Aggregate]:
    return {aggregate.rule: aggregate for aggregate in found}


def test_a_recipe_is_aggregated_beside_its_rules(tmp_path):
    store_all(tmp_path, FINALS)
    evaluation = read(tmp_path, "mine=mine1,mine2")
    (group,) = compare.make_groups(evaluation)
    found = by_name(compare.aggregates(evaluation, group))
    assert set(found) == {NAME, "mine1", "mine2", "actor_critic", "random"}
    catch = [[0.5, 0.55, 0.6], [0.9, 0.95, 1.0]]
    cartpole = [[0.2, 0.3, 0.4], [0.8, 0.9, 1.0]]
    # All games weigh alike, and so do all discoveries.
    every = np.concatenate([*catch, *cartpole])
    assert found[NAME].mean.value == pytest.approx(every.mean())
    expected = statistics.interval(
        statistics.iqm, Runs.of_recipe([cartpole, catch]), seed=0
    )
    assert found[NAME].iqm.low == pytest.approx(expected.low)
    # The discoveries differ by more than their agents do, and the interval says so.
    assert found[NAME].iqm.low < found["mine1"].iqm.high
    assert found[NAME].iqm.high > found["mine2"].iqm.low
    # What the others come to is as without the recipe.
    plain = read(tmp_path)
    without = by_name(compare.aggregates(plain, compare.make_groups(plain)[0]))
    assert {name: found[name] for name in without} == without


def test_a_recipe_is_in_the_curves_the_profiles_and_the_improvements(tmp_path):
    store_all(tmp_path, FINALS)
    evaluation = read(tmp_path, "mine=mine1,mine2")
    (group,) = compare.make_groups(evaluation)
    (curve,) = [c for c in compare.curves(evaluation, group) if c.rule == NAME]
    last = curve.estimates[-1]
    iqm = by_name(compare.aggregates(evaluation, group))[NAME].iqm
    assert last is not None
    assert last.value == pytest.approx(iqm.value)
    profile = compare.profiles(evaluation, group)[NAME]
    assert profile.values[0] == 1.0
    improvement = compare.improvements(evaluation, group)[NAME]
    # mine2 always beats actor_critic; mine1 never does.
    assert improvement.value == pytest.approx(0.5)
    assert (improvement.low, improvement.high) == (0.0, 1.0)


def test_the_page_shows_a_recipe_and_what_it_is_made_of(tmp_path):
    store_all(tmp_path, FINALS)
    page, contents = write_report([tmp_path], together=["mine=mine1,mine2"])
    text = page.read_text()
    assert f"{NAME}: mine1, mine2" in text
    assert "Of so few they are too narrow." in text
    (table,) = [t for t in contents.tables if t.name.startswith("aggregates")]
    assert NAME in [row[0] for row in table.rows]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mine", "needs a name and two or more rules"),
        ("mine=mine1", "needs a name and two or more rules"),
        ("mine=mine1,mine1", "each once"),
        ("=mine1,mine2", "needs a name"),
        ("mine=mine1,", "none empty"),
        ("mine=mine1,mine3", "no rule 'mine3' in the results; did you mean 'mine"),
        ("mine1=mine1,mine2", "a rule in the results has this name"),
        (
            "mine=mine1,random",
            "same seeds on CartPole-v1 .mine1: 1, 2, 3; random: 1, 2",
        ),
    ],
)
def test_what_cannot_be_taken_together_is_refused(tmp_path, word, message):
    store_all(tmp_path, FINALS)
    with pytest.raises(UserError, match=message):
        write_report([tmp_path], together=[word])


def test_a_recipe_has_one_line():
    with pytest.raises(UserError, match="each name once"):
        parse_recipes(["a=b,c", "a=d,e"])
