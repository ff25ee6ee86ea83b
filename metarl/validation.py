"""Validation while meta-training: how well fresh agents learn by the rule so far.

Host code, between `train.py` and `evaluation`. A validation is an ordinary evaluation
in a folder of its own, RUN/validation/meta_step_NNNNNN: the rule as it was, the cells,
and at last `score.json`. What is in these folders is all there is to know, so nothing
of it is in a checkpoint. Meta-training's randomness is not touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl import evaluation, statistics
from metarl.atomic_files import write_file
from metarl.config import TrainConfig
from metarl.console import say
from metarl.envs import suites
from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    Result,
)
from metarl.rule_files import Manifest, load_rule
from metarl.rule_files import folder as rule_folder
from metarl.run_folder import RunFolder
from metarl.tracking import without_wandb
from metarl.validation_plan import (
    OF_TRAINING,
    SCORE_FILE,
    common_scale,
    drop_other_cells,
    games_of,
    overrides_of,
    plan_cells,
    rule_of,
    score_of,
)


@dataclasses.dataclass(frozen=True)
class Score:
    """What one validation came to; the contents of its `score.json`.

    Attributes:
      meta_step: of the rule.
      games: task ids.
      settings: of `validation`, by which scores are comparable.
      metrics: by the names of `docs/metrics.md`.
      iqm: over games and seeds; None where there is none.
      failure: why there is none; empty where there is one.
    """

    meta_step: int
    games: tuple[str, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    iqm: float | None
    failure: str = ""


class Validation:
    """The validations of one run: which are due, what they came to, the best rule."""

    def __init__(self, config: TrainConfig, folder: RunFolder) -> None:
        """Describe them; `begin` says where the run stands."""
        self._config, self._folder = config, folder
        self._settings = config.validation.model_dump(
            mode="json", exclude=set(OF_TRAINING)
        )
        self._scores: list[Score] = []
        self._games_before: tuple[str, ...] = ()

    # --- What there is ------------------------------------------------------------

    def begin(self, meta_steps: int) -> None:
        """Read the scores so far, and forget those of steps that will be done again.

        Args:
          meta_steps: that the run has done. Cells of later ones stay: they are done
            already when the rule comes out the same.
        """
        if rule_folder.holds_rule(self._folder.rule):
            manifest = load_rule(self._folder.rule).manifest
            self._games_before = manifest.games_validation
        self._scores = []
        for path in sorted(self._folder.validations.glob(f"*/{SCORE_FILE}")):
            score = _read(path)
            if score.meta_step > meta_steps:
                path.unlink()
            else:
                self._scores.append(score)
        self._keep_best()

    @property
    def best(self) -> Score | None:
        """The score of the best rule, the earliest of equal ones."""
        best: Score | None = None
        for score in sorted(self._comparable(), key=lambda score: score.meta_step):
            if score.iqm is None:
                continue
            if best is None or best.iqm is None or score.iqm > best.iqm:
                best = score
        return best

    @property
    def games_used(self) -> tuple[str, ...]:
        """Task ids of all games that have ever scored a rule of this run.

        Those too whose scores were replaced, as with other settings.
        """
        games = {game for score in self._scores for game in score.games}
        return tuple(sorted(games.union(self._games_before)))

    def is_due(self, meta_steps: int) -> bool:
        """Return whether the rule after so many meta-steps waits to be validated."""
        every = self._config.validation.every
        if every == 0 or meta_steps == 0:
            return False
        is_last = meta_steps >= self._config.meta_steps
        if meta_steps % every and not is_last:
            return False
        return all(score.meta_step != meta_steps for score in self._comparable())

    def _comparable(self) -> list[Score]:
        """Return the scores that were made as they are made now."""
        return [score for score in self._scores if score.settings == self._settings]

    # --- What is done -------------------------------------------------------------

    def run(
        self,
        save_rule: Callable[[Path, Sequence[str]], None],
        *,
        meta_steps: int,
        told_to_stop: Callable[[], bool],
    ) -> Score | None:
        """Train fresh agents by the rule as it is; return what it came to.

        A failure is a score that says so: meta-training goes on without.

        Args:
          save_rule: writes it to a folder, as one that games were used to validate.
          meta_steps: that it has had.
          told_to_stop: asked between rollouts.

        Returns:
          None where it was told to stop: cells that are done stay done.
        """
        place = self._place(meta_steps)
        games = tuple(task.task_id for task in games_of(self._config))
        try:
            save_rule(place / "rule", games)
            rows = self._rows(place, meta_steps, told_to_stop)
            if rows is None:
                return None
            metrics, iqm = score_rows(rows)
            failure = "" if iqm is not None else why_unscored(rows)
        except Exception as error:  # of environments, encoders, devices
            _keep_traceback(place)
            metrics, iqm = {}, None
            failure = f"it failed ({type(error).__name__}: {error})"
        return Score(meta_steps, games, self._settings, metrics, iqm, failure)

    def _rows(
        self, place: Path, meta_steps: int, told_to_stop: Callable[[], bool]
    ) -> list[Result] | None:
        """Return the results of the rule in ``place``; None where told to stop."""
        name = f"{self._folder.path.resolve().name}__meta_step_{meta_steps}"
        rule = dataclasses.replace(load_rule(place / "rule"), name=name)
        cells = plan_cells(self._config, rule, place)
        drop_other_cells(place, cells)
        say(f"validating the rule of meta-step {meta_steps}")
        with without_wandb():  # where its score goes, and not a run for every cell
            rows = evaluation.evaluate(
                [rule],
                overrides=overrides_of(self._config, place),
                told_to_stop=told_to_stop,
            )
        if len(rows) < len(cells):
            say(f"stopped: {len(rows)} of {len(cells)} cells of the validation done")
            return None
        return rows

    def take(self, score: Score) -> None:
        """Count a score, and let RUN/rule_best follow from it."""
        self._scores.append(score)
        self._keep_best()

    def store(self, score: Score) -> None:
        """Write a score to its folder; call this last: it will not be made again."""
        text = json.dumps(dataclasses.asdict(score), indent=1) + "\n"
        path = self._place(score.meta_step) / SCORE_FILE
        write_file(path, text.encode())

    def _keep_best(self) -> None:
        """Let RUN/rule_best be the best rule, whole at any moment."""
        if self.best is None:
            return
        source, target = self._place(self.best.meta_step) / "rule", self._folder
        if not rule_folder.holds_rule(source):
            return  # deleted by hand
        arrays, manifest = rule_folder.read(source)
        assert manifest is not None
        try:
            if rule_folder.read(target.best_rule) == (arrays, manifest):
                return
        except FileNotFoundError:
            pass
        rule_folder.write(target.best_rule, arrays, manifest)

    def _place(self, meta_steps: int) -> Path:
        return self._folder.validations / f"meta_step_{meta_steps:06d}"

    # --- What is said -------------------------------------------------------------

    def announcement(self, meta_steps: int, manifest: Manifest) -> list[str]:
        """Return what the validations after so many meta-steps will cost."""
        every, last = self._config.validation.every, self._config.meta_steps
        if every == 0:
            return []
        cells = plan_cells(self._config, rule_of(manifest), self._place(0))
        steps = sum(cell.env_steps for cell in cells)
        due = {*range(every, last, every), last}
        to_come = sum(step > meta_steps or self.is_due(step) for step in due)
        games = games_of(self._config)
        names = ", ".join(game.task_id for game in games[:6])
        more = f" and {len(games) - 6} more" if games[6:] else ""
        return [
            f"validation: every {every} meta-steps and after the last, {len(cells)} "
            f"fresh agents on {names}{more}, {steps:,} env steps in all, by "
            f"{common_scale(games)}; {to_come} to come, {to_come * steps:,} env steps"
        ]

    def summary(self, score: Score) -> str:
        """Return a line on a validation that was kept."""
        best = self.best
        if score.iqm is None:
            return (
                f"warning: validation at meta_step={score.meta_step} has no score: "
                f"{' '.join(score.failure.split())}"
            )
        interval = ""
        if "eval/iqm_lo" in score.metrics:
            low, high = (score.metrics[f"eval/iqm_{end}"] for end in ("lo", "hi"))
            interval = f" [{low:.4g}, {high:.4g}]"
        line = f"validation at meta_step={score.meta_step}: iqm={score.iqm:.4g}"
        assert best is not None
        assert best.iqm is not None
        if best.meta_step == score.meta_step:
            return f"{line}{interval}, the best so far"
        earlier = f"the best is {best.iqm:.4g}, at meta_step={best.meta_step}"
        return f"{line}{interval}; {earlier}"


def score_rows(rows: Sequence[Result]) -> tuple[dict[str, float], float | None]:
    """Return the metrics of a validation, and its score.

    Args:
      rows: one per game and seed.

    Returns:
      `eval/...`; the interquartile mean over games and seeds, on the scale that the
      games have in common; None where a cell has no score, or one that is no number.
    """
    games = [suites.get_game(name) for name in dict.fromkeys(row.game for row in rows)]
    scale = common_scale(games)
    name = (
        "human_normalized_score"
        if scale == "human-normalized scores"
        else "episodic_return"
    )
    metrics: dict[str, float] = {}
    of_games = []
    for game in games:
        returns = [row.mean_return for row in rows if row.game == game.task_id]
        known = [v for v in returns if v is not None and math.isfinite(v)]
        scores = [score_of(game, value, scale) for value in known]
        if known:
            shown = known if name == "episodic_return" else scores
            metrics[f"eval/{game.task_id}/{name}"] = float(np.mean(shown))
        if len(known) == len(returns):
            of_games.append(scores)
    if len(of_games) < len(games):
        return metrics, None
    estimate = statistics.interval(statistics.iqm, statistics.Runs.of(of_games))
    metrics["eval/iqm"] = estimate.value
    if estimate.low is not None and estimate.high is not None:
        metrics |= {"eval/iqm_lo": estimate.low, "eval/iqm_hi": estimate.high}
    return metrics, estimate.value


def why_unscored(rows: Sequence[Result]) -> str:
    """Return a sentence on the first cell without a score, if one has none."""
    for row in rows:
        who = f"the agent of {row.game}, seed {row.seed},"
        if row.mean_return is None:
            return f"{who} finished no episode (validation.env_steps is too small)"
        if not math.isfinite(row.mean_return):
            return f"{who} has the mean return {row.mean_return}"
    return ""


def _keep_traceback(place: Path) -> None:
    """Write down what went wrong, for whoever wants to know more than the line."""
    with contextlib.suppress(OSError):  # such as the very reason
        write_file(place / "failure.txt", traceback.format_exc().encode())


def _read(path: Path) -> Score:
    try:
        tree = json.loads(path.read_text("utf-8"))
        return Score(**{**tree, "games": tuple(tree["games"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a validation's score ({error}); remove the file to go on "
            "without it"
        ) from None
