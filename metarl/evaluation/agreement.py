"""How far the peers of each cell agree after an update, for rows of its curve.

Host code between `runner.py`, which knows when a row is due, and `agents/agreement.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax

from metarl.agents import population
from metarl.agents.agent import Agent, AgentState
from metarl.agents.agreement import Agreement, agreement_of
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_records import (
    finite,
)
from metarl.types import Rollout


@partial(jax.jit, static_argnums=0, static_argnames="chunk")
def _agreement(
    agent: Agent, states: AgentState, rollouts: Rollout, *, chunk: int
) -> Agreement:
    """Return how far the peers of each cell agree, ``[c]``.

    A program of its own: that of the update is the same with and without it.
    """
    return population.map_groups(
        lambda inputs: agreement_of(agent, *inputs), (states, rollouts), chunk=chunk
    )


class UpdatedPeers:
    """The peers of all cells as one update has left them, and what it learned from."""

    def __init__(
        self,
        agent: Agent,
        states: Sequence[AgentState],
        rollouts: Sequence[Rollout],
        *,
        chunk: int,
    ) -> None:
        """Keep what is compared once a row is due.

        Args:
          agent: what all agents have in common.
          states: of each chunk of cells, ``[c, K]``.
          rollouts: of each chunk, ``[c, K, T, B]``.
          chunk: cells that a chunk has, c.
        """
        self._agent, self._chunk = agent, chunk
        self._states, self._rollouts = states, rollouts
        self._found: dict[int, Agreement] = {}

    def row(self, index: int, *, env_steps: int) -> AgreementRow:
        """Return how far the peers of a cell agree.

        Args:
          index: of the cell.
          env_steps: that it has taken.
        """
        chunk, position = divmod(index, self._chunk)
        if chunk not in self._found:
            self._found[chunk] = jax.device_get(
                _agreement(
                    self._agent,
                    self._states[chunk],
                    self._rollouts[chunk],
                    chunk=self._chunk,
                )
            )
        found = self._found[chunk]
        return AgreementRow(
            env_steps,
            int(found.present[position]),
            finite(float(found.greedy[position])),
            finite(float(found.divergence[position])),
        )
