"""What a transition that is invalid, past an end, or another agent's may change.

To the bit: the same compiled function runs on both batches.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.rule_cases import (
    ALL_RULES,
    Case,
    fill_moments,
    hold_moments,
    jitted,
    make_case,
    measure,
)

from metarl.rules import metanet
from metarl.rules.base import UpdateRule
from metarl.types import Outputs, Transitions, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")
each_rule = pytest.mark.parametrize("name", ALL_RULES)


def _bits_equal(left: object, right: object) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def _with_transitions(case: Case, **changes: jax.Array) -> Case:
    transitions = dataclasses.replace(case.experience.transitions, **changes)
    experience = dataclasses.replace(case.experience, transitions=transitions)
    return dataclasses.replace(case, experience=experience)


def _overwrite(case: Case, other: Case, steps: jax.Array, rows: jax.Array) -> Case:
    """Return ``case`` with what ``other`` has in some transitions and observations.

    Args:
      case: the batch to change.
      other: where the new values come from.
      steps: ``bool[T, B]``, transitions of which everything changes.
      rows: ``bool[T+1, B]``, observations of which all outputs change.
    """

    def choose(where: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
        where = where.reshape(where.shape + (1,) * (old.ndim - where.ndim))
        return jnp.where(where, new, old)

    def heads(old: Outputs, new: Outputs) -> Outputs:
        return {k: choose(rows, new[k], x) for k, x in old.items()}

    old, new = case.experience, other.experience
    experience = dataclasses.replace(
        old,
        transitions=jax.tree.map(
            lambda a, b: choose(steps, a, b), new.transitions, old.transitions
        ),
        outputs=heads(old.outputs, new.outputs),
        target_outputs=heads(old.target_outputs, new.target_outputs),
    )
    return dataclasses.replace(case, experience=experience)


def _where_masked(result: dict[str, object], mask: jax.Array) -> dict[str, object]:
    """Return the result with per-transition arrays reduced to where ``mask`` is."""
    return {
        **result,
        "targets": {k: x[mask] for k, x in result["targets"].items()},
        "loss": result["loss"][mask],
    }


@each_rule
def test_invalid_transitions_change_nothing(name):
    case = make_case(ALL_RULES[name])
    t = case.experience.transitions
    assert jnp.sum(~t.valid) >= 2
    assert jnp.any(~t.valid[:-1] & t.valid[1:])  # followed by existing ones
    garbage = make_case(ALL_RULES[name], seed=1).experience.transitions
    changed = _with_transitions(
        case,
        actions=jnp.where(t.valid, t.actions, (t.actions + 1) % 3),
        behaviour_logits=jnp.where(t.valid[..., None], t.behaviour_logits, jnp.nan),
        rewards=jnp.where(t.valid, t.rewards, jnp.nan),
        is_terminal=jnp.where(t.valid, t.is_terminal, ~t.is_terminal),
        cut=jnp.where(t.valid, t.cut, ~t.cut),
        learn=jnp.where(t.valid, t.learn, garbage.learn + 1),
        own=t.valid,
    )
    before, after = (jitted(measure, name)(x) for x in (case, changed))
    _bits_equal(_where_masked(before, t.valid), _where_masked(after, t.valid))


@each_rule
def test_outputs_of_invalid_transitions_change_nothing(name):
    case = make_case(ALL_RULES[name])
    valid = np.array(case.experience.transitions.valid)
    # Three observations that are neither the first nor the final frame of a
    # transition that exists: at the start, between two invalid ones, at the end.
    valid[0, 1], valid[2:4, 2], valid[-1, 0] = False, False, False
    case = _with_transitions(case, valid=jnp.asarray(valid))
    rows = np.zeros((valid.shape[0] + 1, valid.shape[1]), bool)
    rows[0, 1], rows[3, 2], rows[-1, 0] = True, True, True
    nothing = jnp.zeros(valid.shape, bool)
    other = make_case(ALL_RULES[name], seed=1)
    changed = _overwrite(case, other, nothing, jnp.asarray(rows))
    before, after = (jitted(measure, name)(x) for x in (case, changed))
    _bits_equal(_where_masked(before, valid), _where_masked(after, valid))


@each_rule
def test_trajectories_of_other_agents_change_nothing(name):
    case, other = make_case(ALL_RULES[name]), make_case(ALL_RULES[name], seed=1)
    foreign = jnp.zeros_like(case.experience.transitions.own).at[:, 1].set(True)
    case, other = (
        _with_transitions(x, own=~foreign, valid=x.experience.transitions.valid)
        for x in (case, other)
    )
    rows = jnp.concatenate([foreign, foreign[:1]])
    changed = _overwrite(case, other, foreign, rows)
    before, after = (jitted(measure, name)(x) for x in (case, changed))
    _bits_equal(_where_masked(before, ~foreign), _where_masked(after, ~foreign))
    assert not np.any(before["loss"][foreign])
    for gradient in before["gradient"].values():
        assert not np.any(gradient[foreign])


@each_rule
def test_a_batch_without_a_valid_transition_changes_nothing(name):
    case = make_case(ALL_RULES[name])
    case = dataclasses.replace(case, rule_state=fill_moments(case.rule_state))
    valid = jnp.zeros_like(case.experience.transitions.valid)
    result = jitted(measure, name)(_with_transitions(case, valid=valid))
    assert result["scalar_loss"] == 0
    assert result["objective"] == 0
    _bits_equal(result["state"], case.rule_state)
    gradients = [result["gradient"], result["meta_gradient"]]
    for gradient in jax.tree.leaves(gradients):
        assert not np.any(gradient)  # nan counts as any


@each_rule
def test_learn_weighs_the_loss_alone(name):
    case = make_case(ALL_RULES[name])
    learn = jnp.roll(case.experience.transitions.learn, 1, axis=0)
    assert np.any(learn != case.experience.transitions.learn)
    changed = _with_transitions(case, learn=learn)
    before, after = (jitted(measure, name)(x) for x in (case, changed))
    for key in ("targets", "state", "metrics", "loss"):
        _bits_equal(before[key], after[key])
    assert before["scalar_loss"] != after["scalar_loss"]


def _observe(rule: UpdateRule, case: Case) -> dict[str, object]:
    """Return all that runs along time: targets, and Disco's values and features."""
    targets, _, _ = rule.targets(
        case.meta_params, case.rule_state, case.experience, jax.random.key(1)
    )
    if not hasattr(rule, "value_estimates"):
        return {"targets": targets}
    transitions = drop_invalid(case.experience.transitions)
    experience = dataclasses.replace(case.experience, transitions=transitions)
    values, _ = rule.value_estimates(case.rule_state, experience)
    features, _ = metanet.apply(
        case.meta_params, case.rule_state.lifetime, experience, values
    )
    return {"targets": targets, "values": values, "features": features}


