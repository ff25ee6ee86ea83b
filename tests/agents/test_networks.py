"""Networks: shapes, sizes, types, and rows of the actions that were taken."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_networks import ACTOR_CRITIC, IMPALA, NATURE, TINY, disco_spec, pixels, shapes

from metarl.agents.agent import Agent
from metarl.agents.networks import build_network, build_value_network
from metarl.config import (
    ActionModelConfig,
    ImpalaTorso,
    MLPTorso,
    NetworkConfig,
    OptimizerConfig,
)
from metarl.errors import UserError
from metarl.rules.base import Head, RuleSpec


@dataclasses.dataclass(frozen=True)
class WithHeads(tiny.Scaled):
    """A rule that asks for certain heads."""

    heads: tuple[Head, ...] = ()

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(heads=self.heads)


@pytest.mark.parametrize(
    ("inputs", "lstm", "count"), [(64, 128, 943_375), (25, 256, 1_489_679)]
)
def test_sizes_are_those_of_the_published_agents(inputs, lstm, count):
    """DiscoRL's notebooks: 0.94 M parameters in evaluation, 1.49 M in discovery."""
    config = NetworkConfig(
        torso=MLPTorso(hidden=(512, 512)),
        action_model=ActionModelConfig(lstm=lstm, head_hidden=(lstm,)),
    )
    network = build_network(config, disco_spec(3), 3)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, inputs)))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


def test_outputs_have_the_shapes_of_the_spec():
    network = build_network(TINY, disco_spec(4, 5, 7), 4)
    observations = jnp.zeros((6, 3))
    params = jax.jit(network.init)(jax.random.key(0), observations)
    assert shapes(jax.jit(network.apply)(params, observations)) == {
        "logits": (6, 4),
        "y": (6, 5),
        "z": (6, 4, 5),
        "q": (6, 4, 7),
        "aux_pi": (6, 4, 4),
    }
    assert shapes(params)["action_model/lstm"] == {"w": (12, 32), "b": (32,)}


def test_without_heads_per_action_there_is_no_action_model():
    config = NetworkConfig(torso=MLPTorso(hidden=(4,)), head_hidden=(5,))
    network = build_network(config, ACTOR_CRITIC, 3)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2)))
    assert shapes(params) == {
        "torso/linear_0": {"w": (2, 4), "b": (4,)},
        "logits/linear_0": {"w": (4, 5), "b": (5,)},
        "logits/linear_1": {"w": (5, 3), "b": (3,)},
        "v/linear_0": {"w": (4, 5), "b": (5,)},
        "v/linear_1": {"w": (5, 7), "b": (7,)},
    }


def test_heads_per_action_can_stand_on_the_torso():
    """Those of a deep Q-network are one layer of A outputs, and need no LSTM."""
    heads = (Head("q", 2, per_action=True, on_torso=True),)
    config = NetworkConfig(torso=MLPTorso(hidden=(4,)))
    network = build_network(config, RuleSpec(heads=heads), 3)
    observations = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    params = jax.jit(network.init)(jax.random.key(0), observations)
    assert shapes(params) == {
        "torso/linear_0": {"w": (5, 4), "b": (4,)},
        "q/linear_0": {"w": (4, 6), "b": (6,)},
    }
    q = jax.jit(network.apply)(params, observations)["q"]
    flat = observations @ params["torso/linear_0"]["w"] @ params["q/linear_0"]["w"]
    np.testing.assert_allclose(q, flat.reshape(6, 3, 2), atol=1e-6)
    # Beside them, heads of the action model are as they were.
    both = build_network(
        TINY, RuleSpec(heads=(*heads, *disco_spec(3, 5).heads[2:3])), 3
    )
    params = jax.eval_shape(both.init, jax.random.key(0), observations)
    assert {name.split("/")[0] for name in params} == {"torso", "q", "action_model"}
    assert jax.eval_shape(both.apply, params, observations)["z"].shape == (6, 3, 5)
    with pytest.raises(ValueError, match="on_torso=True needs per_action=True"):
        Head("q", 2, on_torso=True)


def test_last_layers_of_state_heads_start_small():
    config = NetworkConfig(torso=MLPTorso(hidden=(4,)), head_hidden=(100,))
    network = build_network(config, disco_spec(3), 3)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2)))
    # A normal distribution cut at two standard deviations has 0.88 of its deviation.
    assert np.std(params["y/linear_1"]["w"]) == pytest.approx(0.88e-2, rel=0.02)
    assert np.abs(params["y/linear_1"]["w"]).max() <= 2e-2
    assert np.std(params["y/linear_0"]["w"]) == pytest.approx(0.5 * 0.88, rel=0.1)
    hidden = np.sqrt(config.action_model.head_hidden[-1])
    z = params["action_model/z/linear_1"]["w"]
    assert np.std(z) == pytest.approx(0.88 / hidden, rel=0.1)


