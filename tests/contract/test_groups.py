"""What every rule's agents must do as a group of K peers, and as a group of one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
import tiny
from contract.recorded import FILE, agent_of, inputs_of, leaves_of
from contract.rule_cases import RULES

from metarl.agents import group

pytestmark = pytest.mark.usefixtures("x64")

RECORDED = {name.partition("[")[0] for name in np.load(FILE).files}


@functools.cache
def compiled(name: str) -> Callable:
    """Return the update of groups of a rule of `RULES`, compiled once for all tests."""
    agent = agent_of(RULES[name])
    return jax.jit(
        lambda *inputs: group.update(agent, *inputs), compiler_options=tiny.QUICK
    )


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_group_of_one_does_what_a_single_agent_did(name):
    inputs = inputs_of(name, RULES[name])
    found = leaves_of(*compiled(name)(*inputs))
    with np.load(FILE) as file:
        recorded = {
            key.removeprefix(name): file[key]
            for key in file.files
            if key.startswith(f"{name}[")
        }
    assert set(recorded) <= set(found)
    for key, expected in recorded.items():
        np.testing.assert_allclose(
            found[key], expected, rtol=1e-12, atol=1e-12, err_msg=key
        )
