"""What every update rule must do, whatever it learns from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.rule_cases import (
    ALL_RULES,
    OPEN_HEADS,
    RULES,
    forward,
    jitted,
    make_case,
    measure,
)
from pydantic import BaseModel

from metarl.rules.base import UpdateRule

pytestmark = pytest.mark.usefixtures("x64")
each_rule = pytest.mark.parametrize("name", ALL_RULES)
each_single_rule = pytest.mark.parametrize("name", RULES)

OPTIONS: dict[str, dict[str, object]] = {
    "policy_gradient": {"discount": 0.5, "entropy_cost": 0.5, "moments_decay": 0.5},
    "actor_critic": {
        "discount": 0.5,
        "trace_lambda": 0.5,
        "entropy_cost": 0.5,
        "value_cost": 0.1,
        "num_bins": 13,
        "max_abs_value": 6.0,
        "normalize_advantages": False,
        "moments_decay": 0.5,
    },
    "ppo": {
        "discount": 0.5,
        "trace_lambda": 0.5,
        "clip": 0.5,
        "clip_values": False,
        "entropy_cost": 0.5,
        "value_cost": 0.1,
        "normalize_advantages": False,
        "epochs": 2,
        "minibatches": 2,
    },
    "q_learning": {
        "discount": 0.5,
        "values": {"kind": "scalar", "loss": "huber"},
        "double": False,
        "trace_lambda": 0.5,
        "target_every": 7,
        "epsilon_start": 0.5,
        "epsilon_end": 0.1,
        "epsilon_fraction": 0.25,
        "epsilon_env_steps": 4000,
    },
    "disco": {
        "prediction_size": 8,
        "num_bins": 13,
        "max_abs_value": 6.0,
        "trajectory_lstm": 7,
        "lifetime_lstm": 6,
        "embedding_hidden": 5,
        "action_channels": (4, 2),
        "policy_channels": 4,
        "lifetime_input": 5,
        "pi_cost": 0.5,
        "y_cost": 0.5,
        "z_cost": 0.5,
        "aux_policy_cost": 0.5,
        "value_cost": 0.5,
        "discount": 0.5,
        "trace_lambda": 0.5,
        "target_coefficient": 0.5,
        "moments_decay": 0.5,
    },
    "lpg": {
        "prediction_size": 8,
        "lstm": 7,
        "embedding_hidden": 5,
        "y_cost": 0.1,
        "discount": 0.5,
    },
    "lpg_critic": {
        "prediction_size": 8,
        "lstm": 7,
        "embedding_hidden": 5,
        "y_cost": 0.1,
        "discount": 0.5,
        "trace_lambda": 0.5,
        "value_cost": 0.1,
        "num_bins": 13,
        "max_abs_value": 6.0,
        "moments_decay": 0.5,
    },
    "docs_example": {
        "discount": 0.5,
        "trace_lambda": 0.5,
        "temperature": 0.5,
        "max_weight": 1.0,
    },
}
"""Another value of every option of every rule."""


def assert_equal(left: object, right: object, rtol: float = 0.0) -> None:
    """Assert that two trees have the same structure and entries."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=where)


