"""`metarl.Learner`: any rule, any network, on environments of one's own."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.rule_cases import documented_rule
from linear_learners import (
    ACTIONS,
    FIRST,
    OBSERVATION,
    assert_same_bits,
    make_learner,
    network_of,
    random_disco,
    random_rollout,
)

from metarl import learner as learner_module
from metarl.agents import group
from metarl.agents.agent import AgentState
from metarl.agents.networks import build_network
from metarl.config import MLPTorso, NetworkConfig, OptimizerConfig
from metarl.errors import UserError
from metarl.learner import Learner
from metarl.rollout.replay import Replay
from metarl.rule_files import LoadedRule, load_rule, save_rule
from metarl.types import Outputs, Params

# --- Acting and learning ----------------------------------------------------------


def test_actions_come_from_the_logits_returned() -> None:
    learner = make_learner(random_disco())
    state = learner.init(jax.random.key(0))
    observations = random_rollout(0).observations[0]
    actions, logits = learner.act(state, observations, jax.random.key(3))
    outputs = network_of(random_disco().rule)[1](state.params, observations)
    np.testing.assert_allclose(logits, outputs["logits"], rtol=1e-6)
    expected = jax.random.categorical(jax.random.key(3), logits)
    np.testing.assert_array_equal(actions, expected)
    assert isinstance(actions, np.ndarray)
    # Float64 observations are the learner's float32.
    again, _ = learner.act(state, observations.astype(np.float64), jax.random.key(3))
    np.testing.assert_array_equal(again, actions)


def test_the_update_is_that_of_a_group_of_one() -> None:
    rule = load_rule("policy_gradient")
    learner = make_learner(rule)
    state, rollout = learner.init(jax.random.key(0)), random_rollout(1)
    after, metrics = learner.update(state, rollout, jax.random.key(2))
    grouped = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, rollout))
    expected, record = jax.jit(functools.partial(group.update, learner._agent))(
        rule.meta_params, *grouped, jax.random.key(2)
    )
    assert metrics.keys() == record.metrics.keys()
    ours, theirs = (after, metrics), (expected, record.metrics)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other[0], rtol=1e-5, atol=1e-7)
    assert metrics["loss"].shape == ()


def test_a_discovered_rule_changes_every_tensor_and_survives_its_file(
    tmp_path: Path,
) -> None:
    learner = make_learner(random_disco())
    start = learner.init(jax.random.key(0))
    state, metrics = learner.update(start, random_rollout(0), jax.random.key(1))
    state, _ = learner.update(state, random_rollout(1), jax.random.key(2))
    for name in ("logits", "y", "z", "q", "aux_pi"):
        moved = np.abs(state.params[name] - start.params[name]).max()
        # Two steps of Adam at 1e-2.
        assert 5e-3 < moved < 2.1e-2, name
        assert np.abs(state.target_params[name] - start.params[name]).max() > 0, name
    assert all(np.isfinite(value) for value in metrics.values())
    assert state.agent_updates == 2
    taken = sum(int(random_rollout(seed).env_steps) for seed in (0, 1))
    assert state.env_steps == taken < 40

    learner.save(state, tmp_path / "agent.npz")
    restored = make_learner(random_disco()).restore(tmp_path / "agent.npz")
    assert_same_bits(restored, state)
    on, _ = learner.update(state, random_rollout(2), jax.random.key(3))
    compiled = learner_module._update._cache_size()
    restored_on, _ = learner.update(restored, random_rollout(2), jax.random.key(3))
    assert_same_bits(restored_on, on)
    assert learner_module._update._cache_size() == compiled


def test_the_rules_file_decides_what_is_learned(tmp_path: Path) -> None:
    for seed, name in enumerate(("same", "other")):
        rule = random_disco(seed)
        save_rule(tmp_path / name, rule.meta_params, rule.manifest)

    def learn(rule: LoadedRule) -> AgentState:
        learner = make_learner(rule)
        state = learner.init(jax.random.key(0))
        return learner.update(state, random_rollout(0), jax.random.key(1))[0]

    expected = learn(random_disco())
    assert_same_bits(learn(load_rule(tmp_path / "same")), expected)
    different = learn(load_rule(tmp_path / "other"))
    # Adam's first step is nearly the gradient's sign, so compare the gradient.
    for head in ("logits", "y", "z"):
        mine, others = (x.optimizer.mu[head] for x in (expected, different))
        assert np.abs(mine - others).max() > 0.01 * np.abs(mine).max(), head


def test_later_updates_and_equal_learners_compile_nothing() -> None:
    learner = make_learner(random_disco())
    state = learner.init(jax.random.key(0))
    state, _ = learner.update(state, random_rollout(0), jax.random.key(1))
    functions = [learner_module._init, learner_module._act, learner_module._update]
    learner.act(state, FIRST, jax.random.key(1))
    sizes = [function._cache_size() for function in functions]
    for seed in range(2):
        learner = make_learner(random_disco())
        state = learner.init(jax.random.key(seed))
        for i in range(3):
            learner.act(state, FIRST, jax.random.key(i))
            state, _ = learner.update(state, random_rollout(i), jax.random.key(i))
    assert [function._cache_size() for function in functions] == sizes


def test_weakly_typed_parameters_compile_once() -> None:
    def init(key: jax.Array, observations: jax.Array) -> Params:
        return {"scale": 0.5, "w": jax.random.normal(key, (OBSERVATION, 2))}

    def apply(params: Params, observations: jax.Array) -> Outputs:
        return {"logits": params["scale"] * observations @ params["w"]}

    rule = load_rule("policy_gradient")
    learner = Learner(rule, (init, apply), FIRST, num_actions=2)
    state = learner.init(jax.random.key(0))
    before = learner_module._update._cache_size()
    for seed in range(3):
        state, _ = learner.update(state, random_rollout(seed), jax.random.key(seed))
    assert learner_module._update._cache_size() == before + 1
    assert state.params["scale"] != 0.5


def test_a_rule_of_ones_own_needs_no_file() -> None:
    rule = documented_rule()
    learner = Learner(rule, network_of(rule), FIRST, num_actions=ACTIONS)
    assert [head.name for head in learner.heads] == ["logits", "v"]
    start = learner.init(jax.random.key(0))
    state, _ = learner.update(start, random_rollout(0), jax.random.key(1))
    for name in ("logits", "v"):
        assert np.abs(state.params[name] - start.params[name]).max() > 0


def test_the_optimizer_is_the_one_asked_for() -> None:
    rule = load_rule("policy_gradient")

    def step(**settings: object) -> tuple[AgentState, dict]:
        network = network_of(rule.rule)
        learner = Learner(rule, network, FIRST, num_actions=ACTIONS, **settings)
        state = learner.init(jax.random.key(0))
        _, metrics = learner.update(state, random_rollout(0), jax.random.key(1))
        start = dataclasses.replace(state, env_steps=jnp.asarray(50, jnp.int32))
        _, late = learner.update(start, random_rollout(0), jax.random.key(1))
        return metrics["learning_rate"], late["learning_rate"]

    linear = OptimizerConfig(schedule="linear", learning_rate=0.3)
    assert step() == pytest.approx((5e-4, 5e-4))
    assert step(optimizer=linear, lifetime_env_steps=100) == pytest.approx((0.3, 0.15))
    assert step(
        optimizer=linear, learning_rate=0.1, lifetime_env_steps=200
    ) == pytest.approx((0.1, 0.075))


def test_networks_of_ours_and_replayed_batches_fit_too() -> None:
    rule = load_rule("policy_gradient")
    config = NetworkConfig(torso=MLPTorso(hidden=(4,)))
    network = build_network(config, rule.rule.spec(ACTIONS), ACTIONS)
    learner = Learner(rule, network, FIRST, num_actions=ACTIONS)
    state = learner.init(jax.random.key(0))
    replay = Replay(8, seed=0)
    replay.add(random_rollout(0))
    after, _ = learner.update(state, replay.sample(6), jax.random.key(1))
    assert after.env_steps == int(random_rollout(0).env_steps)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), after.params, state.params)
    assert min(jax.tree.leaves(moved)) > 0


# --- Files ------------------------------------------------------------------------


def test_a_file_of_another_agent_is_one_line(tmp_path: Path) -> None:
    def learner_of(rule: str, width: int) -> Learner:
        loaded = load_rule(rule)
        observations = np.zeros((1, width), np.float32)
        network = network_of(loaded.rule)
        return Learner(loaded, network, observations, num_actions=ACTIONS)

    learner, path = learner_of("policy_gradient", 3), tmp_path / "folder" / "agent.npz"
    learner.save(learner.init(jax.random.key(0)), path)
    assert [file.name for file in path.parent.iterdir()] == ["agent.npz"]
    message = r"'.*logits.*' is float32\[3, 1, 2\], this learner needs float32\[5, 1, 2"
    with pytest.raises(UserError, match=message):
        learner_of("policy_gradient", 5).restore(path)
    critic = learner_of("actor_critic", 3)
    with pytest.raises(UserError, match=r"array 'params\['v'\]' is missing"):
        critic.restore(path)
    critic.save(critic.init(jax.random.key(0)), path)
    with pytest.raises(UserError, match=r"this learner has no array 'optimizer\.mu"):
        learner.restore(path)
    with pytest.raises(UserError, match="there is no such file"):
        learner.restore(tmp_path / "nothing.npz")
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="not an npz file"):
        learner.restore(path)
