"""What is stored of how far the peers of a group agreed while they learned.

No files and no arrays here; `runner.py` compares the peers, `results.py` stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class AgreementRow:
    """How much alike the policies of a group were at a row of its curve.

    Means over all pairs of peers that are present, and over states that the group had
    just learned from; None where no two are.

    Attributes:
      env_steps: so far, of the group.
      peers_present: whose parameters, outputs and observations are finite.
      greedy_agreement: in how many of the states two peers prefer the same action.
      js_divergence: Jensen-Shannon divergence of two policies in nats, from 0 to log 2.
    """

    env_steps: int
    peers_present: int
    greedy_agreement: float | None
    js_divergence: float | None


MEASURES = ("greedy_agreement", "js_divergence")
"""Columns of `curves.csv`."""


def of_tree(tree: Sequence[Mapping[str, Any]]) -> tuple[AgreementRow, ...]:
    """Return what a cell's file says of its group; nothing of a single agent."""
    return tuple(AgreementRow(**row) for row in tree)
