"""A network of the user's own fits the rule's heads, or one line says where not."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents.agent import Agent
from metarl.agents.checked_network import check_network
from metarl.config import OptimizerConfig
from metarl.errors import UserError
from metarl.numerics import take_action
from metarl.rules.disco import Disco
from metarl.types import Network, Outputs, Params

RULE = Disco(tiny.DISCO)
HEADS = RULE.spec(tiny.NUM_ACTIONS).heads
PAIR = tiny.network_for(RULE)
SEEN = jnp.ones((4, tiny.OBSERVATION))

Rows = Callable[[Outputs, jax.Array], object]


def with_rows(rows: Rows) -> Network:
    """Return the network with a third function, whose rows are made by ``rows``."""

    def apply_taken(
        params: Params, observations: jax.Array, actions: jax.Array
    ) -> tuple[Outputs, object]:
        outputs = PAIR.apply(params, observations)
        return outputs, rows(outputs, actions)

    return PAIR._replace(apply_taken=apply_taken)


def taken(outputs: Outputs, actions: jax.Array) -> Outputs:
    per_action = {name: outputs[name] for name in ("z", "q", "aux_pi")}
    return {k: take_action(x[: len(actions)], actions) for k, x in per_action.items()}


def check(network: Network) -> Network:
    return check_network(network, HEADS, tiny.NUM_ACTIONS, SEEN)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            lambda outputs, _: outputs,
            r"row of the action: head 'z' has shape \[5, 3, 5\], the rule needs "
            r"\[4, 5\] \(4 actions\)",
        ),
        (
            # Of every observation: an update has more of them than of actions.
            lambda outputs, _: {k: outputs[k][:, 0] for k in ("z", "q", "aux_pi")},
            r"'z' has shape \[5, 5\], the rule needs \[4, 5\]",
        ),
        (
            lambda *both: {"zz": taken(*both)["z"]},
            r"'z' \[4, 5\] is missing; the network returns zz; did you mean 'zz'\?",
        ),
        (
            lambda *both: {k: x > 0 for k, x in taken(*both).items()},
            "row of the action: head 'z' is bool",
        ),
        (lambda *_: None, "row of the action returned a NoneType, a dict of the heads"),
    ],
    ids=["all actions", "all observations", "missing", "dtype", "no dict"],
)
def test_rows_that_do_not_fit_are_one_line(rows: Rows, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check(with_rows(rows))
    assert "\n" not in str(error.value)


def test_the_third_function_returns_a_pair_with_all_heads() -> None:
    network = PAIR._replace(
        apply_taken=lambda params, seen, _: PAIR.apply(params, seen)
    )
    with pytest.raises(UserError, match=r"apply_taken returned a dict, a pair \(out"):
        check(network)

    def without_y(params: Params, seen: jax.Array, actions: jax.Array) -> tuple:
        outputs = PAIR.apply(params, seen)
        return {k: x for k, x in outputs.items() if k != "y"}, taken(outputs, actions)

    with pytest.raises(UserError, match=r"apply_taken: head 'y' \[5, 5\] is missing"):
        check(PAIR._replace(apply_taken=without_y))


def test_rows_that_fit_are_what_the_loss_reads() -> None:
    # Twice what they should be, so that it shows which ones were taken.
    network = check(with_rows(lambda *b: {k: 2 * x for k, x in taken(*b).items()}))
    agent = Agent(RULE, network, tiny.NUM_ACTIONS, OptimizerConfig(), 1000)
    params = network.init(jax.random.key(0), SEEN)
    actions = jnp.array([2, 0, 1])
    outputs, read = agent.evaluate(params, SEEN, actions)
    np.testing.assert_array_equal(read["y"], outputs["y"][:3])
    for name in ("z", "q", "aux_pi"):
        rows = np.asarray(outputs[name])[np.arange(3), actions]
        np.testing.assert_allclose(read[name], 2 * rows, rtol=1e-6)
