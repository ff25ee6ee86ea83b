"""DiscoRL's action-conditional model: one LSTM step per action under z, q, aux_pi.

Oh et al., Nature 648 (2025), Methods; released code. Built by `networks.py` where a
rule's spec has heads per action.
"""

from __future__ import annotations

from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents.torsos import MLP
from metarl.config import ActionModelConfig
from metarl.numerics import take_action
from metarl.rules.base import Head
from metarl.types import Outputs


class ActionModel(hk.Module):
    """From the torso's features to one row of outputs per action."""

    def __init__(
        self, config: ActionModelConfig, heads: Sequence[Head], num_actions: int
    ) -> None:
        super().__init__(name="action_model")
        self.config = config
        self.heads = tuple(heads)
        self.num_actions = num_actions

    def __call__(
        self, features: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, Outputs]:
        """Return each head's ``[N, A, size]`` of features ``[N, F]``.

        And, by a path of its own from the LSTM on, ``[M, size]`` of the actions
        ``[M]`` taken on the first M observations.
        """
        cell = hk.Linear(self.config.lstm, name="cell")(features)
        hidden = StepPerAction(self.num_actions, name="lstm")(jnp.tanh(cell), cell)
        of_taken = take_action(hidden[: actions.shape[0]], actions)
        heads = {
            head.name: MLP((*self.config.head_hidden, head.size), name=head.name)
            for head in self.heads
        }
        return (
            {name: head(hidden) for name, head in heads.items()},
            {name: head(of_taken) for name, head in heads.items()},
        )


class StepPerAction(hk.Module):
    """The step of an `hk.LSTM` for the one-hot of every action, from one state.

    The state's product with the weights is the same for every action, and a one-hot's
    product is a row of them; so there is one product per observation, not one per
    action. Parameters are those of the LSTM's linear layer: ``w [A + L, 4 L]``, inputs
    first, gates in the order i, g, f, o.
    """

    def __init__(self, num_actions: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.num_actions = num_actions

    def __call__(self, hidden: jax.Array, cell: jax.Array) -> jax.Array:
        """Return the new hidden states ``[N, A, L]`` of the state ``[N, L]`` each."""
        actions, units = self.num_actions, hidden.shape[-1]
        init = hk.initializers.TruncatedNormal(1 / np.sqrt(actions + units))
        shape = (actions + units, 4 * units)
        w = hk.get_parameter("w", shape, hidden.dtype, init=init)
        b = hk.get_parameter("b", shape[1:], hidden.dtype, init=jnp.zeros)
        of_state = hidden @ w[actions:]  # [N, 4L]
        of_action = w[:actions] + b[None]  # [A, 4L]
        gates = of_state[:, None] + of_action[None]  # [N, A, 4L]
        i, g, f, o = jnp.split(gates, 4, axis=-1)
        # The forget gate's bias of 1 is not part of b, as in hk.LSTM.
        new_cell = jax.nn.sigmoid(f + 1) * cell[:, None]
        new_cell = new_cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(new_cell)
