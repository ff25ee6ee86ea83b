"""How long agents live: budgets that are drawn, and what ends with a life."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from metarl import train
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.lifetimes import Lives, budget_of, longest
from metarl.meta_training import MetaTraining
from metarl.run_folder import RunFolder

PAPER = (200, 100, 50, 20)


def test_a_budget_is_drawn_as_often_as_its_inverse_says() -> None:
    draws = [
        budget_of(PAPER, seed=3, member=member, life=life)
        for member in range(40)
        for life in range(100)
    ]
    counts = Counter(draws)
    # Inverses 1, 2, 4 and 10 of 200: parts of 17. Four standard deviations of a
    # binomial of 4,000 draws are at most 125.
    for budget, part in zip(PAPER, (1, 2, 4, 10), strict=True):
        assert counts[budget] == pytest.approx(4000 * part / 17, abs=125)
    # So about as many steps are lived under each budget.
    steps = [budget * counts[budget] for budget in PAPER]
    assert max(steps) < 1.4 * min(steps)


def test_seed_group_and_life_alone_decide() -> None:
    def draws(seed: int, member: int) -> list[int]:
        return [
            budget_of(PAPER, seed=seed, member=member, life=life) for life in range(20)
        ]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(1, 1)
    assert draws(1, 0) != draws(2, 0)
    # Which groups are beside it, and in which stack, is nothing to a group.
    lives, alone = (Lives(PAPER, m, of=8, seed=1) for m in (range(8), [5]))
    for count in range(4):
        lives.begin(np.full(8, count))
        alone.begin(np.full(1, count))
        assert lives.budgets[5] == alone.budgets[0]
    assert budget_of(7, seed=1, member=2, life=3) == longest(7) == 7
    assert longest(PAPER) == 200


def test_first_lives_are_parts_of_their_budgets() -> None:
    lives = Lives((100,), range(4), of=4, seed=1)
    ages = np.array([24, 50, 76, 99], np.int32)
    np.testing.assert_array_equal(lives.ended(ages), [False, True, True, False])
    # Of the population, whatever the stack: a game alone in its stack too.
    for i in range(4):
        alone = Lives((100,), [i], of=4, seed=1)
        np.testing.assert_array_equal(alone.ended(ages[[i]]), lives.ended(ages)[[i]])
    lives.begin(np.array([1, 1, 1, 0]))
    np.testing.assert_array_equal(
        lives.ended(np.array([25, 99, 100, 100], np.int32)), [False, False, True, True]
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", r"lifetime_env_steps=\[\]: must have at least 1 item"),
        ("[100, 0]", r"lifetime_env_steps\[1\]=0: must be greater than 0$"),
        ("-3", "lifetime_env_steps=-3: must be greater than 0$"),
        ("long", "lifetime_env_steps=long: must be an integer$"),
    ],
)
def test_budgets_that_cannot_be_are_refused(value: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny_run.config(Path("run"), f"population.lifetime_env_steps={value}")


def config(folder: Path, *overrides: str) -> TrainConfig:
    return tiny_run.config(
        folder,
        tiny_run.SCALED,
        "population={num_agents: 3, lifetime_env_steps: [150, 300, 60]}",
        "agent.optimizer={schedule: linear}",
        *overrides,
    )


def test_agents_know_how_long_they_live_and_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    lifetimes = (150, 300, 40)
    of_family = f"families.catch.population.lifetime_env_steps={list(lifetimes)}"
    anew = "meta.optimizer.reset_with_lifetime=true"
    given = config(tmp_path / "run", of_family, anew)
    with MetaTraining(given) as training:
        training.start()
        (stack,) = training.stacks
        agent, died = stack.stack.agent, 0
        for _ in range(8):
            before = stack.lives.copy()
            training.meta_step()
            agents = jax.device_get(stack.population.agents)
            expected = [
                budget_of(lifetimes, seed=1, member=member, life=int(life))
                for member, life in enumerate(stack.lives)
            ]
            np.testing.assert_array_equal(agents.lifetime_env_steps[:, 0], expected)
            clock = jax.device_get(jax.vmap(jax.vmap(agent.clock))(agents))
            np.testing.assert_allclose(
                clock.lifetime_fraction, agents.env_steps / agents.lifetime_env_steps
            )
            born = stack.lives > before
            died += born.sum()
            # The rule's state is of a lifetime, as all else of an agent is.
            for leaf in (
                agents.env_steps,
                agents.agent_updates,
                agents.optimizer.count,
            ):
                np.testing.assert_array_equal(leaf[born], 0)
            np.testing.assert_array_equal(agents.rule_state["updates"][born], 0)
            np.testing.assert_array_equal(agents.rule_state["reward"][born], 0)
            assert np.all(agents.rule_state["updates"][~born] > 0)
            # So are the meta-optimisers, where that is asked for.
            count = np.asarray(training.meta.optimizers.count)
            np.testing.assert_array_equal(count > 0, ~born)
        assert died >= 3


def test_resuming_through_lives_of_drawn_lengths_changes_nothing(
    tmp_path: Path,
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(config(whole, "meta_steps=6")) == 0
    assert train.main(config(stopped, "meta_steps=3")) == 0
    longer = tiny_run.resumed(stopped, "meta_steps=6")
    assert train.main(longer, resume=stopped) == 0
    states = []
    for folder in (whole, stopped):
        with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
            run.begin()
            (stack,) = run.training.stacks
            assert run.training.lives.sum() > 2
            # By default the meta-optimisers are kept.
            np.testing.assert_array_equal(run.training.meta.optimizers.count, 6)
            states.append((run.training.meta, stack.population, stack.lives))
    for left, right in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(left, right)
