"""What is stored of agents that were tested among distractors, and its table.

No files and no arrays here; `robustness.py` plays, `results.py` stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What one agent did once it had learned, among distractors and without.

    Attributes:
      episodes: that each of the returns is the mean of.
      clean_return: raw return on clean frames.
      train_return: with the distractors that agents learn among.
      unseen_return: with distractors that are in no training set.
      train_kl: mean KL(policy on the clean frame || policy on the same frame with a
        distractor of the training set) in nats, over the states of the play on clean
        frames. None where it is not finite, as numbers of the others.
      unseen_kl: the same with unseen distractors.
    """

    episodes: int
    clean_return: float | None
    train_return: float | None
    unseen_return: float | None
    train_kl: float | None
    unseen_kl: float | None


COLUMNS = tuple(field.name for field in dataclasses.fields(Robustness))
MEASURES = COLUMNS[1:]


def of_tree(tree: Sequence[Mapping[str, Any]]) -> tuple[Robustness, ...]:
    """Return what a cell's file says of its agents, of none where it was not tested."""
    return tuple(Robustness(**agent) for agent in tree)


def mean_over(agents: Sequence[Robustness]) -> Robustness | None:
    """Return the mean over the peers of a group; None of nobody.

    A number that one of them lacks the group lacks too; episodes are those of all.
    """
    if not agents:
        return None
    means = {}
    for name in MEASURES:
        values = [getattr(agent, name) for agent in agents]
        is_known = all(value is not None for value in values)
        means[name] = sum(values) / len(values) if is_known else None
    return Robustness(sum(agent.episodes for agent in agents), **means)
