"""Results on disk: a JSON file per finished cell.

A host module. Every file appears whole or not at all, so an evaluation that was killed
goes on with the cells that have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from metarl.atomic_files import write_file, write_new_file
from metarl.envs.suites import GAMES, human_normalized_score
from metarl.errors import UserError
from metarl.evaluation import agreement_records
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_files import FORMAT, not_a_cell, read_tree
from metarl.evaluation.cells import Cell, completed_identity
from metarl.evaluation.robustness_records import Robustness, of_tree
from metarl.evaluation.shared_folder import locked

CELLS = "cells"
_UNORDERED = ("tuning.learning_rates", "tuning.games", "tuning.seeds")


@dataclasses.dataclass(frozen=True)
class Result:
    """How good a cell became; one row of results.csv, whose columns these are.

    Attributes:
      group_size: agents that learned together.
      mean_return: raw return of the finished episodes that `final_score` names, by
        default the last 100, all if fewer; None where no episode finished, or where
        that of one is not finite. Of a group the mean over its peers, if all have one.
      human_normalized_score: of that; None where no scores are published.
      scored_episodes: how many episodes `mean_return` is of.
      frames: of the emulator: `env_steps` x frame-skip in Atari, `env_steps` elsewhere.
      protocol: `environment.atari.protocol`; empty outside Atari.
      learning_rate: of the cell's agents.
      tuned: whether it was chosen on validation games (`tuning`).
      wall_s: seconds the cell took; of cells that ran side by side each has its share,
        so that sums are the hours of the machine.
      best_return: the highest `mean_return` of a peer; of one agent its own.
      worst_return: the lowest.
    """

    rule: str
    game: str
    status: str
    seed: int
    group_size: int
    env_steps: int
    episodes: int
    mean_return: float | None
    human_normalized_score: float | None
    scored_episodes: int = 0
    frames: int = 0
    protocol: str = ""
    learning_rate: float | None = None
    tuned: bool = False
    wall_s: float | None = None
    best_return: float | None = None
    worst_return: float | None = None

    @property
    def label(self) -> str:
        """The rule's name in tables and figures, groups of another size apart."""
        size = self.group_size
        return self.rule + (f" (groups of {size})" if size > 1 else "")


@dataclasses.dataclass(frozen=True)
class CurveRow:
    """One point of a learning curve.

    Attributes:
      env_steps: so far.
      agent_updates: so far.
      episodes: finished since the row before.
      mean_return: their raw return; None where there are none, or where that of one
        is not finite.
    """

    env_steps: int
    agent_updates: int
    episodes: int
    mean_return: float | None


Stage = Literal["random", "early", "final"]
"""How far the agent that a video shows had learned."""


@dataclasses.dataclass(frozen=True)
class Video:
    """One recorded episode.

    Attributes:
      stage: how far the agent had learned.
      file: relative to `results_dir`.
      episode_return: raw.
      env_steps: that the agent had learned from, or its group.
      peer: which agent of its group it is, from 1; None: there is no other.
    """

    stage: Stage
    file: str
    episode_return: float
    env_steps: int
    peer: int | None = None


@dataclasses.dataclass(frozen=True)
class PeerRecord:
    """One agent of a group.

    Attributes:
      mean_return: its final score; None where it has none.
      curve: its learning curve; `env_steps` are the group's.
    """

    mean_return: float | None
    curve: tuple[CurveRow, ...]


