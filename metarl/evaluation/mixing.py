"""What one results folder must not mix: two rules, budgets or roles under one name.

Host code above `results.py`, which compares a cell with its own file. Here cells that
are to be trained are compared with all others that the folder has, since every table
takes a rule's seeds and games together by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metarl.errors import UserError
from metarl.evaluation.cell_files import read_tree
from metarl.evaluation.cells import Cell, completed_identity
from metarl.evaluation.results import (
    CELLS,
    cell_path,
    first_difference,
    flatten,
    show,
)
from metarl.rule_files import game_identity

CHOICE = ("tuning.chosen", "tuning.score", "agent.optimizer.learning_rate")
"""Settings of a tuned cell that follow from the tries."""

_OF_A_RULE = ("rule_sha256", "rule_module_sha256", "update_rule.")
"""How names of what a rule has in all games begin; the rest may follow from the game.

But for the `clip` of PPO; see `defaults.rule_for`.
"""


def require_one_of_a_name(results_dir: Path, cells: Iterable[Cell]) -> None:
    """Refuse to train what the folder has otherwise under the same name.

    Each cell that the folder lacks is compared with those it has of the same rule's
    name: they must be of the very same rule; of the same game, have the same settings,
    but for what a tuning chose; and no game may be both scored and tuned on. Files
    that are not understood are passed over; merging the tables tells of them.

    Args:
      results_dir: of the evaluation.
      cells: to be trained, tuned ones with any choice.

    Raises:
      UserError: one of them would be mixed with what the folder has.
    """
    missing: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        if not cell_path(results_dir, cell).exists():
            # All seeds have the same settings.
            key = (cell.rule.name, cell.game, cell.group_size)
            missing.setdefault(key, cell)
    if not missing:
        return
    rules = {rule for rule, *_ in missing}
    stored = list(_stored(results_dir, rules))
    for (rule, *played), cell in missing.items():
        now = flatten(cell.identity())
        for name, tree, before in stored:
            if tree["result"]["rule"] != rule:
                continue
            fields = list({**now, **before})
            # Groups of another size are told apart, as games are.
            if [tree["result"]["game"], before.get("group_size", 1)] != played:
                fields = [f for f in fields if _is_of_a_rule(f, now)]
            elif cell.tuning is not None:
                fields = [f for f in fields if f not in CHOICE]
            if field := first_difference(before, now, fields):
                raise UserError(
                    f"results_dir: {results_dir} has {name} with {field} = "
                    f"{show(before, field)}, not {show(now, field)} as {cell.name} "
                    f"has it now, and tables take all of '{rule}' together (choose "
                    "another results_dir)"
                )
            _refuse_tuned_on(results_dir, (name, tree["result"]["game"], before), cell)


def _is_of_a_rule(field: str, now: Mapping[str, Any]) -> bool:
    section, _, option = field.rpartition(".")
    is_of_game = option == "clip" and now.get(f"{section}.kind") == "ppo"
    return field.startswith(_OF_A_RULE) and not is_of_game


def _stored(
    results_dir: Path, rules: Iterable[str]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Yield name, tree and flat identity of every readable cell of ``rules``."""
    for path in sorted((results_dir / CELLS).glob("*.json")):
        try:
            tree = read_tree(path)
        except UserError:
            continue
        if tree["result"]["rule"] in rules:
            yield path.stem, tree, flatten(completed_identity(tree["settings"]))


def _refuse_tuned_on(
    results_dir: Path, stored: tuple[str, str, Mapping[str, Any]], cell: Cell
) -> None:
    """Refuse that one of two cells of a rule is scored on a game tuned on by the other.

    Args:
      results_dir: of the evaluation.
      stored: name, game and flat identity of a cell that is there.
      cell: to be trained.
    """
    name, game, before = stored
    tuned_for_now = () if cell.tuning is None else cell.tuning.games
    if _is_among(cell.game, before.get("tuning.games") or ()):
        scored, tuned = cell.name, name
    elif _is_among(game, tuned_for_now):
        scored, tuned = name, cell.name
    else:
        return
    raise UserError(
        f"results_dir: {results_dir} has {name}, and now comes {cell.name}: {scored} "
        f"is scored on a game that the learning rate of {tuned} was chosen on (choose "
        "another results_dir)"
    )


def _is_among(game: str, games: Iterable[str]) -> bool:
    return game_identity(game) in {game_identity(other) for other in games}
