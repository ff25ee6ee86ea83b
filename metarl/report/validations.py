"""What a training run's validations came to: scores of fresh agents, by meta-step.

Between `inputs.py` and `validation_figures.py`. RUN/validation has a folder for each,
with every agent's cell; where it is gone, the means in the run's metrics remain.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.envs.suites import GAMES, Game
from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.results import (
    CELLS,
    read_cells,
)
from metarl.report.sound_cells import require_sound, without_infinities
from metarl.statistics import Estimate
from metarl.validation_plan import (
    OF_TRAINING,
    SCORE_FILE,
    Scale,
    common_scale,
    score_of,
)

FOLDER = "validation"
UNITS: dict[Scale, str] = {
    "human-normalized scores": "score (0 = random, 1 = human)",
    "returns between a random policy's and the highest": (
        "score (0 = random, 1 = best possible)"
    ),
    "raw returns": "raw return",
}
"""What an interquartile mean is in."""
_HUMAN, _RAW = "human_normalized_score", "episodic_return"

Row = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
      meta_step: of the rule.
      iqm: over games and seeds; None where there is none.
      games: of each game a number for every agent that finished an episode, in the
        order of seeds; from metrics alone, their mean.
      failure: why there is no interquartile mean, as far as it is known.
    """

    meta_step: int
    iqm: Estimate | None
    games: Mapping[str, tuple[float, ...]]
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Validations:
    """All validations of a run that compare with its newest.

    Attributes:
      points: by meta-step.
      unit: of the interquartile means.
      game_unit: of each game's numbers.
      settings: of `validation`, as far as they decide what a score means.
      has_seeds: whether single agents are known.
      kept: meta-step of the rule in RUN/rule_best; None where there is none.
      others: how many were made with other settings, and are not in `points`.
      unfinished: meta-steps of those that have cells and no score yet.
      damaged: what is wrong with those that cannot be read, each with its file.
    """

    points: tuple[Validation, ...]
    unit: str
    game_unit: str
    settings: Mapping[str, Any]
    has_seeds: bool
    kept: int | None = None
    others: int = 0
    unfinished: tuple[int, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def games(self) -> tuple[str, ...]:
        """Task ids of all games."""
        return tuple(dict.fromkeys(g for point in self.points for g in point.games))

    @property
    def best(self) -> Validation | None:
        """The one with the highest interquartile mean, the earliest of equal ones."""
        known = [point for point in self.points if point.iqm is not None]
        return max(known, key=lambda p: (_value(p), -p.meta_step), default=None)

    @property
    def num_seeds(self) -> int:
        """Fresh agents on each game."""
        return len(self.settings.get("seeds") or ())


def read_validations(
    path: Path, config: Mapping[str, Any], rows: Sequence[Row], kept: int | None
) -> Validations | None:
    """Return the validations of the run in ``path``; None where it has none.

    Args:
      path: the run's folder.
      config: its resolved configuration.
      rows: of its metrics.
      kept: meta-step of the rule in RUN/rule_best.
    """
    section = config.get("validation")
    settings = dict(section) if isinstance(section, Mapping) else {}
    settings = {k: v for k, v in settings.items() if k not in OF_TRAINING}
    scored: list[tuple[Validation, Mapping[str, Any], Scale]] = []
    unfinished: list[int] = []
    damaged: list[str] = []
    for folder in sorted((path / FOLDER).glob("meta_step_*")):
        if (folder / SCORE_FILE).is_file():
            try:
                scored.append(_read(folder))
            except UserError as error:  # the others, and the run, are as they are
                damaged.append(str(error).removeprefix("report: "))
        elif (folder / CELLS).is_dir() and any((folder / CELLS).glob("*.json")):
            unfinished.append(int(folder.name.rpartition("_")[2]))
    if not scored:
        return _from_metrics(rows, settings, kept, tuple(damaged))
    scored.sort(key=lambda item: item[0].meta_step)
    _, newest, scale = scored[-1]
    points = tuple(point for point, given, _ in scored if given == newest)
    return Validations(
        points,
        UNITS[scale],
        _game_unit(scale),
        newest,
        has_seeds=any(point.games for point in points),
        kept=kept,
        others=len(scored) - len(points),
        unfinished=tuple(unfinished),
        damaged=tuple(damaged),
    )


def _read(folder: Path) -> tuple[Validation, Mapping[str, Any], Scale]:
    """Return a validation, its settings, and the scale of its score."""
    path = folder / SCORE_FILE
    try:
        tree = json.loads(path.read_text("utf-8"))
        games, metrics = tuple(map(str, tree["games"])), dict(tree["metrics"])
        meta_step, settings = int(tree["meta_step"]), dict(tree["settings"])
        failure = " ".join(str(tree.get("failure", "")).split())
        iqm = _iqm(metrics)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"report: {path} is not a validation's score") from error
    scale = _scale(games)
    numbers: dict[str, tuple[float, ...]] = {}
    stored = read_cells(folder)
    for cell in stored:
        require_sound(folder, cell)
    cells = sorted(map(without_infinities, stored), key=lambda cell: cell.result.seed)
    for game in games:
        found = tuple(_number(cell, scale) for cell in cells if _is_of(cell, game))
        if found:
            numbers[game] = found
    return Validation(meta_step, iqm, numbers, failure), settings, scale


def _from_metrics(
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    kept: int | None,
    damaged: tuple[str, ...],
) -> Validations | None:
    """Return what the metrics say of validations, without single agents."""
    points = []
    for row in rows:
        games: dict[str, tuple[float, ...]] = {}
        for key, value in row.items():
            family, _, rest = key.partition("/")
            game, _, metric = rest.rpartition("/")
            if family == "eval" and metric in (_HUMAN, _RAW) and value is not None:
                games[game] = (value,)
        iqm, step = _iqm(row), row.get("meta_step")
        if step is not None and (games or iqm is not None):
            points.append(Validation(int(step), iqm, games))
    if not points and not damaged:
        return None
    is_human = any(key.endswith(_HUMAN) for row in rows for key in row if "eval" in key)
    names = tuple(dict.fromkeys(game for point in points for game in point.games))
    scale = "human-normalized scores" if is_human else _scale(names)
    return Validations(
        tuple(points),
        UNITS[scale],
        _game_unit(scale),
        settings,
        has_seeds=False,
        kept=kept,
        damaged=damaged,
    )


def _scale(names: Sequence[str]) -> Scale:
    """Return what the scores on some games have in common, as they were made."""
    games = [GAMES.get(name) or Game(name, "atari") for name in names]
    try:
        return common_scale(games) if games else "raw returns"
    except UserError:
        return "raw returns"


def _game_unit(scale: Scale) -> str:
    return UNITS[scale] if scale == "human-normalized scores" else "raw return"


def _is_of(cell: CellRecord, game: str) -> bool:
    return cell.result.game == game and cell.result.mean_return is not None


def _number(cell: CellRecord, scale: Scale) -> float:
    value = cell.result.mean_return
    assert value is not None
    if scale != "human-normalized scores":
        return value
    return score_of(GAMES[cell.result.game], value, scale)


def _iqm(metrics: Mapping[str, Any]) -> Estimate | None:
    """Return the score that metrics hold.

    Raises:
      TypeError: it is no number.
    """
    names = ("eval/iqm", "eval/iqm_lo", "eval/iqm_hi")
    value, low, high = (metrics.get(name) for name in names)
    for number in (value, low, high):
        if not (number is None or type(number) in (int, float)):
            raise TypeError(number)
    return None if value is None else Estimate(value, low, high)


def _value(point: Validation) -> float:
    assert point.iqm is not None
    return point.iqm.value
