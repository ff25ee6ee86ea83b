"""Part d: the whole meta-gradient through two inner steps."""

from __future__ import annotations

from pathlib import Path

from metarl.golden.judge import Tolerances
from metarl.golden.parity import check_file
from metarl.golden.subject import Subject

PARTS = ("d",)


def test_every_array_agrees(
    golden_file: Path, subject: Subject, limits: Tolerances
) -> None:
    findings, not_stored = check_file(golden_file, subject, limits)
    assert [finding for finding in findings if not finding.agrees] == []
    assert not_stored == []
