"""Which cells a validation consists of, and whether they may validate the rule.

No environments are touched here; `validation.py` trains the agents.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from metarl import config_loader
from metarl.config import EnvironmentConfig, TrainConfig
from metarl.console import say
from metarl.envs.suites import Game
from metarl.envs.tasks import resolve_environment
from metarl.errors import UserError
from metarl.evaluation import results
from metarl.evaluation.cells import Cell, plan, require_an_update
from metarl.evaluation.mixing import require_one_of_a_name
from metarl.rule_files import LoadedRule, Manifest
from metarl.rules import make_rule

Scale = Literal[
    "human-normalized scores",
    "returns between a random policy's and the highest",
    "raw returns",
]

SCORE_FILE = "score.json"
"""In the folder of each validation, once it is done."""
OF_TRAINING = ("every", "allow_seen")
"""Fields of `validation` that change nothing of what a score means."""
_OWN = (
    "seeds",
    "env_steps",
    "results_dir",
    "exp_name",
    "tuning",  # is itself done on validation games
    "robustness",  # is of no score
    "tracking",
    "runtime",
)


def check_validation(config: TrainConfig, manifest: Manifest) -> None:
    """Refuse settings of `validation` that cannot be, before anything runs.

    Args:
      config: of the run.
      manifest: of its rule: what it has seen when it is validated.

    Raises:
      UserError: games or settings do not exist, games do not go together, or the rule
        has seen one.
    """
    if config.validation.every == 0:
        return
    games = games_of(config)
    if not config.validation.allow_seen:
        rule = rule_of(manifest)
        for game in games:
            if rule.status(game.task_id) == "seen":
                raise UserError(
                    f"validation: the rule sees {game.task_id} in meta-training, its "
                    "own or its parents', so a score there validates nothing (choose "
                    "other games, or say validation.allow_seen=true)"
                )
    common_scale(games)
    for cell in plan_cells(config, rule_of(manifest), Path("validation")):
        try:
            require_an_update(cell)
        except UserError as error:
            raise UserError(f"validation.{error}") from None


def plan_cells(config: TrainConfig, rule: LoadedRule, place: Path) -> list[Cell]:
    """Return the cells of one validation.

    Raises:
      UserError: a setting does not fit.
    """
    overrides = overrides_of(config, place)
    try:
        return plan([rule], overrides=overrides)
    except UserError as error:
        raise UserError(f"validation: {error}") from None


def games_of(config: TrainConfig) -> list[Game]:
    """Return the games to validate on.

    Raises:
      UserError: none are given, or one does not exist.
    """
    chosen = config.validation
    if bool(chosen.suite) == bool(chosen.games):
        given = "both are given" if chosen.suite else "neither is given"
        raise UserError(
            f"validation: one of suite and games is needed, {given} "
            "(such as validation.suite=atari3_val)"
        )
    environment = EnvironmentConfig(suite=chosen.suite, games=chosen.games)
    try:
        tasks = resolve_environment(environment, same_shapes=False)
    except UserError as error:
        line = str(error).replace("environment", "validation", 1)
        raise UserError(line) from None
    return [task.game for task in tasks]


def common_scale(games: Sequence[Game]) -> Scale:
    """Return by what the scores of several games can be put together.

    Raises:
      UserError: by nothing that is known.
    """
    if all(_span(game, game.human_score) is not None for game in games):
        return "human-normalized scores"
    if all(_span(game, game.best_score) is not None for game in games):
        return "returns between a random policy's and the highest"
    best = {game.best_score for game in games}
    if len(games) == 1 or (len(best) == 1 and None not in best):
        return "raw returns"
    first, *others = games
    other = next((g for g in others if g.best_score != first.best_score), others[0])
    raise UserError(
        f"validation: no common scale is known for the returns of {first.task_id} and "
        f"{other.task_id} (choose games with published scores, with one and the same "
        "highest return, or a single game)"
    )


def score_of(game: Game, mean_return: float, scale: Scale) -> float:
    """Return the score of a return on a scale that `common_scale` named."""
    if scale == "raw returns":
        return mean_return
    is_human = scale == "human-normalized scores"
    span = _span(game, game.human_score if is_human else game.best_score)
    assert span is not None
    assert game.random_score is not None
    return (mean_return - game.random_score) / span


def _span(game: Game, reference: float | None) -> float | None:
    """Return how far a reference is above a random policy."""
    if game.random_score is None or reference is None:
        return None
    return reference - game.random_score


def rule_of(manifest: Manifest) -> LoadedRule:
    """Return the rule of a manifest as far as planning needs it, without parameters."""
    return LoadedRule(make_rule(manifest.config), {}, manifest, "rule")


def overrides_of(config: TrainConfig, place: Path) -> list[str]:
    """Return the settings of an evaluation in ``place``, as `metarl evaluate` takes."""
    chosen = config.validation
    for override in chosen.overrides:
        tree = config_loader.parse_override(override)
        environment = tree.get("environment")
        given = [*tree, *(environment if isinstance(environment, Mapping) else ())]
        for key in given:
            if key in (*_OWN, "suite", "games"):
                raise UserError(
                    f"validation.overrides: '{override}' is not for them (suite, "
                    "games, seeds and env_steps are fields of validation)"
                )
    games = (
        f"environment.suite={chosen.suite}"
        if chosen.suite
        else f"environment.games={json.dumps(chosen.games)}"
    )
    steps = [] if chosen.env_steps is None else [f"env_steps={chosen.env_steps}"]
    return [
        games,
        f"environment.num_threads={config.environment.num_threads}",
        f"seeds={json.dumps(chosen.seeds)}",
        *steps,
        f"results_dir={json.dumps(str(place))}",
        "exp_name=validation",
        "videos=false",
        *chosen.overrides,
    ]


def drop_other_cells(place: Path, cells: Sequence[Cell]) -> None:
    """Remove cells of other settings, or of a rule that came out otherwise."""
    try:
        for cell in cells:
            results.is_finished(place, cell)
        require_one_of_a_name(place, cells)
    except UserError:
        say(f"validation: the cells in {place} are of another rule or other settings")
        shutil.rmtree(place / results.CELLS)
