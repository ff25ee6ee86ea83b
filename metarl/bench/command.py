"""`metarl bench`: run the cases one after another, and show what they cost.

Host code; must not import jax: the cases do, each in its process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metarl import config_loader
from metarl.bench import plan, table
from metarl.bench.measure import Record
from metarl.bench.run import CaseFailed, measure_apart
from metarl.config import BenchConfig
from metarl.config_families import check_families, settings_of
from metarl.console import heartbeat, say
from metarl.envs.tasks import resolve_environment
from metarl.errors import UserError

EXIT_DONE, EXIT_FAILED = 0, 1

DEFAULTS: config_loader.Tree = {"environment": {"suite": "catch_5x5"}}
"""Where neither a file nor an override says otherwise."""


def main(
    words: Sequence[str],
    overrides: Sequence[str],
    *,
    as_json: bool = False,
    warm_cache: bool = False,
) -> int:
    """Run `metarl bench` and return its exit code.

    Args:
      words: a case, or none for all, and YAML files.
      overrides: `key=value`, on top.
      as_json: print one line of JSON per case, as soon as it is measured.
      warm_cache: the same as `bench.warm_cache=true`.

    Raises:
      UserError: there is no such case, or the configuration does not fit the first.
    """
    asked, files = split(words)
    config = load_config(files, overrides, warm_cache=warm_cache)
    games = resolve_environment(config.environment)
    agents = config.population.num_agents or len(games)
    names = plan.sequence(asked, compare=config.bench.compare, agents=agents)
    progress = Console(stderr=True)
    records: list[Record] = []
    exit_code = EXIT_DONE
    for i, name in enumerate(names):
        title = f"{i + 1}/{len(names)} {name}: {plan.CASES[name].summary}"
        try:
            with heartbeat(title, console=progress):
                record = measure_apart(name, config)
        except CaseFailed as failure:
            say(f"bench: {failure}", console=progress)
            if name in asked:
                exit_code = EXIT_FAILED  # after what else there is to measure
            continue
        except UserError as mistake:
            if not records:
                raise
            # Of all cases a configuration may fit some: what was measured stands.
            say(f"bench: {name} left out: {mistake}", console=progress)
            continue
        records.append(record)
        if as_json:
            print(json.dumps(record), flush=True)
    if not as_json:
        say("")
        for line in table.lines(records, asked):
            say(line)
    return exit_code


def load_config(
    files: Sequence[Path], overrides: Sequence[str], *, warm_cache: bool = False
) -> BenchConfig:
    """Return the configuration of a benchmark, as it is for the family of its games.

    Raises:
      UserError: a file or an override does not fit, or the games do not fit together.
    """
    if warm_cache:
        overrides = [*overrides, "bench.warm_cache=true"]
    config = config_loader.load(BenchConfig, files, overrides, defaults=DEFAULTS)
    if config.bench.warm_cache and not config.runtime.compilation_cache:
        raise UserError(
            "bench.warm_cache=true: there is no cache to use with "
            "runtime.compilation_cache=false"
        )
    return _of_its_family(config)


def _of_its_family(config: BenchConfig) -> BenchConfig:
    """Return the configuration with what `families` says of the games laid over it.

    A case is one program, as a stack of `metarl train` is.

    Raises:
      UserError: the games do not exist, or are of several stacks.
    """
    check_families(config)
    tasks = resolve_environment(config.environment, same_shapes=False)
    families = dict.fromkeys(task.game.family for task in tasks)
    said = [family for family in families if config.families.get(family)]
    if said and len(families) > 1:
        raise UserError(
            f"families.{said[0]}: what is measured has the settings of one family, and "
            f"environment has games of {', '.join(families)} (allowed: those of one)"
        )
    config = settings_of(config, tasks[0].game.family)
    resolve_environment(config.environment)  # of one shape
    return config


def split(words: Sequence[str]) -> tuple[tuple[str, ...], list[Path]]:
    """Return the cases asked for, and the configuration files.

    Raises:
      UserError: there is no such case, or there are two.
    """
    is_file = [word.endswith((".yaml", ".yml")) for word in words]
    names = [word for word, file in zip(words, is_file, strict=True) if not file]
    if len(names) > 1:
        raise UserError(f"bench: one case at a time, not {' and '.join(names)}")
    files = [Path(word) for word, file in zip(words, is_file, strict=True) if file]
    return plan.choose(names[0] if names else plan.ALL), files
