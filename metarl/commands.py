"""What each command does: load the configuration, then call the module that works.

Between `command_options.py` and everything else. Imports are inside the functions, so
that a command pays only for what it uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from metarl import config_loader
from metarl.config import (
    EnvironmentConfig,
    EvaluationConfig,
    ReportConfig,
    RuntimeConfig,
    TrainConfig,
)
from metarl.errors import UserError

_AnyConfig = TypeVar("_AnyConfig", bound=TrainConfig | EvaluationConfig)
STORED_CONFIG = "config.yaml"
"""In each run's folder: its resolved configuration."""


def quickstart(args: argparse.Namespace) -> int:
    """Run the main job in its smallest form."""
    from metarl.quickstart import load_config, main

    config = load_config(args.overrides)
    _start_jax(config.runtime)
    return main(config)


def train(args: argparse.Namespace) -> int:
    """Meta-train a rule, from the start or from where a run stopped."""
    files: list[Path] = args.files
    if args.resume is not None:
        stored = args.resume / STORED_CONFIG
        if not stored.is_file():
            raise UserError(
                f"--resume {args.resume}: not a run (it has no {STORED_CONFIG})"
            )
        files = [stored, *files]
    config = _load(TrainConfig, files, args.overrides)
    _start_jax(config.runtime)
    from metarl.train import main

    return main(config, resume=args.resume)


def evaluate(args: argparse.Namespace) -> int:
    """Train fresh agents with frozen rules and write their scores."""
    files = [Path(rule) for rule in args.rules if _is_yaml(rule)]
    rules = [rule for rule in args.rules if not _is_yaml(rule)]
    if not rules:
        raise UserError("evaluate: at least one RULE is needed")
    suite = [] if args.suite is None else [f"environment.suite={args.suite}"]
    other = [x for x in args.overrides if x.lstrip("-").startswith("environment.suite")]
    if suite and other:
        raise UserError(
            f"environment.suite: '{other[0].partition('=')[2]}' and --suite "
            f"'{args.suite}' are both given, take one"
        )
    # Loaded here for the platform alone, since reading a rule already uses JAX; each
    # rule has defaults of its own under these files and overrides.
    config = _load(EvaluationConfig, files, [*suite, *args.overrides])
    _start_jax(config.runtime)
    from metarl.evaluation import main

    return main(rules, args.suite, files, args.overrides, jobs=args.jobs)


def report(args: argparse.Namespace) -> int:
    """Show results and training runs as one page."""
    config = config_loader.load(ReportConfig, [], args.overrides)
    from metarl.report import main

    return main(
        args.folders, args.output, args.baseline, config.tracking, args.together
    )


def rules_list(args: argparse.Namespace) -> int:
    """Print the rules there are."""
    from metarl.rule_files import list_rules

    print(list_rules(args.folders))
    return 0


def rules_show(args: argparse.Namespace) -> int:
    """Print what is known of a rule."""
    from metarl.rule_files import show_rule

    print(show_rule(args.rule))
    return 0


def rules_import(args: argparse.Namespace) -> int:
    """Write published weights as a rule."""
    from metarl.rule_files import import_rule

    print(f"wrote {import_rule(args.rule, args.output)}")
    return 0


def rules_export(args: argparse.Namespace) -> int:
    """Write a rule as weights in the published format."""
    from metarl.rule_files import export_rule

    print(f"wrote {export_rule(args.rule, args.output)}")
    return 0


def rules_ship(args: argparse.Namespace) -> int:
    """Write the folder of a rule that ships, from its run."""
    from metarl.shipping.command import main

    return main(args.run_folder, args.output, args.results, args.notes)


def rules_verify(args: argparse.Namespace) -> int:
    """Compare this build with golden arrays; 1 if any differs by more than allowed."""
    # The arrays' tolerances are for float32 on CPU.
    _start_jax(RuntimeConfig(platform="cpu"))
    from metarl.golden import verify

    return 0 if verify(args.golden_dir, weights=args.weights, rule=args.rule) else 1


def bench(args: argparse.Namespace) -> int:
    """Measure what a case costs, and what it compares with."""
    from metarl.bench.command import main

    return main(
        args.words, args.overrides, as_json=args.json, warm_cache=args.warm_cache
    )


def games(args: argparse.Namespace) -> int:
    """Print suites, and games with their split, actions and scores."""
    from metarl.envs import suites

    if args.suite is None:
        rows = [["suite", "games", "env steps", "description"]]
        for suite in suites.list_suites():
            steps = f"{suite.env_steps:,}"
            rows.append([suite.name, str(len(suite.games)), steps, suite.description])
        print(_table(rows), end="\n\n")
    rows = [["game", "split", "actions", "random", "human", "suites", "meanings"]]
    for row in suites.game_rows(args.suite):
        scores = [_score(row.random_score), _score(row.human_score)]
        actions = str(row.num_actions)
        in_suites = ", ".join(row.suites)
        meanings = " ".join(row.action_meanings)
        rows.append([row.game, row.split or "-", actions, *scores, in_suites, meanings])
    print(_table(rows))
    return 0


def config(args: argparse.Namespace) -> int:
    """Print a resolved configuration, or the schema."""
    model: type[TrainConfig | EvaluationConfig]
    model = EvaluationConfig if args.evaluation else TrainConfig
    if args.schema:
        if args.files or args.overrides:
            raise UserError("config --schema: takes no CONFIG and no key=value")
        print(config_loader.schema(model))
    else:
        resolved = _load(model, args.files, args.overrides, partial=True)
        print(config_loader.dump(resolved), end="")
    return 0


def _load(
    model: type[_AnyConfig],
    files: Iterable[Path],
    overrides: Iterable[str],
    *,
    partial: bool = False,
) -> _AnyConfig:
    """Return the configuration, whose games exist and whose settings are all read.

    Args:
      model: the schema.
      files: YAML files.
      overrides: as typed.
      partial: whether the environment may be left open.
    """
    files, overrides = list(files), list(overrides)
    loaded = config_loader.load(model, files, overrides)
    if not partial or loaded.environment != EnvironmentConfig():
        from metarl.envs.tasks import resolve_environment

        resolve_environment(loaded.environment, same_shapes=False)
    if isinstance(loaded, TrainConfig):
        from metarl.config_families import check_families

        check_families(loaded)
    from metarl import without_effect

    without_effect.refuse(loaded, files, overrides)
    return loaded


def _start_jax(runtime: RuntimeConfig) -> None:
    from metarl.runtime import configure

    configure(runtime)


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:,.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns, numbers to the right; the first row is the head."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").isdigit() or cell == "-"
