"""The commands that give some results again, worked out from their cells' settings.

A cell has all settings that decided it, but not what was typed. What is returned here
is the shortest command that is known to plan cells with these very settings: each is
planned and compared before it is written down. Host code: reads rules, trains nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metarl.config import EnvironmentConfig, EvaluationConfig
from metarl.envs.suites import SUITES
from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.cells import Cell, completed_identity, plan
from metarl.evaluation.results import (
    flatten,
)
from metarl.evaluation.tuning_grid import plan_grids, rated_cell
from metarl.report.scores import task_of
from metarl.rule_files import LoadedRule
from metarl.shipping.record import tasks_in

_LEADING = re.compile(r"env_steps|environment\.atari\.protocol|.*\.kind")
"""Settings by which others have other defaults: what they leave is given after them."""
_ROUNDS = 4
_PLAIN = re.compile(r"[A-Za-z_][\w.:/-]*")
_LINE = 100


def recipe(rule: LoadedRule, records: Sequence[CellRecord]) -> tuple[str, ...] | None:
    """Return what follows `metarl evaluate RULE` to get cells of these settings.

    Args:
      rule: whose cells they are.
      records: of one rule and one suite.

    Returns:
      Words such as `--suite catch` and `key=value`; None where there are none, as of
      results of other versions.
    """
    given = [*_played(records), *_seeds(records)]
    # Without it several kinds of games have several budgets, and rates need one.
    budget = f"env_steps={records[0].settings.get('env_steps')}"
    for start in (given, [*given, budget]):
        words = _complete(rule, records, [*start, *_tuning(records)])
        if words is not None:
            return words
    return None


def _complete(
    rule: LoadedRule, records: Sequence[CellRecord], given: list[str]
) -> tuple[str, ...] | None:
    """Return ``given`` with all that it lacks, as `recipe` does."""
    try:
        for _ in range(_ROUNDS):
            found = _differences(rule, records, given)
            if not found:
                break
            leading = {k: v for k, v in found.items() if _LEADING.fullmatch(k)}
            lacking = (_word(key, records[0]) for key in leading or found)
            given += [word for word in dict.fromkeys(lacking) if word not in given]
        else:
            return None
    except (UserError, _NoRecipeError):
        return None
    suites = [word for word in given if word.startswith("environment.suite=")]
    words = [word for word in given if word not in suites]
    return (*(f"--suite {word.partition('=')[2]}" for word in suites), *words)


def command(rules: Iterable[str], words: Iterable[str], results_dir: str) -> str:
    """Return the command line, broken where it is long."""
    parts = ["metarl evaluate", *map(shlex.quote, rules)]
    for word in (*words, f"results_dir={results_dir}"):
        key, _, value = word.partition("=")
        parts.append(f"{key}={shlex.quote(value)}" if value else word)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


class _NoRecipeError(Exception):
    """The cells are not those of one command."""


def _differences(
    rule: LoadedRule, records: Sequence[CellRecord], given: Sequence[str]
) -> dict[str, object]:
    """Return the settings that ``given`` still lacks, by dotted name.

    Raises:
      UserError: ``given`` cannot be.
      _NoRecipeError: a cell is not planned, or two need another value.
    """
    planned = _cells(rule, records, given)
    missing: dict[str, object] = {}
    has_more = False
    for record in records:
        cell = planned.get((record.result.game, record.result.seed))
        if cell is None:
            raise _NoRecipeError
        have, want = flatten(cell.identity()), _wanted(record)
        # Settings that another kind of a section has, or nobody can leave out.
        has_more |= not want.keys() >= have.keys()
        for key, value in want.items():
            if key in have and have[key] == value:
                continue
            if missing.setdefault(key, value) != value:
                raise _NoRecipeError
    if has_more and not missing:
        raise _NoRecipeError
    return missing


def _cells(
    rule: LoadedRule, records: Sequence[CellRecord], given: Sequence[str]
) -> Mapping[tuple[str, int], Cell]:
    """Return what ``given`` plans, with the learning rates that were chosen."""
    cells = plan([rule], overrides=given)
    grids = {grid.family: grid for grid in plan_grids(cells, (), given)}
    tuned = {record.result.game: _tuned(record) for record in records}
    found = {}
    for cell in cells:
        grid, choice = grids.get(cell.task.game.family), tuned.get(cell.game)
        if grid is not None and choice is not None:
            rates = list(choice["learning_rates"])
            option = rates.index(choice["chosen"])
            chosen = grid.chosen(option, score=str(choice["score"]), scores=())
            cell = rated_cell(cell, chosen)
        found[cell.game, cell.seed] = cell
    return found


def _word(key: str, record: CellRecord) -> str:
    """Return the override that sets ``key`` as a cell has it.

    A section that has a kind is set as a whole: its other settings depend on it.
    """
    wanted = _wanted(record)
    section = f"{key.rpartition('.')[0]}."
    if f"{section}kind" not in wanted:
        return f"{key}={_yaml(wanted[key])}"
    inside = [k for k in wanted if k.startswith(section)]
    pairs = (f"{k.removeprefix(section)}: {_yaml(wanted[k])}" for k in inside)
    return f"{section[:-1]}={{{', '.join(pairs)}}}"


def _wanted(record: CellRecord) -> dict[str, object]:
    return flatten(completed_identity(record.settings))


def _played(records: Sequence[CellRecord]) -> list[str]:
    """Return the suite where all of it was played, else the games by name."""
    tasks = {task_of(record) for record in records}
    suites = {record.about.get("suite") for record in records}
    suite = suites.pop() if len(suites) == 1 else None
    if isinstance(suite, str) and suite in SUITES:
        whole = set(tasks_in(EnvironmentConfig(suite=suite)))
        if tasks == whole:
            return [f"environment.suite={suite}"]
    return [f"environment.games={_yaml(sorted({task.game for task in tasks}))}"]


def _seeds(records: Sequence[CellRecord]) -> list[str]:
    seeds = sorted({record.result.seed for record in records})
    if tuple(seeds) == EvaluationConfig().seeds:
        return []
    return [f"seeds={_yaml(seeds)}"]


def _tuning(records: Sequence[CellRecord]) -> list[str]:
    """Return the grid of learning rates that was tried, if one was."""
    tuned = [(record, t) for record in records if (t := _tuned(record)) is not None]
    if not tuned:
        return []
    first, grid = tuned[0]
    games = dict.fromkeys(game for _, t in tuned for game in t["games"])
    factors = first.about.get("tuning_factors")
    words = [
        f"tuning.factors={_yaml(factors)}"
        if factors
        else f"tuning.learning_rates={_yaml(grid['learning_rates'])}",
        f"tuning.games={_yaml(list(games))}",
    ]
    if list(grid["seeds"]) != list(EvaluationConfig().tuning.seeds):
        words.append(f"tuning.seeds={_yaml(grid['seeds'])}")
    if grid["env_steps"] != first.settings.get("env_steps"):
        words.append(f"tuning.env_steps={grid['env_steps']}")
    return words


def _tuned(record: CellRecord) -> Mapping[str, Any] | None:
    tuned = record.settings.get("tuning")
    return tuned if isinstance(tuned, Mapping) else None


def _yaml(value: object) -> str:
    """Return a value as an override has it, with quotes where it needs them."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value)
