"""PPO against hand-computed numbers, and its place in an agent's update."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from contract.experience import make_experience

from metarl.agents import group
from metarl.config import PPOConfig
from metarl.numerics import take_action
from metarl.rules import make_rule
from metarl.rules.base import Head, Metrics, RuleSpec, Targets
from metarl.rules.ppo import PPO
from metarl.types import Experience, Outputs, Transitions, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = PPOConfig(discount=0.9, trace_lambda=0.5, clip=0.2, entropy_cost=0.25)
PLAIN = PPO(CONFIG.model_copy(update={"normalize_advantages": False}))
# The surrogate alone.
SURROGATE = PPO(PLAIN.config.model_copy(update={"entropy_cost": 0, "value_cost": 0}))


def column(*x: float) -> jax.Array:
    return jnp.array(x)[:, None]


def targets_of(rule: PPO, experience: Experience) -> Targets:
    targets, state, _ = rule.targets({}, {}, experience, jax.random.key(0))
    assert state == {}
    return targets


def steps(
    *, behaviour: list[float], own: list[bool] | None = None, **fields: list
) -> Transitions:
    """Return ``[T, 1]`` transitions of action 0 of two, drawn with ``behaviour``."""
    n = len(behaviour)
    template = make_experience(jax.random.key(0), PLAIN, T=n, B=1, A=2).transitions
    p = jnp.array(behaviour)
    return dataclasses.replace(
        template,
        actions=jnp.zeros((n, 1), jnp.int32),
        behaviour_logits=jnp.log(jnp.stack([p, 1 - p], axis=-1))[:, None],
        **{k: column(*x) for k, x in fields.items()},
        own=jnp.ones((n, 1), bool) if own is None else column(*own),
    )


def outputs_of(policy: list[float], values: list[float]) -> Outputs:
    p = jnp.array(policy)
    logits = jnp.log(jnp.stack([p, 1 - p], axis=-1))
    return {"logits": logits[:, None], "v": column(*values)[..., None]}


def test_the_configuration_makes_the_rule():
    assert make_rule(CONFIG) == PPO(CONFIG)
    assert PPO(CONFIG).spec(5) == RuleSpec(
        heads=(Head("logits", 5), Head("v", 1)),
        epochs=4,
        minibatches=4,
        minibatch_of="transitions",
    )


def test_advantages_are_the_hand_computed_ones():
    """Steps 0 to 1 end by themselves, 3 to 4 by the time limit, 6 with the batch.

    After each end is a reset. With discount 0.9 and lambda 0.5 traces decay by 0.45.
    """
    yes, no = True, False
    transitions = steps(
        behaviour=[0.5] * 7,
        rewards=[1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 5.0],
        is_terminal=[no, yes, no, no, no, no, no],
        cut=[no, no, no, no, yes, no, no],
        valid=[yes, yes, no, yes, yes, no, yes],
    )
    values = [1.0, 2.0, 100.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    outputs = outputs_of([0.5] * 8, values)
    experience = make_experience(jax.random.key(0), PLAIN, T=7, B=1, A=2)
    experience = dataclasses.replace(
        experience, transitions=transitions, outputs=outputs
    )
    targets = targets_of(PLAIN, experience)
    # r + 0.9 v' - v; the terminal one without v', the cut one with the final frame's.
    deltas = {0: 1 + 1.8 - 1, 1: 2 - 2, 3: 3 + 3.6 - 3, 4: 4 + 4.5 - 4, 6: 5 + 6.3 - 6}
    expected = {
        0: deltas[0] + 0.45 * deltas[1],
        1: deltas[1],
        3: deltas[3] + 0.45 * deltas[4],
        4: deltas[4],
        6: deltas[6],
    }
    for t, advantage in expected.items():
        assert targets["advantages"][t, 0] == pytest.approx(advantage)
        assert targets["value"][t, 0] == pytest.approx(values[t] + advantage)
        assert targets["old_value"][t, 0] == values[t]


def test_the_loss_equals_the_hand_computed_case():
    """Ratios 1.5, 0.5, 1.5, 0.5 with advantages 2, 2, -2, -2, values clipped or not."""
    transitions = steps(behaviour=[0.4, 0.6, 0.4, 0.6])
    policy = np.array([0.6, 0.3, 0.6, 0.3])
    outputs = outputs_of(policy.tolist(), [1.0, 1.0, 1.1, 3.0])
    targets = {
        "advantages": column(2.0, 2.0, -2.0, -2.0),
        "old_value": column(0.0, 2.0, 1.0, 2.0),
        "value": column(0.0, 0.0, 3.0, 3.0),
    }
    loss, parts = PLAIN.loss(outputs, {}, targets, transitions)
    # The gain is bounded above at 1.2 * 2, the loss below at 0.8 * 2: never otherwise.
    policy_loss = [-1.2 * 2, -0.5 * 2, 1.5 * 2, 0.8 * 2]
    np.testing.assert_allclose(parts["policy_loss"][:, 0], policy_loss)
    # Clipped to 0.2, 1.8, 1.1 and 2.2; the larger of both squared errors counts.
    value_loss = [0.5 * 1, 0.5 * 1.8**2, 0.5 * 1.9**2, 0.5 * 0.8**2]
    np.testing.assert_allclose(parts["value_loss"][:, 0], value_loss)
    np.testing.assert_array_equal(parts["clip_fraction"][:, 0], [1, 1, 1, 1])
    entropy = -policy * np.log(policy) - (1 - policy) * np.log(1 - policy)
    total = policy_loss + 0.5 * np.array(value_loss) - 0.25 * entropy
    np.testing.assert_allclose(loss[:, 0], total)
    unclipped = PPO(PLAIN.config.model_copy(update={"clip_values": False}))
    _, parts = unclipped.loss(outputs, {}, targets, transitions)
    np.testing.assert_allclose(parts["value_loss"][:, 0], [0.5, 0.5, 0.5 * 1.9**2, 0])


def surrogate_gradient(ratios: list[float], advantages: list[float]) -> np.ndarray:
    """Return the slope of each step's loss for its log-probability."""
    transitions = steps(behaviour=[0.4] * len(ratios))
    zeros = column(*([0.0] * len(ratios)))
    targets = {
        "advantages": column(*advantages),
        "value": zeros,
        "old_value": zeros,
    }

    def loss(log_pi_a: jax.Array) -> jax.Array:
        outputs = {"log_pi_a": log_pi_a, "v": zeros[..., None]}
        return jnp.sum(SURROGATE.loss(outputs, {}, targets, transitions)[0])

    return np.asarray(jax.grad(loss)(jnp.log(0.4 * column(*ratios))))[:, 0]


