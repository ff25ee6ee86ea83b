"""Which commands there are, and the options of each.

Between `cli.py`, which parses by these, and `commands.py`, which each of them runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import metarl
from metarl import commands
from metarl.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises one line in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as the user's mistake."""
        raise UserError(f"{message} (see `{self.prog} -h`)")


def make_parser() -> Parser:
    """Return the parser of `metarl`, with one for every command below it."""
    parser = Parser(
        prog="metarl",
        description="Discover reinforcement-learning update rules; train with them.",
        epilog="example: metarl train configs/catch.yaml seed=3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"metarl {metarl.__version__}"
    )
    add = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_quickstart(add)
    _add_train(add)
    _add_evaluate(add)
    _add_report(add)
    _add_rules(add)
    _add_bench(add)
    _add_games(add)
    _add_config(add)
    return parser


_Subparsers = argparse._SubParsersAction


def _command(add: _Subparsers[Parser], name: str, summary: str, example: str) -> Parser:
    return add.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: metarl {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_quickstart(add: _Subparsers[Parser]) -> None:
    quickstart = _command(
        add,
        "quickstart",
        "meta-train a small rule on Atari games and try it on a held-out one",
        "quickstart meta_steps=50",
    )
    quickstart.set_defaults(run=commands.quickstart, overrides=[])


def _add_train(add: _Subparsers[Parser]) -> None:
    train = _command(
        add,
        "train",
        "meta-train a rule; any field of the configuration is a key=value",
        "train configs/catch.yaml seed=3 --agent.optimizer.learning_rate=3e-4",
    )
    train.add_argument(
        "files", nargs="*", type=Path, metavar="CONFIG", help="YAML, later ones on top"
    )
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with the run in this folder"
    )
    train.set_defaults(run=commands.train, overrides=[])


def _add_evaluate(add: _Subparsers[Parser]) -> None:
    evaluate = _command(
        add,
        "evaluate",
        "train fresh agents with frozen rules and score them",
        "evaluate RUN actor_critic --suite catch seeds='[1,2,3]' env_steps=2e5",
    )
    evaluate.add_argument(
        "rules",
        nargs="+",
        metavar="RULE",
        help="a rule's folder or file, a run, or a name that `metarl rules list` "
        "prints; a .yaml is a configuration",
    )
    evaluate.add_argument("--suite", help="suite by name; see `metarl games`")
    evaluate.add_argument(
        "--jobs",
        metavar="I/N",
        help="train part I of N of the cells; the parts may run anywhere, in any order",
    )
    evaluate.set_defaults(run=commands.evaluate, overrides=[])


def _add_report(add: _Subparsers[Parser]) -> None:
    report = _command(
        add,
        "report",
        "show results and training runs as one HTML page",
        "report results/catch runs/catch3 --baseline actor_critic",
    )
    report.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="results of `metarl evaluate`, runs of `metarl train`, rules",
    )
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write report.html (default: the first folder)",
    )
    report.add_argument(
        "--baseline", metavar="RULE", help="compare with this (default: actor_critic)"
    )
    report.add_argument(
        "--together",
        action="append",
        default=[],
        metavar="NAME=RULE,RULE",
        help="rules that one recipe discovered, compared as one too; may be repeated",
    )
    report.set_defaults(run=commands.report, overrides=[])


def _add_rules(add: _Subparsers[Parser]) -> None:
    rules = _command(
        add, "rules", "list, show, convert and ship rules", "rules show actor_critic"
    )
    sub = rules.add_subparsers(metavar="COMMAND", required=True)
    list_rules = _command(
        sub, "list", "list the rules that ship and those in folders", "rules list runs"
    )
    list_rules.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    list_rules.set_defaults(run=commands.rules_list)

    show = _command(sub, "show", "show a rule's manifest", "rules show actor_critic")
    show.add_argument("rule", metavar="RULE")
    show.set_defaults(run=commands.rules_show)

    published = _command(
        sub,
        "import",
        "read DiscoRL's published weights",
        "rules import disco_103.npz -o rules/disco103",
    )
    published.add_argument("rule", type=Path, metavar="NPZ")
    published.set_defaults(run=commands.rules_import)

    export = _command(
        sub,
        "export",
        "write a rule in the format of DiscoRL's published weights",
        "rules export rules/disco103 -o disco_103.npz",
    )
    export.add_argument("rule", metavar="RULE")
    export.set_defaults(run=commands.rules_export)
    for parser in (published, export):
        parser.add_argument(
            "-o", "--output", type=Path, required=True, metavar="PATH", help="to write"
        )

    _add_ship(sub)
    verify = _command(
        sub,
        "verify",
        "check this build against golden arrays",
        "rules verify golden/disco103 --weights disco_103.npz",
    )
    verify.add_argument("golden_dir", type=Path, metavar="GOLDEN_DIR")
    subject = verify.add_mutually_exclusive_group(required=True)
    subject.add_argument("--weights", type=Path, metavar="NPZ", help="as published")
    subject.add_argument("--rule", type=Path, metavar="DIR", help="an imported rule")
    verify.set_defaults(run=commands.rules_verify)


def _add_ship(sub: _Subparsers[Parser]) -> None:
    ship = _command(
        sub,
        "ship",
        "write a run's rule with its model card, curves and configuration",
        "rules ship runs/catch3 -o checkpoints/catch3 --results results/catch3",
    )
    ship.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a run, or a rule in one"
    )
    ship.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="to write; its name is the rule's, such as checkpoints/NAME",
    )
    ship.add_argument(
        "--results",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="of `metarl evaluate`, with cells of this rule",
    )
    ship.add_argument(
        "--notes",
        type=Path,
        metavar="FILE",
        help="what it is not good for, in Markdown (default: DIR/notes.md)",
    )
    ship.set_defaults(run=commands.rules_ship)


def _add_bench(add: _Subparsers[Parser]) -> None:
    bench = _command(
        add,
        "bench",
        "time acting, updates and meta-gradients beside what they compare with",
        "bench meta-step configs/bench_catch_notebook.yaml bench.seconds=20",
    )
    bench.add_argument(
        "words",
        nargs="*",
        metavar="CASE, CONFIG",
        help="env, act, agent-update, meta-step, train-step or all (default), and YAML "
        "files of `metarl train`, later ones on top",
    )
    bench.add_argument(
        "--json", action="store_true", help="one flat object per line and case"
    )
    bench.add_argument(
        "--warm-cache",
        action="store_true",
        help="use the cache of compiled programs, as a second start does; without it "
        "every program is compiled anew",
    )
    bench.set_defaults(run=commands.bench, overrides=[])


def _add_games(add: _Subparsers[Parser]) -> None:
    games = _command(
        add, "games", "list suites, splits and scores", "games --suite atari5"
    )
    games.add_argument("--suite", help="only the games of this suite")
    games.set_defaults(run=commands.games)


def _add_config(add: _Subparsers[Parser]) -> None:
    config = _command(
        add,
        "config",
        "print the resolved configuration",
        "config configs/catch.yaml seed=3",
    )
    config.add_argument(
        "files", nargs="*", type=Path, metavar="CONFIG", help="YAML, later ones on top"
    )
    config.add_argument("--schema", action="store_true", help="print its JSON schema")
    config.add_argument(
        "--evaluation",
        action="store_true",
        help="of `metarl evaluate` rather than `metarl train`",
    )
    config.set_defaults(run=commands.config, overrides=[])
