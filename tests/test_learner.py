"""`metarl.Learner`: any rule, any network, on environments of one's own."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.rule_cases import documented_rule

import metarl
from metarl import learner as learner_module
from metarl.agents import group
from metarl.agents.agent import AgentState
from metarl.agents.networks import build_network
from metarl.config import DiscoConfig, MLPTorso, NetworkConfig, OptimizerConfig
from metarl.errors import UserError
from metarl.learner import Learner
from metarl.rollout.builder import RolloutBuilder
from metarl.rollout.replay import Replay
from metarl.rule_files import LoadedRule, load_rule, new_manifest, save_rule
from metarl.rules import make_rule
from metarl.rules.base import Head, UpdateRule
from metarl.types import Outputs, Params, Rollout

Pair = tuple[Callable[..., Params], Callable[..., Outputs]]

README = Path(__file__).parents[1] / "README.md"
ACTIONS, OBSERVATION = 2, 3
FIRST = np.zeros((4, OBSERVATION), np.float32)
DISCO = DiscoConfig(
    prediction_size=4,
    num_bins=5,
    max_abs_value=3.0,
    trajectory_lstm=4,
    lifetime_lstm=3,
    embedding_hidden=3,
    action_channels=(3, 2),
    policy_channels=3,
    lifetime_input=3,
)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A pair (init, apply) without any library: one matrix per head."""

    heads: tuple[Head, ...]
    num_actions: int = ACTIONS

    @property
    def pair(self) -> Pair:
        return self.init, self.apply

    def rows(self, head: Head) -> int:
        return self.num_actions if head.per_action else 1

    def init(self, key: jax.Array, observations: jax.Array) -> Params:
        keys = jax.random.split(key, len(self.heads))
        width = observations.shape[-1]
        return {
            head.name: 0.1 * jax.random.normal(k, (width, self.rows(head), head.size))
            for k, head in zip(keys, self.heads, strict=True)
        }

    def apply(self, params: Params, observations: jax.Array) -> Outputs:
        outputs = {}
        for head in self.heads:
            rows = jnp.einsum("no,ors->nrs", observations, params[head.name])
            outputs[head.name] = rows if head.per_action else rows[:, 0]
        return outputs


@functools.cache
def random_disco(seed: int = 0) -> LoadedRule:
    """A discovered rule that nobody trained, with weights so large that they matter."""
    rule = make_rule(DISCO)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(rule.init_params, jax.random.key(0))
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes
    )
    return LoadedRule(rule, params, new_manifest(DISCO), "random")


@functools.cache
def network_of(rule: UpdateRule) -> Pair:
    return Linear(rule.spec(ACTIONS).heads).pair


def make_learner(rule: LoadedRule, **settings: object) -> Learner:
    settings = {"learning_rate": 1e-2, **settings}
    network = network_of(rule.rule)
    return Learner(rule, network, FIRST, num_actions=ACTIONS, **settings)


def random_rollout(seed: int, length: int = 5, batch: int = 4) -> Rollout:
    """Steps of environments that end now and then, by the rule of NEXT_STEP."""
    rng = np.random.default_rng(seed)

    def observations() -> np.ndarray:
        return rng.standard_normal((batch, OBSERVATION)).astype(np.float32)

    builder = RolloutBuilder(observations(), num_actions=ACTIONS)
    done = np.zeros(batch, bool)
    for _ in range(length):
        ends = rng.random((2, batch)) < 0.2
        terminated, truncated = ends & ~done
        builder.add(
            rng.integers(ACTIONS, size=batch),
            rng.standard_normal((batch, ACTIONS)),
            observations(),
            np.where(done, 0, rng.standard_normal(batch)),
            terminated,
            truncated,
        )
        done = terminated | truncated
    return builder.take()


def assert_same_bits(one: object, other: object) -> None:
    one_leaves, other_leaves = jax.tree.leaves(one), jax.tree.leaves(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(one_leaves, other_leaves, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# --- Rule and network must fit ----------------------------------------------------


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


# --- The example of README.md -----------------------------------------------------

SETTINGS = "seed, updates, length = 1, 200, 16"


def readme_blocks() -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    return blocks


@functools.cache
def readme_network() -> dict[str, object]:
    """The network, once: its functions are what compiled programs are kept under."""
    namespace: dict[str, object] = {}
    exec(compile(readme_blocks()[0], README, "exec"), namespace)
    return namespace


def run_readme(seed: int, updates: int) -> dict[str, object]:
    """Return the names that the example leaves behind."""
    code = readme_blocks()[1]
    assert SETTINGS in code
    code = code.replace(SETTINGS, f"seed, updates, length = {seed}, {updates}, 16")
    namespace = dict(readme_network())
    exec(compile(code, README, "exec"), namespace)
    return namespace


def episodes(act: Callable[[np.ndarray, int], np.ndarray], seed: int) -> float:
    """Return the mean return of the first episode in each of 16 environments."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=16)
    observations, _ = envs.reset(seed=seed)
    returns, running = np.zeros(16), np.ones(16, bool)
    for step in range(501):
        if not running.any():
            break
        observations, rewards, terminated, truncated, _ = envs.step(
            act(observations, step)
        )
        returns += rewards * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


def random_return() -> float:
    rng = np.random.default_rng(0)
    act = lambda *_: rng.integers(2, size=16)  # noqa: E731
    return float(np.mean([episodes(act, seed) for seed in range(8)]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_readmes_agent_learns_and_is_restored(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_readme(seed, updates=200)
    learner = names["learner"]
    assert isinstance(learner, metarl.Learner)
    state = learner.restore("agent.npz")
    assert_same_bits(state, names["state"])
    assert state.agent_updates == 200

    def act(observations: np.ndarray, step: int) -> np.ndarray:
        return learner.act(state, observations, jax.random.key(step))[0]

    baseline = random_return()
    assert 15 < baseline < 30
    assert episodes(act, seed=100 + seed) >= 3 * baseline