@each_rule
@pytest.mark.parametrize("flag", ["is_terminal", "cut"])
def test_nothing_reaches_back_over_an_end(name, flag):
    rule, steps, batch = hold_moments(ALL_RULES[name]), 6, 4
    ends = np.array([0, 2, 3, 4])  # the transition that ends each trajectory
    case, other = make_case(rule), make_case(rule, seed=1)
    case = dataclasses.replace(case, rule_state=fill_moments(case.rule_state))
    never = jnp.zeros((steps, batch), bool)
    flags = {"is_terminal": never, "cut": never, "valid": ~never}
    flags[flag] = never.at[ends, np.arange(batch)].set(True)
    case = _with_transitions(case, **flags)
    after = jnp.arange(steps)[:, None] > jnp.asarray(ends)[None]
    # Observation t + 1 is the final frame; those from t + 2 on may differ.
    rows = jnp.concatenate([jnp.zeros((1, batch), bool), after])
    changed = _overwrite(case, other, after, rows)
    run = jax.jit(functools.partial(_observe, rule))
    results = [run(x) for x in (case, changed)]
    for b, end in enumerate(ends):
        upto, behind = (
            [jax.tree.map(lambda x, b=b, s=s: x[s, b], r) for r in results]
            for s in (slice(0, end + 1), slice(end + 1, None))
        )
        _bits_equal(*upto)
        pairs = zip(*map(jax.tree.leaves, behind), strict=True)
        assert any(np.any(x != y) for x, y in pairs)  # the change did something


def test_drop_invalid_empties_what_does_not_exist_and_cuts_before_it():
    def column(*x: float) -> jax.Array:
        return jnp.array(x)[:, None]

    transitions = Transitions(
        actions=column(2, 1, 2, 1),
        behaviour_logits=jnp.ones((4, 1, 3)),
        rewards=column(1.0, np.nan, 3.0, 4.0),
        is_terminal=column(False, True, True, False),
        cut=column(False, True, False, False),
        valid=column(True, False, True, True),
        learn=column(0.5, np.nan, 1.0, 1.0),
        own=column(True, True, False, True),
    )
    kept = drop_invalid(transitions)
    expected = {
        "actions": [2, 0, 2, 1],
        "rewards": [1, 0, 3, 4],
        "is_terminal": [False, False, True, False],
        "cut": [True, False, False, False],
        "valid": [True, False, True, True],
        "learn": [0.5, 0, 1, 1],
        "own": [True, False, False, True],
    }
    for field, values in expected.items():
        np.testing.assert_array_equal(getattr(kept, field)[:, 0], values, field)
    np.testing.assert_array_equal(
        kept.behaviour_logits[:, 0], [[1] * 3, [0] * 3, [1] * 3, [1] * 3]
    )
    _bits_equal(drop_invalid(kept), kept)
