"""Q-learning against hand-computed numbers, and its place in an agent's life."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from contract.experience import make_experience

from metarl.agents import group
from metarl.config import (
    CategoricalValuesConfig,
    QLearningConfig,
    ScalarValuesConfig,
)
from metarl.rule_files import load_rule
from metarl.rules import make_rule
from metarl.rules.base import Head, Metrics, RuleSpec, TargetNetwork
from metarl.rules.q_learning import QLearning
from metarl.types import Clock, Experience, Outputs, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

PLAIN = QLearning(QLearningConfig(discount=0.9))
CATEGORICAL = CategoricalValuesConfig(num_bins=11, max_abs_value=5.0)


def rule_with(**options: object) -> QLearning:
    return QLearning(PLAIN.config.model_copy(update=options))


def clock(env_steps: float, lifetime_fraction: float = 0.0) -> Clock:
    return Clock(
        env_steps=jnp.asarray(env_steps, float),
        agent_updates=jnp.zeros((), jnp.int32),
        lifetime_fraction=jnp.asarray(lifetime_fraction, float),
    )


def column(values: list) -> jax.Array:
    return jnp.array(values)[:, None]


def one_trajectory(
    online: list[list[float]], target: list[list[float]], **fields: list
) -> Experience:
    """Return ``[T, 1]`` transitions with action values ``[T+1][A]``."""
    steps, actions = len(target) - 1, len(target[0])
    experience = make_experience(jax.random.key(0), PLAIN, T=steps, B=1, A=actions)
    never, always = [False] * steps, [True] * steps
    given = {"is_terminal": never, "cut": never, "valid": always, **fields}
    transitions = dataclasses.replace(
        experience.transitions, **{k: column(x) for k, x in given.items()}
    )
    return dataclasses.replace(
        experience,
        transitions=transitions,
        outputs={"q": jnp.array(online)[:, None, :, None]},
        target_outputs={"q": jnp.array(target)[:, None, :, None]},
    )


def targets_of(rule: QLearning, experience: Experience) -> tuple[np.ndarray, Metrics]:
    """Return the targets ``[T]`` of one trajectory, and the metrics."""
    targets, state, metrics = rule.targets({}, {}, experience, jax.random.key(0))
    assert state == {}
    return np.asarray(targets["q"])[:, 0, 0], metrics


def test_the_name_and_the_configuration_make_the_rule():
    assert load_rule("q_learning").rule == QLearning(QLearningConfig())
    assert make_rule(QLearningConfig(target_every=7)).spec(5) == RuleSpec(
        heads=(Head("q", 1, per_action=True, on_torso=True),),
        target_network=TargetNetwork("copy", every=7),
    )
    (head,) = rule_with(values=CATEGORICAL).spec(5).heads
    assert head.size == 11


def ends() -> Experience:
    """Return five transitions: on, terminal, the reset after it, a time limit, on."""
    return one_trajectory(
        online=[[9.0, 0], [0, 9.0], [9.0, 0], [9.0, 0], [0, 9.0], [9.0, 0]],
        target=[[1.0, 2], [3, 5], [7, 11], [13, 17], [19, 23], [29, 31]],
        actions=[0, 1, 1, 0, 1],
        rewards=[1.0, 2.0, 1e6, 3.0, 4.0],
        is_terminal=[False, True, False, False, False],
        cut=[False, False, False, True, False],
        valid=[True, True, False, True, True],
    )


def test_targets_of_one_step_are_the_hand_computed_ones():
    found, metrics = targets_of(PLAIN, ends())
    # The largest value of the target network at t + 1; none after the terminal step.
    expected = [1 + 0.9 * 5, 2.0, 0, 3 + 0.9 * 23, 4 + 0.9 * 31]
    existing = [0, 1, 3, 4]
    np.testing.assert_allclose(found[existing], np.array(expected)[existing])
    assert metrics["q_target"] == pytest.approx(np.array(expected)[existing].mean())
    assert metrics["q"] == pytest.approx((9 + 9 + 9 + 9) / 4)
    assert metrics["td"] == pytest.approx(metrics["q_target"] - metrics["q"])


def test_double_q_learning_values_the_online_networks_choice():
    found, _ = targets_of(rule_with(double=True), ends())
    # At observations 1, 4 and 5 the online network prefers actions 1, 1 and 0.
    expected = [1 + 0.9 * 5, 2.0, 3 + 0.9 * 23, 4 + 0.9 * 29]
    np.testing.assert_allclose(found[[0, 1, 3, 4]], expected)


def test_traces_pass_greedy_actions_and_end_at_others_at_cuts_and_at_terminals():
    """Watkins's Q(lambda): the taken actions are greedy at all steps but step 2."""
    values = [[2.0, 1], [1, 4], [3, 6], [8, 5], [2, 7], [9, 1], [3, 2]]
    experience = one_trajectory(
        online=[[0.0, 0]] * 7,
        target=values,
        actions=[0, 1, 0, 0, 1, 0],
        rewards=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        cut=[False, False, False, True, False, False],
        is_terminal=[False, False, False, False, False, True],
    )
    found, _ = targets_of(rule_with(trace_lambda=0.5), experience)
    g5 = 6.0
    g4 = 5 + 0.9 * (9 + 0.5 * (g5 - 9))
    g3 = 4 + 0.9 * 7  # cut: bootstrapped, and nothing passes
    g2 = 3 + 0.9 * (8 + 0.5 * (g3 - 8))
    g1 = 2 + 0.9 * 6  # the next action is not greedy
    g0 = 1 + 0.9 * (4 + 0.5 * (g1 - 4))
    np.testing.assert_allclose(found, [g0, g1, g2, g3, g4, g5])
    # With lambda 1 and greedy actions throughout: rewards up to the end, discounted.
    greedy = dataclasses.replace(
        experience,
        transitions=dataclasses.replace(
            experience.transitions,
            actions=column([0, 1, 1, 0, 1, 0]),
            cut=column([False] * 6),
        ),
    )
    found, _ = targets_of(rule_with(trace_lambda=1.0), greedy)
    powers = 0.9 ** np.arange(6)
    np.testing.assert_allclose(found[0], np.arange(1, 7) @ powers)