def test_the_clip_stops_the_gradient_on_the_rewarded_side_alone():
    #         inside      too far and rewarded  too far and punished
    ratios = [1.1, 0.9, 1.3, 0.7, 0.7, 1.3]
    advantages = [2.0, -2.0, 2.0, -2.0, 2.0, -2.0]
    slopes = surrogate_gradient(ratios, advantages)
    np.testing.assert_allclose(slopes, [-2.2, 1.8, 0, 0, -1.4, 2.6])


def test_at_the_acting_policy_the_gradient_is_the_policy_gradient():
    rule = PPO(PLAIN.config.model_copy(update={"value_cost": 0, "entropy_cost": 0}))
    experience = make_experience(jax.random.key(0), rule, T=5, B=3)
    logits = experience.outputs["logits"][:-1]
    transitions = dataclasses.replace(
        drop_invalid(experience.transitions), behaviour_logits=logits
    )
    targets = targets_of(rule, experience)

    def ours(logits: jax.Array) -> jax.Array:
        outputs = {"logits": logits, "v": experience.outputs["v"][:-1]}
        return jnp.sum(rule.loss(outputs, {}, targets, transitions)[0])

    def policy_gradient(logits: jax.Array) -> jax.Array:
        log_pi_a = take_action(jax.nn.log_softmax(logits), transitions.actions)
        return -jnp.sum(targets["advantages"] * log_pi_a * transitions.own)

    gradient = jax.grad(ours)(logits)
    np.testing.assert_allclose(gradient, jax.grad(policy_gradient)(logits), atol=1e-12)
    assert np.abs(gradient).max() > 0.1


