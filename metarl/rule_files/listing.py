"""What `metarl rules list` and `metarl rules show` print. A host module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from metarl.config import EnvironmentConfig
from metarl.errors import UserError
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.finding import BUILT_IN, find_rule, shipped_rules
from metarl.rule_files.loading import flatten_params, load_rule
from metarl.rule_files.manifest import Manifest, parse_manifest


def list_rules(folders: Iterable[str | Path] = ()) -> str:
    """Return a table of the built-in rules, those that ship and those in ``folders``.

    Args:
      folders: rules, runs, or folders of either. What cannot be read is listed with
        the reason.

    Raises:
      UserError: a folder does not exist.
    """
    rows = [["rule", "kind", "parameters", "meta-steps", "games seen", "where"]]
    for name, config in BUILT_IN.items():
        rows.append([name, config.kind, "0", "-", "0", "built in"])
    places = [*shipped_rules().values()]
    for folder in folders:
        places += _rules_in(Path(folder))
    for place in dict.fromkeys(places):
        where, name = find_rule(place)
        try:
            manifest = _manifest(where)
        except UserError as error:
            rows.append([name, "?", "?", "?", "?", f"{where}: {error}"])
            continue
        rows.append(
            [
                name,
                manifest.kind,
                f"{manifest.num_parameters:,}",
                f"{manifest.meta_steps:,}",
                f"{len(manifest.games_seen)}{'' if manifest.seen_is_complete else '+'}",
                str(where),
            ]
        )
    return _table(rows)


def show_rule(rule: str | Path) -> str:
    """Return the manifest, the number of parameters and the tensors of ``rule``.

    Raises:
      UserError: there is no such rule, or its file is not what its manifest says.
    """
    loaded = load_rule(rule)
    manifest = loaded.manifest
    arrays = flatten_params(loaded.meta_params)
    facts = [
        ["rule", loaded.name],
        ["kind", manifest.kind],
        ["parameters", f"{sum(array.size for array in arrays.values()):,}"],
        ["meta-steps", f"{manifest.meta_steps:,}"],
        ["env steps", f"{manifest.env_steps:,}"],
        ["games seen", _games(manifest.games_seen, manifest.seen_is_complete)],
        ["games for validation", _games(manifest.games_validation, True)],
        [
            "parents",
            ", ".join(f"{p.name} ({p.sha256[:12]})" for p in manifest.parents) or "-",
        ],
        ["source", _pairs(manifest.source)],
        ["configuration", _pairs(manifest.config.model_dump(mode="json"))],
        *_agents(manifest.agent),
        ["versions", _pairs(manifest.versions)],
        ["commit", manifest.commit or "-"],
        ["sha256", manifest.sha256 or "-"],
    ]
    if loaded.path is not None:
        facts.append(["where", str(loaded.path)])
        if (card := loaded.path / rule_folder.CARD).is_file():
            facts.append(["model card", str(card)])
    text = _table(facts)
    if not arrays:
        return text + "\n\nno tensors: a hand-written rule"
    tensors = [["tensor", "shape", "dtype", "values", "rms"]]
    for path, array in arrays.items():
        rms = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
        shape = " x ".join(str(size) for size in array.shape) or "scalar"
        tensors.append([path, shape, str(array.dtype), f"{array.size:,}", f"{rms:.4g}"])
    return f"{text}\n\n{_table(tensors)}"


def _rules_in(folder: Path) -> list[Path]:
    """Return the rules and runs at ``folder`` or directly below it."""
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist")
    places = [folder, *sorted(folder.iterdir())]
    return [
        place
        for place in places
        if rule_folder.holds_rule(place)
        or (rule_folder.holds_rule(place / "rule") and place.name != "rule")
    ]


def _manifest(where: Path) -> Manifest:
    """Return the manifest of a rule without loading its arrays."""
    _, text = rule_folder.read(where)
    if text is None:
        raise UserError("no manifest.json")
    return parse_manifest(text, where=rule_folder.MANIFEST)


def _games(games: Sequence[str], is_complete: bool) -> str:
    if not is_complete:
        return f"{len(games)} known, maybe more: {', '.join(games)}".rstrip(": ")
    return f"{len(games)}: {', '.join(games)}" if games else "none"


def _agents(section: Mapping[str, JsonValue]) -> list[list[str]]:
    """Return rows on the agents: of the first family, and of those that differ."""
    families = section.get("families")
    first = _agent_facts(section)
    rows = [["agents", first]]
    for family, other in (families if isinstance(families, dict) else {}).items():
        facts = _agent_facts(other if isinstance(other, dict) else {})
        if facts != first:
            rows.append([f"agents ({family})", facts])
    return rows


def _agent_facts(section: Mapping[str, JsonValue]) -> str:
    """Return settings of agents; of their environments what is not the default.

    Which games these are is said elsewhere.
    """
    facts = {k: v for k, v in section.items() if k not in ("families", "environment")}
    environment = section.get("environment")
    if isinstance(environment, dict):
        default = EnvironmentConfig().model_dump(mode="json")
        same = {"games", "suite", "num_envs", "num_threads"}  # num_envs is beside it
        facts |= {
            f"environment.{key}": value
            for key, value in environment.items()
            if key not in same and value != default.get(key)
        }
    return _pairs(facts)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "-"


def _table(rows: list[list[str]]) -> str:
    """Return aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
