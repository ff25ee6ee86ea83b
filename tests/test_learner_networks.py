"""`metarl.Learner`: rule, network, settings and observations must fit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_learners import (
    ACTIONS,
    DISCO,
    FIRST,
    Linear,
    Pair,
    make_learner,
    network_of,
    random_disco,
    random_rollout,
)

from metarl.config import OptimizerConfig
from metarl.errors import UserError
from metarl.learner import Learner
from metarl.rule_files import load_rule
from metarl.rules import make_rule
from metarl.types import Outputs, Params


def broken(*, scale: jax.Array | None = None, **outputs: jax.Array | None) -> Pair:
    """A network that fits but for the outputs given (None: left out)."""

    def init(key: jax.Array, observations: jax.Array) -> Params:
        return {"scale": jnp.ones(()) if scale is None else scale}

    def apply(params: Params, observations: jax.Array) -> Outputs:
        right = {"logits": params["scale"] * jnp.zeros((len(observations), 2))}
        right["v"] = jnp.zeros((len(observations), 101))
        return {k: v for k, v in {**right, **outputs}.items() if v is not None}

    return init, apply


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            broken(logits=jnp.zeros((4, 3))),
            r"head 'logits' has shape \[4, 3\], the rule needs \[4, 2\]",
        ),
        (
            broken(v=None, vv=jnp.zeros((4, 101))),
            r"'v' \[4, 101\] is missing.*logits, vv; did you mean 'vv'\?",
        ),
        (broken(v=jnp.zeros((4, 101), int)), "head 'v' is int32"),
        ((broken()[0], lambda *both: both), "apply returned a tuple"),
        (broken(scale=jnp.ones((), int)), r"parameter \['scale'\] is int32"),
        (broken()[0], r"a pair of functions \(init, apply\)"),
    ],
    ids=["shape", "missing", "dtype", "tuple", "parameter", "pair"],
)
def test_a_network_that_does_not_fit_is_one_line(network: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Learner(load_rule("actor_critic"), network, FIRST, num_actions=2)
    assert "\n" not in str(error.value)


def test_a_head_per_action_needs_its_rows() -> None:
    heads = tuple(
        dataclasses.replace(head, per_action=False, taken=False)
        for head in make_rule(DISCO).spec(ACTIONS).heads
    )
    with pytest.raises(
        UserError, match=r"'z' has shape \[4, 4\], the rule needs \[4, 2, 4\]"
    ):
        Learner(random_disco(), Linear(heads).pair, FIRST, num_actions=ACTIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        (
            {"optimizer": OptimizerConfig(schedule="linear")},
            "lifetime_env_steps: needed by the schedule 'linear'",
        ),
    ],
)
def test_settings_that_are_not_allowed(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_learner(random_disco(), **settings)
    assert "\n" not in str(error.value)


def test_a_rule_with_meta_parameters_comes_with_them() -> None:
    rule = make_rule(DISCO)
    with pytest.raises(UserError, match="Disco has meta-parameters"):
        Learner(rule, network_of(rule), FIRST, num_actions=ACTIONS)


def test_observations_of_another_kind_are_refused() -> None:
    learner = make_learner(random_disco())
    state, key = learner.init(jax.random.key(0)), jax.random.key(1)
    with pytest.raises(UserError, match=r"\[4, 9\], the learner was made for \[B, 3\]"):
        learner.act(state, np.zeros((4, 9)), key)
    rollout = random_rollout(0)
    flat = dataclasses.replace(rollout, observations=rollout.observations[..., :2])
    with pytest.raises(UserError, match=r"the learner was made for \[T, B, 3\]"):
        learner.update(state, flat, key)
    with pytest.raises(UserError, match="complex64, the learner was made for float32"):
        learner.act(state, FIRST.astype(np.complex64), key)