def test_advantages_are_normalised_over_the_own_steps_of_the_minibatch():
    rule = PPO(SURROGATE.config.model_copy(update={"normalize_advantages": True}))
    advantages = [1.0, 5.0, 1e6, 3.0]
    transitions = steps(behaviour=[0.5] * 4, own=[True, True, False, True])
    outputs = outputs_of([0.5] * 4, [0.0] * 4)
    targets = {
        "advantages": column(*advantages),
        "value": column(*[0.0] * 4),
        "old_value": column(*[0.0] * 4),
    }
    loss, _ = rule.loss(outputs, {}, targets, transitions)
    # Mean 3 and variance 8 / 3 of 1, 5 and 3.
    deviation = np.sqrt(8 / 3)
    expected = [2 / deviation, -2 / deviation, 0, 0]
    np.testing.assert_allclose(loss[:, 0], expected, rtol=1e-7)
    nothing = dataclasses.replace(transitions, own=jnp.zeros((4, 1), bool))
    assert not np.any(rule.loss(outputs, {}, targets, nothing)[0])


def test_the_gradient_equals_finite_differences():
    rule = PPO(CONFIG)
    experience = make_experience(jax.random.key(3), rule, T=4, B=3)
    transitions = drop_invalid(experience.transitions)
    targets = targets_of(rule, experience)
    noise = jax.random.normal(jax.random.key(4), experience.outputs["v"][:-1].shape)
    outputs = {k: x[:-1] for k, x in experience.outputs.items()}
    outputs["v"] += 0.3 * noise  # some inside and some outside of the clip

    @jax.jit
    def loss(outputs: Outputs) -> tuple[jax.Array, Metrics]:
        loss, parts = rule.loss(outputs, {}, targets, transitions)
        return jnp.sum(loss * transitions.valid * transitions.learn), parts

    gradient, parts = jax.grad(loss, has_aux=True)(outputs)
    clipped = np.asarray(parts["clip_fraction"])[np.asarray(transitions.valid)]
    assert 0 < clipped.mean() < 1
    for name, x in outputs.items():
        for index in np.ndindex(*x.shape):
            plus, minus = (
                loss({**outputs, name: x.at[index].add(e)})[0] for e in (1e-6, -1e-6)
            )
            difference = float(plus - minus) / 2e-6
            assert float(gradient[name][index]) == pytest.approx(difference, abs=1e-7)


def test_an_update_takes_a_step_for_every_minibatch_and_epoch():
    rule = PPO(PPOConfig(epochs=3, minibatches=5))
    agent = tiny.agent_for(rule, learning_rate=1e-2, max_grad_norm=0.5)
    state = agent.init(jax.random.key(0), jnp.zeros((1, tiny.OBSERVATION)))
    states = jax.tree.map(lambda x: x[None], state)
    rollouts = tiny.rollouts(0, 1)  # 15 transitions
    run = jax.jit(
        lambda rollouts: group.update(agent, {}, states, rollouts, jax.random.key(1))
    )
    after, record = run(rollouts)
    assert int(after.optimizer.count[0]) == 15
    assert int(after.agent_updates[0]) == 1
    for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"):
        assert np.isfinite(record.metrics[name]).all(), name
    again, _ = run(tiny.poison(rollouts, 1))
    tiny.assert_same_bits(after.params, again.params)


def test_a_group_learns_as_its_members_would_alone():
    """No minibatch's advantages are normalised with those of a peer."""
    rule = PPO(PPOConfig(epochs=2, minibatches=1))
    agent = tiny.agent_for(rule, learning_rate=1e-2)
    keys = jax.random.split(jax.random.key(0))
    zeros = jnp.zeros((1, tiny.OBSERVATION))
    states = jax.vmap(lambda k: agent.init(k, zeros))(keys)
    rollouts = tiny.rollouts(0, 2)

    @jax.jit
    def update(states: object, rollouts: object) -> object:
        return group.update(agent, {}, states, rollouts, jax.random.key(1))[0].params

    together = update(states, rollouts)
    for k in range(2):
        alone = update(*jax.tree.map(lambda x, k=k: x[k : k + 1], (states, rollouts)))
        mine = jax.tree.map(lambda x, k=k: x[k : k + 1], together)
        tiny.assert_close(mine, alone, 1e-10)