def zero_leaves(tree: object) -> set[str]:
    """Return the paths of the leaves of ``tree`` that are zero everywhere."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) for path, x in leaves if not np.any(x)}


@each_rule
def test_everything_is_finite_and_the_loss_has_a_row_per_transition(name):
    case = make_case(ALL_RULES[name])
    result = jitted(measure, name)(case)
    for path, x in jax.tree_util.tree_leaves_with_path(result):
        assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)
    shape = case.experience.transitions.rewards.shape
    assert result["loss"].shape == shape
    for target in result["targets"].values():
        assert target.shape[:2] == shape
    for metric in result["metrics"].values():
        assert metric.shape == ()


@each_rule
def test_the_loss_trains_every_head(name):
    rule, case = ALL_RULES[name], make_case(ALL_RULES[name])
    gradient = jitted(measure, name)(case)["gradient"]
    assert set(gradient) == {head.name for head in rule.spec(3).heads}
    assert not zero_leaves(gradient)


@each_rule
def test_the_meta_gradient_reaches_every_meta_parameter(name):
    gradient = jitted(measure, name)(make_case(ALL_RULES[name]))["meta_gradient"]
    assert not zero_leaves(gradient)
    assert bool(jax.tree.leaves(gradient)) == (name in ("disco", "lpg", "lpg_critic"))


@each_rule
def test_gradients_through_the_targets_stop_where_stated(name):
    case = make_case(ALL_RULES[name])
    result = jitted(measure, name)(case)
    for gradient in (result["outputs_gradient"], result["target_outputs_gradient"]):
        closed = set(gradient) - OPEN_HEADS[name]
        assert zero_leaves(gradient) == {f"['{head}']" for head in closed}


@each_rule
def test_actions_not_taken_are_not_trained(name):
    rule, case = ALL_RULES[name], make_case(ALL_RULES[name])
    gradient = jitted(measure, name)(case)["gradient"]
    taken = jax.nn.one_hot(case.experience.transitions.actions, 3, dtype=bool)
    for head in rule.spec(3).heads:
        if head.per_action:
            assert not np.any(gradient[head.name][~taken])


@each_rule
def test_jitted_equals_eager_and_inputs_stay_as_they_were(name):
    case = make_case(ALL_RULES[name])
    leaves, structure = jax.tree.flatten(case)
    copies = [np.array(x) for x in leaves]
    eager = forward(ALL_RULES[name], case)
    assert jax.tree.structure(case) == structure
    for before, copy, after in zip(leaves, copies, jax.tree.leaves(case), strict=True):
        assert after is before
        np.testing.assert_array_equal(after, copy)
    assert_equal(eager, jitted(forward, name)(case), rtol=1e-12)


@each_rule
def test_vmapped_equals_looped(name):
    rule, run = ALL_RULES[name], jitted(forward, name)
    cases = [make_case(rule, seed) for seed in range(2)]
    looped = jax.tree.map(lambda *x: jnp.stack(x), *map(run, cases))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    assert_equal(jax.jit(jax.vmap(run))(stacked), looped, rtol=1e-12)


@each_single_rule
def test_peers_do_not_matter_to_a_single_agent_rule(name):
    case = make_case(RULES[name])
    peers = make_case(RULES[name], seed=1, P=2).experience.peers
    with_peers = dataclasses.replace(
        case, experience=dataclasses.replace(case.experience, peers=peers)
    )
    assert_equal(jitted(forward, name)(with_peers), jitted(forward, name)(case))


def _options(rule: UpdateRule) -> set[str]:
    if hasattr(rule, "config"):
        return set(type(rule.config).model_fields) - {"kind"}
    return {field.name for field in dataclasses.fields(rule)}


def _with_option(rule: UpdateRule, option: str, value: object) -> UpdateRule:
    config = getattr(rule, "config", None)
    if not isinstance(config, BaseModel):
        return dataclasses.replace(rule, **{option: value})
    values = {**config.model_dump(), option: value}
    return dataclasses.replace(rule, config=type(config)(**values))


@each_single_rule
def test_every_option_changes_something(name):
    base = RULES[name]
    case = make_case(base)
    shapes = jax.eval_shape(base.init_params, jax.random.key(0))
    result = jax.tree.leaves(forward(base, case))
    assert set(OPTIONS[name]) == _options(base)
    for option, value in OPTIONS[name].items():
        changed = _with_option(base, option, value)
        new_shapes = jax.eval_shape(changed.init_params, jax.random.key(0))
        if changed.spec(3) != base.spec(3) or new_shapes != shapes:
            continue
        others = jax.tree.leaves(forward(changed, case))
        same = [np.array_equal(a, b) for a, b in zip(result, others, strict=True)]
        assert not all(same), option


@each_rule
def test_rules_are_static_arguments(name):
    rule = ALL_RULES[name]
    same = dataclasses.replace(rule)
    assert same is not rule
    assert hash(same) == hash(rule)
    assert same == rule


@each_rule
def test_actions_are_drawn_from_the_policy(name):
    rule, case = ALL_RULES[name], make_case(ALL_RULES[name])
    draws = 4000
    row = {k: x[0, :1] for k, x in case.experience.outputs.items()}
    row |= {"logits": jnp.log(jnp.array([[0.7, 0.2, 0.1]]))} if "logits" in row else {}
    outputs = {k: jnp.broadcast_to(x, (draws, *x.shape[1:])) for k, x in row.items()}
    clock = case.experience.clock
    actions, behaviour = rule.act(outputs, clock, jax.random.key(0))
    if "logits" in outputs:
        np.testing.assert_array_equal(behaviour, outputs["logits"])
    frequencies = np.bincount(actions, minlength=3) / draws
    np.testing.assert_allclose(frequencies, jax.nn.softmax(behaviour[0]), atol=0.03)
