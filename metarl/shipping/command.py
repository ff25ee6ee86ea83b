"""`metarl rules ship`: make the folder of a rule that ships, from its run.

Host code. All files of a folder are of one rule: they are exchanged for what was there
in one step, and nothing is written where something else is in their place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from metarl.console import say
from metarl.errors import UserError
from metarl.report.figures import to_csv
from metarl.rule_files import BUILT_IN
from metarl.rule_files import folder as rule_folder
from metarl.shipping.card import MARK, NO_LIMITS, write_card
from metarl.shipping.curves import curves_figure
from metarl.shipping.record import read_record
from metarl.shipping.scores import csv_rows, read_scores

CONFIG, NOTES = "config.yaml", "notes.md"
CURVES, NUMBERS, SCORES = "curves.png", "curves.csv", "scores.csv"
FILES = (
    *(rule_folder.ARRAYS, rule_folder.MANIFEST, rule_folder.CARD),
    *(CONFIG, NOTES, CURVES, NUMBERS, SCORES),
)
"""All that is in the folder of a rule that ships; notes and scores where given."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def main(run: Path, folder: Path, results: Sequence[Path], notes: Path | None) -> int:
    """Run `metarl rules ship` and return its exit code; see `ship_rule`."""
    missing = ship_rule(run, folder, results=results, notes=notes)
    say(f"wrote {folder}")
    for line in missing:
        say(f"warning: {line}")
    return 0


def ship_rule(
    run: Path,
    folder: Path,
    *,
    results: Sequence[Path] = (),
    notes: Path | None = None,
) -> list[str]:
    """Write the folder of a rule that ships; again with the same files, byte by byte.

    Args:
      run: of `metarl train`: its best rule by validation, or its newest if it did not
        validate; or the folder of one of its rules, which is then taken.
      folder: whose name the rule will have.
      results: folders of `metarl evaluate` with cells of this rule.
      notes: what the rule is not good for, in Markdown; None: the `notes.md` that the
        folder has.

    Returns:
      What the card lacks, a line each.

    Raises:
      UserError: an input is not what it should be, or something else is in the folder.
    """
    name = _name(folder)
    try:
        record = read_record(run, name)
        paths = enumerate(dict.fromkeys(results), start=1)
        every = [read_scores(path, record, i) for i, path in paths]
    except UserError as error:
        # The readers are those of reports.
        raise UserError(re.sub(r"^report: ", "rules ship: ", str(error))) from None
    rule_folder.refuse_another(folder, record.arrays)
    _refuse_card_by_hand(folder)
    text = _notes(notes, folder)
    figure = curves_figure(record)
    files = {
        rule_folder.ARRAYS: record.arrays,
        rule_folder.MANIFEST: record.manifest_json.encode(),
        rule_folder.CARD: write_card(record, figure, every, text).encode(),
        CONFIG: record.config_yaml().encode(),
        CURVES: figure.png,
        NUMBERS: to_csv(figure.columns, figure.rows).encode(),
    }
    if text is not None:
        files[NOTES] = text.encode()
    if every:
        files[SCORES] = to_csv(*csv_rows(every, record)).encode()
    rule_folder.write_whole(folder, files, replaceable=FILES)
    missing = []
    if text is None:
        missing.append(
            f"the card says '{NO_LIMITS}' (say what it is not good for by --notes FILE)"
        )
    if not every:
        missing.append("the card has no scores of fresh agents (give --results FOLDER)")
    return missing


def _name(folder: Path) -> str:
    """Return the name that a rule in ``folder`` is found by.

    Raises:
      UserError: it could not be.
    """
    name = folder.resolve().name
    if not _NAME.fullmatch(name):
        raise UserError(
            f"rules ship -o {folder}: '{name}' is no name for a rule (allowed: "
            "letters, digits, dots, hyphens and underscores)"
        )
    if name in BUILT_IN or name.endswith((".yaml", ".yml", ".npz")):
        raise UserError(
            f"rules ship -o {folder}: '{name}' means something else wherever a rule is "
            "named; choose another name"
        )
    return name


def _refuse_card_by_hand(folder: Path) -> None:
    card = folder / rule_folder.CARD
    if card.is_file() and not card.read_text("utf-8").startswith(MARK):
        raise UserError(
            f"{card} was not written by this command; move what it says to {NOTES} "
            "and delete it"
        )


def _notes(given: Path | None, folder: Path) -> str | None:
    """Return what the author says, now or before; None for nothing.

    Raises:
      UserError: the file cannot be read, or is empty.
    """
    path = given or folder / NOTES
    if given is None and not path.is_file():
        return None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"--notes {path}: {reason}") from None
    if not text.strip():
        raise UserError(f"--notes {path}: is empty; leave it out to say nothing")
    return text
