"""Part e: the whole meta-gradient through three inner steps, where y and z matter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from metarl.golden import parity
from metarl.golden.agent_parts import meta_gradient
from metarl.golden.judge import Tolerances
from metarl.golden.parity import check_file
from metarl.golden.subject import Subject
from metarl.meta.estimators import ReverseMode
from metarl.meta.mixed_mode import MixedMode

PARTS = ("e",)


@pytest.mark.parametrize("estimator", [MixedMode, ReverseMode])
def test_every_array_agrees(
    golden_file: Path,
    subject: Subject,
    limits: Tolerances,
    estimator: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(parity.PARTS, "e", partial(meta_gradient, estimator=estimator))
    findings, not_stored = check_file(golden_file, subject, limits)
    assert [finding for finding in findings if not finding.agrees] == []
    assert not_stored == []
