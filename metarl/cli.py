"""The commands: what `metarl ...` parses, and the exit codes.

Each command imports what it needs when it runs, so that `-h`, `config` and `games`
start at once. What the commands do is in `commands.py`.

Exit codes: 0 done, 1 failed, 2 bad input (one line says what), 75 preempted and saved;
130 interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import metarl
from metarl import commands
from metarl.config_loader import is_override
from metarl.disk_space import DiskFullError, told_if_full
from metarl.errors import UserError, nearest

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that raises one line in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as the user's mistake."""
        raise UserError(f"{message} (see `{self.prog} -h`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
      argv: the words after `metarl`; None: those of the process.
    """
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        with told_if_full("what was written before is kept"):
            code = int(args.run(args))
            sys.stdout.flush()
        return code
    except UserError as error:
        print(f"metarl: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except DiskFullError as error:
        print(f"metarl: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("metarl: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, such as `| head`; Python would complain again
        # when it closes the standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line, with `overrides` in any place and both forms.

    Raises:
      UserError: it makes no sense.
    """
    parser, words = _descend(_make_parser(), list(argv))
    takes_overrides = parser.get_default("overrides") is not None
    overrides, words = _split(parser, words) if takes_overrides else ([], words)
    _refuse_unknown(parser, words, takes_overrides=takes_overrides)
    args = (
        parser.parse_args(words)
        if _subcommands(parser)
        else parser.parse_intermixed_args(words)
    )
    if takes_overrides:
        args.overrides = overrides
    return args


def _make_parser() -> Parser:
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


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _descend(parser: Parser, words: list[str]) -> tuple[Parser, list[str]]:
    """Return the parser of the command that ``words`` start with, and what follows."""
    while words and (choices := _subcommands(parser)):
        if words[0] in choices:
            parser, words = choices[words[0]], words[1:]
        elif words[0].startswith("-"):
            break
        else:
            raise UserError(
                f"unknown command '{words[0]}'{nearest(words[0], choices)} "
                f"(allowed: {', '.join(choices)})"
            )
    return parser, words


def _options(parser: Parser) -> dict[str, bool]:
    """Return the options of a command, and whether a value follows each."""
    return {
        name: action.nargs != 0
        for action in parser._actions
        for name in action.option_strings
    }


def _split(parser: Parser, words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the overrides among ``words``, and the others.

    `--suite=atari5` is the command's own option, and what follows `--resume` is its
    value, even where it looks like an override.
    """
    options = _options(parser)
    overrides: list[str] = []
    others: list[str] = []
    is_value = False
    for word in words:
        name = word.partition("=")[0]
        if not is_value and name not in options and is_override(word):
            overrides.append(word)
        else:
            others.append(word)
        is_value = not is_value and options.get(word, False)
    return overrides, others


def _refuse_unknown(
    parser: Parser, words: Iterable[str], *, takes_overrides: bool
) -> None:
    """Raise UserError for an option that the command does not have."""
    options = _options(parser)
    is_value = False
    for word in words:
        name = word.partition("=")[0]
        short = word[:2] if word[:2] != "--" else name  # `-oPATH` has its value inside
        is_option = word.startswith("-") and word != "-" and not is_value
        if is_option and name not in options and short not in options:
            see = f"see `{parser.prog} -h`"
            if takes_overrides:
                see = f"a field is set by {name.lstrip('-')}=VALUE; {see}"
            raise UserError(f"unknown option {name}{nearest(name, options)} ({see})")
        is_value = not is_value and options.get(word, False)
