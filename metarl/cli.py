"""The command line: what `metarl ...` parses, and the exit codes.

Each command imports what it needs when it runs, so that `-h`, `config` and `games`
start at once. Which commands there are is in `command_options.py`, what they do in
`commands.py`.

Exit codes: 0 done, 1 failed, 2 bad input (one line says what), 75 preempted and saved;
130 interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from metarl.command_options import Parser, make_parser
from metarl.config_loader import is_override
from metarl.disk_space import DiskFullError, told_if_full
from metarl.errors import UserError, nearest

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


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
    parser, words = _descend(make_parser(), list(argv))
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
