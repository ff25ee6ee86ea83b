"""Which cases there are, and what each is to be compared with.

Static tables; must not import jax or envpool, nor what does.
"""

from __future__ import annotations

import dataclasses

from metarl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is measured, in a process of its own.

    Attributes:
      module: of `metarl.bench`, whose `CASES` prepares it.
      summary: what one step of it is.
      comparators: cases that make its figure mean something.
      uses_jax: whether there is a program to compile.
    """

    module: str
    summary: str
    comparators: tuple[str, ...] = ()
    uses_jax: bool = True


CASES = {
    "env": Case(
        "acting",
        "one step of all environments: EnvPool alone, constant actions",
        ("env-pool",),
        uses_jax=False,
    ),
    "act": Case(
        "acting", "one step of the population: observe, act, step", ("env", "forward")
    ),
    "agent-update": Case(
        "learning", "one update of all agents", ("agent-update-loop",)
    ),
    "meta-step": Case(
        "learning",
        "meta-gradient and meta-update on given rollouts",
        ("agent-update", "meta-step-plain", "meta-step-loop"),
    ),
    "train-step": Case(
        "whole_step",
        "acting, updates, meta-gradient and meta-update, as `metarl train` does",
        ("meta-step",),
    ),
    "env-pool": Case("acting", "the same through metarl's adapter", uses_jax=False),
    "forward": Case("acting", "forward pass and sampling for all agents, no stepping"),
    "agent-update-loop": Case(
        "learning", "agents in a Python loop, one compiled call each"
    ),
    "meta-step-plain": Case("learning", "plain reverse mode, no rematerialisation"),
    "meta-step-loop": Case(
        "learning", "agents in a Python loop, one compiled call each"
    ),
}
"""By name; those without comparators are comparators themselves."""

MAIN = tuple(name for name, case in CASES.items() if case.comparators)
ALL = "all"
LOOPS = ("agent-update-loop", "meta-step-loop")
"""The same program as without the loop where there is one agent."""


def choose(name: str) -> tuple[str, ...]:
    """Return the cases that ``name`` stands for.

    Raises:
      UserError: there is no such case.
    """
    if name == ALL:
        return MAIN
    if name not in CASES:
        allowed = [*MAIN, ALL]
        raise UserError(
            f"bench: unknown case '{name}'{nearest(name, [*CASES, ALL])} "
            f"(allowed: {', '.join(allowed)}, or a comparator: "
            f"{', '.join(other for other in CASES if other not in MAIN)})"
        )
    return (name,)


def sequence(asked: tuple[str, ...], *, compare: bool, agents: int) -> tuple[str, ...]:
    """Return every case to measure, once, a case's comparators behind it.

    Args:
      asked: cases.
      compare: whether comparators are wanted.
      agents: of the population.
    """
    names: list[str] = []
    for name in asked:
        names.append(name)
        if compare:
            names += CASES[name].comparators
    loops = LOOPS if agents == 1 else ()
    return tuple(n for n in dict.fromkeys(names) if n not in loops or n in asked)
