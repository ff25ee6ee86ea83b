"""Which cases are measured, and in which order."""

from __future__ import annotations

import importlib

import pytest

from metarl.bench import plan
from metarl.errors import UserError


@pytest.mark.parametrize("name", plan.MAIN)
def test_the_case_asked_for_comes_first_and_then_what_it_compares_with(
    name: str,
) -> None:
    names = plan.sequence(plan.choose(name), compare=True, agents=2)
    assert names == (name, *plan.CASES[name].comparators)
    assert plan.sequence((name,), compare=False, agents=2) == (name,)


def test_all_measures_every_case_once() -> None:
    names = plan.sequence(plan.choose("all"), compare=True, agents=2)
    assert sorted(names) == sorted(plan.CASES)


def test_a_loop_over_one_agent_is_no_comparator() -> None:
    names = plan.sequence(("meta-step",), compare=True, agents=1)
    assert names == ("meta-step", "agent-update", "meta-step-plain")
    assert plan.sequence(("meta-step-loop",), compare=True, agents=1) == (
        "meta-step-loop",
    )


def test_an_unknown_case_is_one_line_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'metastep'; did you mean 'meta-step'") as info:
        plan.choose("metastep")
    assert "allowed: env, act, agent-update, meta-step, train-step, all" in str(
        info.value
    )


def test_every_case_has_a_function_that_prepares_it() -> None:
    for name, case in plan.CASES.items():
        module = importlib.import_module(f"metarl.bench.{case.module}")
        assert name in module.CASES
        assert set(case.comparators) <= set(plan.CASES)