def test_categorical_targets_are_the_two_hot_ones_of_the_same_values():
    experience = ends()
    bins = rule_with(values=CATEGORICAL).bins
    assert bins is not None
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 1, 2, 11)))
    scalars = bins.to_scalar(logits)
    experience = dataclasses.replace(
        experience,
        outputs={"q": scalars[..., None]},
        target_outputs={"q": scalars[..., None]},
    )
    plain, _ = targets_of(PLAIN, experience)
    experience = dataclasses.replace(
        experience, outputs={"q": logits}, target_outputs={"q": logits}
    )
    targets, _, _ = rule_with(values=CATEGORICAL).targets(
        {}, {}, experience, jax.random.key(0)
    )
    np.testing.assert_allclose(targets["q"][:, 0], bins.to_probs(jnp.asarray(plain)))


def test_epsilon_moves_from_start_to_end_and_stays():
    rule = rule_with(epsilon_start=0.8, epsilon_end=0.2, epsilon_fraction=0.5)
    for fraction, epsilon in [(0, 0.8), (0.25, 0.5), (0.5, 0.2), (1, 0.2)]:
        assert float(rule.epsilon(clock(0, fraction))) == pytest.approx(epsilon)
    by_steps = rule_with(epsilon_start=1.0, epsilon_end=0.01, epsilon_env_steps=5000)
    for steps, epsilon in [(0, 1), (2500, 0.505), (5000, 0.01), (9000, 0.01)]:
        assert float(by_steps.epsilon(clock(steps, 1))) == pytest.approx(epsilon)


def test_actions_are_epsilon_greedy_and_the_logits_say_so_exactly():
    rule = rule_with(epsilon_start=0.3, epsilon_end=0.3)
    values = jnp.array([[1.0, 5, 2, 0], [4, 4, 1, 0]])  # of a tie, the first
    outputs = {"q": jnp.repeat(values, 20_000, axis=0)[..., None]}
    actions, logits = rule.act(outputs, clock(0), jax.random.key(0))
    expected = np.full((2, 4), 0.3 / 4) + 0.7 * np.eye(4)[[1, 0]]
    np.testing.assert_allclose(jnp.exp(logits[::20_000]), expected, rtol=1e-12)
    for i, probs in enumerate(expected):
        drawn = np.bincount(actions[i * 20_000 : (i + 1) * 20_000], minlength=4)
        np.testing.assert_allclose(drawn / 20_000, probs, atol=0.01)


def test_without_epsilon_all_actions_are_greedy_and_logits_finite():
    rule = rule_with(epsilon_start=0.0, epsilon_end=0.0)
    values = np.random.default_rng(0).normal(size=(1000, 3))
    outputs = {"q": jnp.asarray(values, jnp.float32)[..., None]}
    actions, logits = rule.act(outputs, clock(0), jax.random.key(0))
    np.testing.assert_array_equal(actions, values.argmax(axis=1))
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(jax.nn.softmax(logits).max(axis=1), 1)


