from __future__ import annotations

import collections

import pytest

from metarl.errors import UserError
from metarl.evaluation.cells import plan
from metarl.evaluation.jobs import Jobs, parse_jobs, part

GRID = plan(
    ["actor_critic", "policy_gradient", "random"],
    overrides=[
        "environment.games=[Pong, Breakout, Catch-v0, CartPole-v1]",
        "seeds=[1, 2, 3, 4, 5]",
    ],
)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 60, 61])
def test_every_cell_has_one_job(count):
    parts = [part(GRID, Jobs(i + 1, count)) for i in range(count)]
    names = [cell.name for cells in parts for cell in cells]
    assert sorted(names) == sorted(cell.name for cell in GRID)
    sizes = [len(cells) for cells in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 10])
def test_rules_and_games_are_spread(count):
    parts = [part(GRID, Jobs(i + 1, count)) for i in range(count)]
    for of in (lambda cell: cell.rule.name, lambda cell: cell.game):
        counts = [collections.Counter(map(of, cells)) for cells in parts]
        for key in {of(cell) for cell in GRID}:
            numbers = [counted[key] for counted in counts]
            assert max(numbers) - min(numbers) <= 2, (key, numbers)


def test_one_seed_of_each_rule_and_game():
    grid = [cell for cell in GRID if cell.seed == 1 and "Pong" not in cell.game]
    first, second = (part(grid, Jobs(i, 2)) for i in (1, 2))
    # Three rules by three games on two jobs: no job has a rule or a game to itself.
    for cells in (first, second):
        assert len({cell.rule.name for cell in cells}) == 3
        assert len({cell.game for cell in cells}) == 3


def test_parts_are_read():
    assert parse_jobs("2/8") == Jobs(2, 8)
    assert parse_jobs(" 1 / 1 ") == Jobs()
    assert str(Jobs(2, 8)) == "2/8"


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.0/4"]
)
def test_other_parts_are_refused(text):
    with pytest.raises(UserError, match=r"^--jobs .*: allowed is i/n with i from 1"):
        parse_jobs(text)