@dataclasses.dataclass(frozen=True)
class AgentRecords:
    """What is stored of each agent of a cell.

    Attributes:
      peers: the agents of a group; none of a single agent.
      robustness: of each agent; of none where that was not tested.
      agreement: of the agents of a group, while they learned.
    """

    peers: tuple[PeerRecord, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    agreement: tuple[AgreementRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class CellRecord:
    """All that is stored of a cell.

    Attributes:
      result: its row of results.csv.
      curve: its learning curve.
      settings: that decided the result; see `Cell.identity`.
      about: what else is worth knowing, such as versions and seconds.
      videos: of its agents.
      peers: the agents of a group; none of a single agent.
      robustness: of each agent; of none where that was not tested.
      agreement: of the agents of a group at rows of its curve.
    """

    result: Result
    curve: tuple[CurveRow, ...]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    videos: tuple[Video, ...] = ()
    peers: tuple[PeerRecord, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    agreement: tuple[AgreementRow, ...] = ()


def make_result(
    cell: Cell,
    *,
    env_steps: int,
    episodes: int,
    last_returns: Sequence[float],
    of_others: Sequence[Sequence[float]] = (),
) -> Result:
    """Return the row of a cell.

    Args:
      cell: that is done.
      env_steps: it took.
      episodes: that finished.
      last_returns: of those that count, of the first agent.
      of_others: the same of the others of its group.
    """
    means = [mean_of(returns) for returns in (last_returns, *of_others)]
    known = [value for value in means if value is not None]
    mean = sum(known) / len(known) if len(known) == len(means) else None
    return Result(
        rule=cell.rule.name,
        game=cell.game,
        status=cell.rule.status(cell.game),
        seed=cell.seed,
        group_size=cell.group_size,
        env_steps=env_steps,
        episodes=episodes,
        mean_return=mean,
        human_normalized_score=(
            None if mean is None else human_normalized_score(cell.task.game, mean)
        ),
        scored_episodes=(
            0 if mean is None else len(last_returns) + sum(map(len, of_others))
        ),
        frames=env_steps * cell.frame_skip,
        protocol=cell.protocol,
        learning_rate=cell.settings.agent.optimizer.learning_rate,
        tuned=cell.tuning is not None,
        best_return=max(known, default=None),
        worst_return=min(known, default=None),
    )


def mean_of(returns: Sequence[float]) -> float | None:
    """Return the mean; None of nothing, or where it is not finite."""
    return finite(sum(returns) / len(returns)) if returns else None


def finite(number: float) -> float | None:
    """Return a number as JSON can hold it: None where it is not finite."""
    return number if math.isfinite(number) else None


def write_cell(
    results_dir: Path,
    cell: Cell,
    result: Result,
    curve: Sequence[CurveRow],
    about: Mapping[str, object],
    *,
    agents: AgentRecords = AgentRecords(),
    before: Callable[[], None] | None = None,
) -> bool:
    """Store a finished cell, unless another process was first: its result stays.

    Args:
      results_dir: of the evaluation.
      cell: that is done.
      result: its row.
      curve: its learning curve.
      about: what else is worth knowing, such as versions and seconds.
      agents: what is known of each.
      before: called right before it is stored, if it is.

    Returns:
      Whether it was stored.
    """
    tree = {
        "format": FORMAT,
        "result": dataclasses.asdict(result),
        "curve": [dataclasses.asdict(row) for row in curve],
        "settings": cell.identity(),
        "about": dict(about),
        "videos": [],
    }
    tree |= {name: found for name, found in dataclasses.asdict(agents).items() if found}
    path = cell_path(results_dir, cell)
    with changing(results_dir):
        if path.exists():
            return False
        if before is not None:
            before()
        return write_new_file(path, _json(tree).encode())


def is_finished(
    results_dir: Path, cell: Cell, *, undecided: Sequence[str] = ()
) -> bool:
    """Return whether a cell was done before, with the same settings.

    Args:
      results_dir: of the evaluation.
      cell: that may be done.
      undecided: settings that are not compared, since they are still to be chosen.

    Raises:
      UserError: it was done with others.
    """
    path = cell_path(results_dir, cell)
    if not path.is_file():
        return False
    tree = read_tree(path)
    # Of names that no file can have, two may have become one.
    of = {"rule": cell.rule.name, "game": cell.game, "seed": cell.seed}
    before = {name: tree["result"].get(name) for name in of}
    before |= flatten(completed_identity(tree["settings"]))
    now = {**of, **flatten(cell.identity())}
    fields = [f for f in {**now, **before} if f not in undecided]
    if field := first_difference(before, now, fields):
        raise UserError(
            f"results_dir: {results_dir} has {cell.name} with {field} = "
            f"{show(before, field)}, not {show(now, field)} "
            "(choose another results_dir)"
        )
    return True


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], fields: Iterable[str]
) -> str | None:
    """Return the first of ``fields`` that two flat identities differ in.

    The grid first: what it chose differs too where it does. In which order it was
    given is no difference.
    """
    for field in sorted(fields, key=lambda name: not name.startswith("tuning.")):
        pair = [before.get(field), now.get(field)]
        if field in _UNORDERED:
            pair = [sorted(v, key=str) if isinstance(v, list) else v for v in pair]
        if pair[0] != pair[1]:
            return field
    return None


@contextlib.contextmanager
def changing(results_dir: Path) -> Iterator[None]:
    """Keep others from merging, storing and changing cells while the block runs."""
    with locked(results_dir / ".merge.lock"):
        yield


def read_cells(results_dir: Path) -> list[CellRecord]:
    """Return every finished cell, by rule, game and seed; none without such a folder.

    Raises:
      UserError: a file there is not a cell's.
    """
    return by_cell(read_record(path) for path in (results_dir / CELLS).glob("*.json"))


def by_cell(records: Iterable[CellRecord]) -> list[CellRecord]:
    """Return cells by rule, game, size of the group and seed."""

    def place(record: CellRecord) -> tuple[str, str, int, int]:
        result = record.result
        return result.rule, result.game, result.group_size, result.seed

    return sorted(records, key=place)


def read_cell(results_dir: Path, cell: Cell) -> CellRecord:
    """Return what is stored of a finished cell."""
    return read_record(cell_path(results_dir, cell))


def cell_path(results_dir: Path, cell: Cell) -> Path:
    """Return where a cell is stored once it is finished."""
    return results_dir / CELLS / f"{cell.name}.json"


def read_record(path: Path) -> CellRecord:
    """Return the finished cell that a file is.

    Raises:
      UserError: it is not one.
    """
    tree = read_tree(path)
    try:
        return CellRecord(
            result=Result(**(_older(tree) | tree["result"])),
            curve=tuple(CurveRow(**point) for point in tree["curve"]),
            settings=tree["settings"],
            about=tree["about"],
            videos=tuple(Video(**video) for video in tree["videos"]),
            peers=tuple(
                PeerRecord(
                    peer["mean_return"],
                    tuple(CurveRow(**point) for point in peer["curve"]),
                )
                for peer in tree.get("peers", ())
            ),
            robustness=of_tree(tree.get("robustness", ())),
            agreement=agreement_records.of_tree(tree.get("agreement", ())),
        )
    except KeyError as error:
        raise not_a_cell(path, f"{error} is missing") from None
    except (TypeError, ValueError, AttributeError):
        raise not_a_cell(path, "a part of it is not as this metarl has it") from None


def _older(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that files of earlier versions lack, from what they hold."""
    result, settings = tree["result"], tree["settings"]
    atari = settings["environment"]["atari"]
    is_atari = result["game"] in GAMES and GAMES[result["game"]].family == "atari"
    about = tree["about"]
    return {
        "scored_episodes": min(result["episodes"], 100),
        "frames": result["env_steps"] * (atari["frame_skip"] if is_atari else 1),
        "protocol": atari["protocol"] if is_atari else "",
        "learning_rate": settings["agent"]["optimizer"]["learning_rate"],
        "wall_s": about["wall_s"] / (about.get("cells_beside", 0) + 1)
        if "wall_s" in about
        else None,
        "best_return": result["mean_return"],
        "worst_return": result["mean_return"],
    }


def write_tree(path: Path, tree: object) -> None:
    """Write a JSON file so that no reader sees a part of it."""
    _write(path, _json(tree))


def _json(tree: object) -> str:
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def show(flat: Mapping[str, object], field: str) -> str:
    """Return the value of a flat identity as a message has it."""
    return json.dumps(flat[field]) if field in flat else "nothing"