def test_losses_are_the_hand_computed_ones():
    errors = jnp.array([0.5, -0.5, 3.0, -3.0])[:, None]
    target = jnp.zeros((4, 1, 1))
    squared = PLAIN.distance(errors[..., None], target)[:, 0]
    np.testing.assert_allclose(squared, [0.125, 0.125, 4.5, 4.5])
    huber = rule_with(values=ScalarValuesConfig(loss="huber"))
    bounded = huber.distance(errors[..., None], target)[:, 0]
    np.testing.assert_allclose(bounded, [0.125, 0.125, 2.5, 2.5])
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    p = jnp.array([0.0, 0.4, 0.6])
    crossed = rule_with(values=CATEGORICAL).distance(logits, p)
    assert float(crossed) == pytest.approx(-0.4 * np.log(0.3) - 0.6 * np.log(0.5))


@pytest.mark.parametrize(
    "values",
    [ScalarValuesConfig(), ScalarValuesConfig(loss="huber"), CATEGORICAL],
    ids=lambda v: getattr(v, "loss", v.kind),
)
def test_the_gradient_equals_finite_differences(values):
    rule = rule_with(values=values, trace_lambda=0.7)
    experience = make_experience(jax.random.key(3), rule, T=4, B=3, A=2)
    transitions = drop_invalid(experience.transitions)
    targets, _, _ = rule.targets({}, {}, experience, jax.random.key(0))
    outputs = {"q": 2 * experience.outputs["q"][:-1]}

    @jax.jit
    def loss(outputs: Outputs) -> jax.Array:
        loss, _ = rule.loss(outputs, {}, targets, transitions)
        return jnp.sum(loss * transitions.valid * transitions.learn)

    gradient = jax.grad(loss)(outputs)["q"]
    q = outputs["q"]
    for index in np.ndindex(*q.shape):
        plus, minus = (loss({"q": q.at[index].add(e)}) for e in (1e-6, -1e-6))
        difference = float(plus - minus) / 2e-6
        assert float(gradient[index]) == pytest.approx(difference, abs=1e-7)
    taken = np.asarray(jax.nn.one_hot(transitions.actions, 2, dtype=bool))
    assert not np.any(gradient[~taken])


def test_the_target_network_is_copied_after_every_nth_update():
    agent = tiny.agent_for(rule_with(target_every=2), learning_rate=0.1)
    state = agent.init(jax.random.key(0), jnp.zeros((1, tiny.OBSERVATION)))
    states = jax.tree.map(lambda x: x[None], state)
    rollouts = tiny.rollouts(0, 1)
    run = jax.jit(lambda s, r: group.update(agent, {}, s, r, jax.random.key(1)))
    born = states.params
    for update in range(1, 5):
        before = states
        states, record = run(states, rollouts)
        if update % 2 == 0:
            tiny.assert_same_bits(states.target_params, states.params)
        else:
            tiny.assert_same_bits(states.target_params, before.target_params)
    assert np.any(states.params["q"]["w"] != born["q"]["w"])
    for name in ("q", "q_target", "td", "epsilon", "q_loss", "loss"):
        assert np.isfinite(record.metrics[name]).all(), name
    assert not {"entropy", "approx_kl"} & set(record.metrics)  # of policy heads
    poisoned, _ = run(before, tiny.poison(rollouts, 1))
    tiny.assert_same_bits(poisoned.params, states.params)


def test_iterated_targets_are_the_optimal_values_of_a_chain():
    """Of four states whose end pays 1: going on is worth 0.9 ** (steps left - 1)."""
    state, action = np.divmod(np.arange(6), 2)  # every transition there is
    after = np.where(action == 1, state + 1, 0)
    template = make_experience(jax.random.key(0), PLAIN, T=3, B=6, A=2)
    first = jax.tree.map(lambda x: x[:1], template.transitions)
    transitions = dataclasses.replace(
        first,
        actions=jnp.asarray(action[None], jnp.int32),
        rewards=jnp.asarray((after == 3) * 1.0)[None],
        is_terminal=jnp.asarray(after == 3)[None],
        cut=jnp.zeros((1, 6), bool),
        valid=jnp.ones((1, 6), bool),
    )
    q = np.zeros((4, 2))
    for _ in range(10):
        rows = {"q": jnp.asarray(q[np.stack([state, after])])[..., None]}
        experience = dataclasses.replace(
            template, transitions=transitions, outputs=rows, target_outputs=rows
        )
        targets, _, _ = PLAIN.targets({}, {}, experience, jax.random.key(0))
        q[state, action] = np.asarray(targets["q"])[0, :, 0]
    best = 0.9 ** np.array([2, 1, 0])
    np.testing.assert_allclose(q[:3, 1], best)
    np.testing.assert_allclose(q[:3, 0], 0.9 * best[0])