def test_heads_can_be_networks_of_their_own_with_any_activation():
    config = NetworkConfig(
        torso=MLPTorso(hidden=()), head_hidden=(4, 5), activation="tanh"
    )
    network = build_network(config, ACTOR_CRITIC, 3)
    observations = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    params = jax.jit(network.init)(jax.random.key(0), observations)
    assert shapes(params) == {
        f"{head}/linear_{i}": {"w": shape, "b": shape[1:]}
        for head, size in (("logits", 3), ("v", 7))
        for i, shape in enumerate([(2, 4), (4, 5), (5, size)])
    }
    x = observations
    for i in range(3):
        x = np.tanh(x) if i else x
        x = x @ np.asarray(params[f"v/linear_{i}"]["w"])  # biases start at 0
    np.testing.assert_allclose(network.apply(params, observations)["v"], x, atol=1e-6)


@pytest.mark.parametrize(
    "observations",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(6, dtype=np.uint8).reshape(2, 3),  # codes or RAM, not pixels
        np.eye(2, 3, dtype=bool),
        np.arange(12.0, dtype=np.float64).reshape(2, 3, 2, 1),
    ],
    ids=lambda x: str(x.dtype),
)
def test_other_observations_are_cast_as_they_are(observations):
    network = build_network(TINY, ACTOR_CRITIC, 3)
    params = jax.jit(network.init)(jax.random.key(0), observations)
    floats = jnp.asarray(observations, jnp.float32)
    got = jax.jit(network.apply)(params, observations)
    wanted = jax.jit(network.apply)(params, floats)
    for name in wanted:
        assert got[name].dtype == jnp.float32
        np.testing.assert_array_equal(got[name], wanted[name])
    moved = jax.jit(network.apply)(params, floats / 255)
    assert np.abs(np.asarray(moved["logits"] - got["logits"])).max() > 1e-4


def test_rows_of_taken_actions_are_those_of_all_actions_in_the_gradient_too(
    x64: None,
) -> None:
    heads = tuple(
        dataclasses.replace(head, taken=head.per_action)
        for head in disco_spec(3, prediction_size=5, bins=7).heads
    )
    network = build_network(TINY, RuleSpec(heads=heads), 3)
    agent = Agent(
        rule=WithHeads(heads=heads),
        network=network,
        num_actions=3,
        optimizer=OptimizerConfig(),
        lifetime_env_steps=1,
    )
    whole = dataclasses.replace(agent, network=network._replace(apply_taken=None))
    rng = np.random.default_rng(0)
    observations = jnp.asarray(rng.normal(size=(6, 4)))
    actions = jnp.asarray([2, 0, 1, 1], jnp.int32)  # of the first four observations
    params = network.init(jax.random.key(0), observations)
    weights = {
        head.name: jnp.asarray(rng.normal(size=(4, head.size))) for head in heads
    }

    def loss(agent: Agent, params: object) -> tuple[jax.Array, object]:
        outputs, read = agent.evaluate(params, observations, actions)
        total = sum(jnp.sum(weights[k] * jnp.sin(x)) for k, x in read.items())
        return total, (outputs, read)

    (grads, (outputs, read)), (expected, (all_outputs, rows)) = (
        jax.grad(lambda p, a=a: loss(a, p), has_aux=True)(params)
        for a in (agent, whole)
    )
    assert shapes(read) == {head.name: (4, head.size) for head in heads}
    assert shapes(outputs) == shapes(all_outputs)
    np.testing.assert_array_equal(
        rows["z"], np.asarray(all_outputs["z"])[np.arange(4), np.asarray(actions)]
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14),
        (grads, outputs, read),
        (expected, all_outputs, rows),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_everything_is_float64_where_parameters_are(dtype):
    torso = ImpalaTorso(channels=(2,), blocks=1, dense=3)
    config = NetworkConfig(torso=torso, action_model=TINY.action_model)
    network = build_network(config, disco_spec(2, 3, 5), 2)
    frames = pixels(0, 2, 8, 8, 1).astype(dtype)
    params = jax.jit(network.init)(jax.random.key(0), frames)
    outputs = jax.jit(network.apply)(params, frames)
    assert {x.dtype for x in jax.tree.leaves((params, outputs))} == {jnp.dtype("f8")}
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    outputs = jax.jit(network.apply)(single, frames)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("f4")}


def test_equal_settings_give_the_same_network():
    copy = NetworkConfig.model_validate(TINY.model_dump())
    assert build_network(TINY, disco_spec(3), 3) is build_network(
        copy, disco_spec(3), 3
    )
    assert build_network(TINY, disco_spec(3), 3) is not build_network(
        TINY, disco_spec(4), 4
    )


@pytest.mark.parametrize(
    ("torso", "shape", "message"),
    [
        (IMPALA, (1, 5), r"agent.network.torso: 'impala' takes frames .*\(5,\).*'mlp'"),
        (NATURE, (1, 10, 5, 1), "layer 0 of 'nature' sees 10 x 5 pixels.*8 x 8"),
        (NATURE, (1, 12, 12, 1), "layer 1 of 'nature' sees 2 x 2 pixels.*4 x 4"),
    ],
)
def test_observations_that_do_not_fit_are_refused(torso, shape, message):
    network = build_value_network(torso)
    with pytest.raises(UserError, match=message):
        jax.jit(network.init)(jax.random.key(0), jnp.zeros(shape))


def test_a_row_of_an_action_is_refused_where_there_are_none():
    with pytest.raises(ValueError, match="head 'y': taken=True needs per_action=True"):
        Head("y", 3, taken=True)
