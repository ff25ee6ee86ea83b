"""What the folders given to `metarl report` hold: results, training runs, rules.

Host code: reads files, computes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl import config_loader
from metarl.errors import UserError
from metarl.evaluation.cell_records import (
    CellRecord,
)
from metarl.evaluation.results import (
    CELLS,
    read_cells,
)
from metarl.report.validations import Validations, read_validations
from metarl.rule_files import Manifest
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.manifest import parse_manifest

CONFIG, METRICS, VERSIONS = "config.yaml", "metrics.jsonl", "versions.json"
BEST_RULE, INITIAL_RULE = "rule_best", "initial_rule"


@dataclasses.dataclass(frozen=True)
class ResultsFolder:
    """The finished cells of one `results_dir`."""

    path: Path
    records: tuple[CellRecord, ...]


@dataclasses.dataclass(frozen=True)
class RuleFolder:
    """A rule file, and what it says of itself."""

    name: str
    path: Path
    manifest: Manifest


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run of `metarl train`, finished or not.

    Attributes:
      path: its folder.
      config: its resolved configuration, as it was written.
      rows: of metrics.jsonl, by meta-step where they have one; None was not finite.
      versions: packages, commit and machine; empty where unknown.
      manifest: of its newest rule; None before the first is saved.
      best: manifest of its best rule by validation; None without one.
      validations: scores of fresh agents; None without any.
      written_at: when the newest row was written, in seconds since 1970.
    """

    path: Path
    config: Mapping[str, Any]
    rows: tuple[Mapping[str, float | None], ...]
    versions: Mapping[str, Any]
    manifest: Manifest | None
    written_at: float
    best: Manifest | None = None
    validations: Validations | None = None

    @property
    def name(self) -> str:
        """What rules files of this run are called."""
        return self.path.resolve().name


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that a page is made of."""

    results: tuple[ResultsFolder, ...]
    runs: tuple[TrainingRun, ...]
    rules: tuple[RuleFolder, ...]

    @property
    def records(self) -> list[tuple[Path, CellRecord]]:
        """All cells, with the results_dir that they are from."""
        return [(r.path, record) for r in self.results for record in r.records]


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Return what is in the folders.

    Raises:
      UserError: one holds neither results, nor a run, nor a rule; or only rules.
    """
    results: list[ResultsFolder] = []
    runs: dict[Path, TrainingRun] = {}
    rules: list[RuleFolder] = []
    for path in dict.fromkeys(paths):
        found = False
        if (path / CELLS).is_dir():
            results.append(_read_results(path))
            found = True
        if is_run(path):
            runs[path.resolve()] = read_run(path)
            found = True
        elif not found and rule_folder.holds_rule(path):
            rules.append(_read_rule(path))
            if is_run(path.resolve().parent):
                parent = path.resolve().parent
                runs.setdefault(parent, read_run(parent))
            found = True
        if not found:
            raise UserError(f"report: {_what_is_wrong(path)}")
    if not results and not runs:
        raise UserError(
            f"report: {paths[0]} is a rule; give results or a run beside it"
        )
    return Inputs(tuple(results), tuple(runs.values()), tuple(rules))


def read_run(path: Path) -> TrainingRun:
    """Return a training run as far as it is.

    Raises:
      UserError: it has no row of metrics yet.
    """
    rows = read_rows(path / METRICS)
    if not rows:
        raise UserError(f"report: {path} is a run that has no metrics yet")
    try:
        versions = json.loads((path / VERSIONS).read_text("utf-8"))
    except (OSError, ValueError):
        versions = {}
    config = config_loader.read_yaml(path / CONFIG)
    best = manifest_of(path / BEST_RULE)
    kept = None if best is None else best.meta_steps
    return TrainingRun(
        path=path,
        config=config,
        rows=tuple(rows),
        versions=versions if isinstance(versions, dict) else {},
        manifest=manifest_of(path / "rule"),
        written_at=(path / METRICS).stat().st_mtime,
        best=best,
        validations=read_validations(path, config, rows, kept),
    )


def read_rows(path: Path) -> list[dict[str, float | None]]:
    """Return the rows of a metrics.jsonl.

    A row that a writer is just writing, or was killed in, is left out; of rows that
    name the same meta-step the later one counts, as a resumed run wrote it anew.
    """
    rows: dict[object, dict[str, float | None]] = {}
    with path.open("rb") as file:
        for i, line in enumerate(file):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not isinstance(row, dict):
                continue
            numbers = {k: _finite(v) for k, v in row.items() if _is_number(v)}
            key = numbers.get("meta_step", f"row {i}")
            rows[key] = rows.get(key, {}) | numbers
    return sorted(rows.values(), key=lambda row: row.get("meta_step") or 0.0)


def _is_number(value: object) -> bool:
    return value is None or type(value) in (int, float)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _read_results(path: Path) -> ResultsFolder:
    records = read_cells(path)
    if not records:
        raise UserError(f"report: {path / CELLS} holds no finished cell yet")
    return ResultsFolder(path, tuple(records))


def _read_rule(path: Path) -> RuleFolder:
    manifest = manifest_of(path)
    if manifest is None:
        raise UserError(f"report: {path} is a rule without a manifest.json")
    place = path.resolve()
    is_of_run = place.name == "rule" and is_run(place.parent)
    return RuleFolder((place.parent if is_of_run else place).name, path, manifest)


def manifest_of(folder: Path) -> Manifest | None:
    """Return what a rule says of itself; None where there is none."""
    try:
        _, text = rule_folder.read(folder)
    except OSError:
        return None
    if text is None:
        return None
    return parse_manifest(text, where=str(folder / rule_folder.MANIFEST))


def is_run(path: Path) -> bool:
    """Return whether a folder is a run that has begun."""
    return (path / CONFIG).is_file() and (path / METRICS).is_file()


def _what_is_wrong(path: Path) -> str:
    if not path.exists():
        return f"{path}: there is no such folder"
    if not path.is_dir():
        return f"{path} is a file (allowed: folders of results, runs and rules)"
    if (path / CONFIG).is_file():
        return f"{path} is a run that has no metrics yet"
    below = sorted(_reportable(path.iterdir()))
    hint = f"; did you mean '{below[0]}'?" if below else ""
    return (
        f"{path} holds neither results ({CELLS}/) nor a run ({CONFIG} and {METRICS})"
        f"{hint}"
    )


def _reportable(paths: Iterable[Path]) -> list[Path]:
    return [p for p in paths if p.is_dir() and ((p / CELLS).is_dir() or is_run(p))]
