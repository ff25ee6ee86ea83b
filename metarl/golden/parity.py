"""`metarl rules verify`: every array of a golden folder against this build's.

A host module: reads files and prints. The arrays come from the modules that train
(rules, agents, meta), by way of `metanet_parts` and `agent_parts`.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import jax
import numpy as np

from metarl.config import DiscoConfig
from metarl.errors import UserError
from metarl.golden.agent_parts import learner_chain, meta_gradient
from metarl.golden.files import GoldenFile, find_files
from metarl.golden.judge import Finding, Tolerances, compare
from metarl.golden.metanet_parts import metanet_chain, metanet_products
from metarl.golden.subject import Arrays, Subject
from metarl.rule_files import load_rule
from metarl.rules.disco import Disco

# Lines may be minutes apart, so they must not wait in a pipe's buffer.
_print = functools.partial(print, flush=True)

PARTS: dict[str, Callable[[GoldenFile, Subject], Arrays]] = {
    "a": metanet_chain,
    "c": learner_chain,
    "d": meta_gradient,
    "e": meta_gradient,
    "f": metanet_products,
}
"""How this build computes the outputs of a file; part b is in the files of part a."""


def verify(
    golden_dir: Path,
    *,
    weights: Path | None = None,
    rule: Path | None = None,
    out: Callable[[str], None] = _print,
) -> bool:
    """Return whether this build agrees with every array of ``golden_dir``.

    Args:
      golden_dir: a folder of golden files with both tolerance tables.
      weights: the published weights, `disco_103.npz`.
      rule: the folder of an imported rule, in place of ``weights``.
      out: takes each line of the report: one per file, then one per array group with
        its largest error as a multiple of what is allowed.

    Raises:
      UserError: the folder, a file or the rule cannot be used; or an array of the
        folder has no tolerance or is not known.
    """
    golden_dir = Path(golden_dir)
    paths = find_files(golden_dir)
    limits = Tolerances.read(golden_dir)
    subject = load_subject(weights=weights, rule=rule)
    out(f"{len(paths)} files; the first of each size is compiled, which takes longer")
    findings: list[Finding] = []
    for part, files in groupby(paths, key=lambda path: _part_name(path.stem)):
        of_part: list[Finding] = []
        for path in files:
            start = time.perf_counter()
            of_file, not_stored = check_file(path, subject, limits)
            count = len({finding.key for finding in of_file})
            out(f"{path.stem}: {count} arrays, {time.perf_counter() - start:.1f} s")
            if not_stored:
                out(f"{path.stem}: not in the file: {', '.join(not_stored)}")
            of_part += of_file
        for line in _group_lines(part, of_part):
            out(line)
        findings += of_part
    out(_summary(findings))
    return all(finding.agrees for finding in findings)


def load_subject(*, weights: Path | None, rule: Path | None) -> Subject:
    """Return the rule that is to be verified.

    Raises:
      UserError: not exactly one of both is given, or it is not Disco of the
        published sizes.
    """
    if (weights is None) == (rule is None):
        raise UserError(
            "rules verify: give the rule as either --weights NPZ or --rule DIR"
        )
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights: {weights} is not a file")
    path = rule if weights is None else weights
    assert path is not None
    loaded = load_rule(path)
    if not isinstance(loaded.rule, Disco):
        raise UserError(
            f"{path}: a rule of kind '{loaded.manifest.kind}'; the golden arrays are "
            "of kind 'disco'"
        )
    _check_sizes(loaded.rule.config, Path(path))
    return Subject(loaded.rule.config, jax.tree.map(np.asarray, loaded.meta_params))


def check_file(
    path: Path, subject: Subject, limits: Tolerances
) -> tuple[list[Finding], list[str]]:
    """Return the findings on one golden file: at least one for each of its outputs.

    Returns:
      The findings, and the outputs of its part that the file does not store.

    Raises:
      UserError: the file has no outputs, or arrays that are not known.
    """
    file = GoldenFile(path)
    golden = file.outputs()
    if not golden:
        raise UserError(f"{path}: has inputs only, nothing to compare with")
    # The arrays and their noise floors are those of float32 on CPU.
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.enable_x64(False):
        ours = PARTS[file.part](file, subject)
    if unknown := file.unread():
        raise UserError(
            f"{path}: array '{unknown[0]}' is not known to part {file.part}"
        )
    findings = compare(file.stem, golden, ours, limits)
    missed = golden.keys() - {finding.key for finding in findings}
    assert not missed, f"{path}: not compared: {sorted(missed)}"
    return findings, sorted(ours.keys() - golden.keys())


def _check_sizes(config: DiscoConfig, path: Path) -> None:
    """Refuse a rule whose sizes are not the published ones."""
    published = DiscoConfig()
    for name in (
        "prediction_size",
        "num_bins",
        "trajectory_lstm",
        "lifetime_lstm",
        "embedding_hidden",
        "action_channels",
        "policy_channels",
        "lifetime_input",
    ):
        if getattr(config, name) != getattr(published, name):
            raise UserError(
                f"{path}: {name} is {getattr(config, name)}; the golden arrays are "
                f"for {getattr(published, name)}"
            )


def _part_name(stem: str) -> str:
    """Return a file's stem without sizes and seed: what its arrays are grouped by."""
    return re.sub(r"(_T\d+_B\d+_A\d+)?_seed\d+$", "", stem)


def _worst(findings: Sequence[Finding]) -> Finding:
    # A NaN is worse than any number, and not comparable with one.
    return max(findings, key=lambda f: np.inf if np.isnan(f.multiple) else f.multiple)


def _group_lines(part: str, findings: Sequence[Finding]) -> list[str]:
    """Return one line per array group of a part, in the order of its files."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.group, []).append(finding)
    lines = []
    for group, members in groups.items():
        worst = _worst(members)
        line = f"  {part}  {group}  {worst.multiple:.3g} of allowed"
        if not all(member.agrees for member in members):
            worst = _worst([member for member in members if not member.agrees])
            note = f": {worst.note}" if worst.note else ""
            line += f"  FAIL  {worst.file} {worst.key}{note}"
        lines.append(line)
    return lines


def _summary(findings: Sequence[Finding]) -> str:
    arrays = {(finding.file, finding.key) for finding in findings}
    files = {finding.file for finding in findings}
    failed = {(f.file, f.key) for f in findings if not f.agrees}
    parts = ", ".join(sorted({_part_name(file) for file in files}))
    counted = f"{len(arrays)} arrays of {len(files)} files ({parts})"
    if failed:
        return f"{counted}: {len(failed)} FAIL"
    worst = _worst(findings)
    return f"{counted}: all agree, the largest error is {worst.multiple:.3g} of allowed"
