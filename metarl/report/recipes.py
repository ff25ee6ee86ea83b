"""Rules that one recipe discovered with several seeds, compared as one.

Between `scores.py` and `compare.py`; draws and writes nothing. A rule that beats
another may owe that to the seed that it was discovered with: the interval of a recipe
has to draw discovery seeds too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy.typing as npt

from metarl.errors import UserError, nearest
from metarl.report.scores import Evaluation, Rule, Task
from metarl.statistics import Runs


def parse_recipes(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the rules of each recipe, of words such as ``mine=mine1,mine2``.

    Raises:
      UserError: a word is no such thing, or a name is there twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, _, rules = word.partition("=")
        members = tuple(rule.strip() for rule in rules.split(","))
        if not name.strip() or len(set(members)) < max(len(members), 2):
            raise UserError(
                f"--together {word}: needs a name and two or more rules, each once "
                "(such as mine=mine1,mine2)"
            )
        if not all(members) or name.strip() in found:
            raise UserError(f"--together {word}: each name once, and none empty")
        found[name.strip()] = members
    return found


def with_recipes(
    evaluation: Evaluation, recipes: Mapping[str, Sequence[str]]
) -> Evaluation:
    """Return an evaluation that has some rules together too, beside themselves.

    Args:
      evaluation: all cells.
      recipes: names of rules by the name of their recipe.

    Raises:
      UserError: there is no such rule, a name is taken, or the rules of a recipe have
        unequal seeds on a game.
    """
    made = []
    names = [rule.name for rule in evaluation.rules]
    colors = max((rule.color_index for rule in evaluation.rules), default=-1) + 1
    for index, (given, members) in enumerate(recipes.items()):
        for member in members:
            if member not in names:
                raise UserError(
                    f"--together {given}: no rule '{member}' in the results"
                    f"{nearest(member, names)} (there are: {', '.join(names)})"
                )
        name = f"{given} ({len(members)} discoveries)"
        if given in names or name in names:
            raise UserError(f"--together {given}: a rule in the results has this name")
        for task in evaluation.tasks:
            _require_equal_seeds(evaluation, given, members, task)
        first = evaluation.rule(members[0])
        made.append(Rule(name, first.kind, "", colors + index, members=tuple(members)))
    return dataclasses.replace(evaluation, recipes=tuple(made))


def runs_of(evaluation: Evaluation, name: str, tasks: Sequence[Task]) -> Runs:
    """Return the normalised scores of a rule, or of a recipe, on some games."""
    members = members_of(evaluation, name)
    return join([[evaluation.scores(m, task) for m in members] for task in tasks])


def returns_of(evaluation: Evaluation, name: str, tasks: Sequence[Task]) -> Runs:
    """Return the raw returns of a rule, or of a recipe, on some games."""
    members = members_of(evaluation, name)
    return join([[evaluation.returns(m, task) for m in members] for task in tasks])


def compared(evaluation: Evaluation, rules: Sequence[str]) -> tuple[str, ...]:
    """Return some rules, behind the recipes that consist of nothing but such."""
    known = [r.name for r in evaluation.recipes if set(r.members) <= set(rules)]
    return (*known, *rules)


def members_of(evaluation: Evaluation, name: str) -> tuple[str, ...]:
    """Return the rules of a recipe; of a rule, itself."""
    return evaluation.rule(name).members or (name,)


def join(games: Sequence[Sequence[npt.ArrayLike]]) -> Runs:
    """Return the runs of a rule, or of several together: ``games x rules x seeds``."""
    if all(len(game) == 1 for game in games):
        return Runs.of([game[0] for game in games])
    return Runs.of_recipe(games)


def _require_equal_seeds(
    evaluation: Evaluation, name: str, members: Sequence[str], task: Task
) -> None:
    found = {
        member: [cell.result.seed for cell in evaluation.cells.get((member, task), ())]
        for member in members
    }
    if len({tuple(seeds) for seeds in found.values()}) > 1:
        told = "; ".join(f"{m}: {_listed(seeds)}" for m, seeds in found.items())
        raise UserError(
            f"--together {name}: its rules need the same seeds on {task.name} ({told})"
        )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
