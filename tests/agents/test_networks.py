"""Networks: shapes, sizes, types, and agreement with Haiku and the golden arrays."""

from __future__ import annotations

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.agents import golden_names
from metarl.agents.action_model import StepPerAction
from metarl.agents.agent import Agent
from metarl.agents.networks import build_network, build_value_network
from metarl.agents.torsos import MLP
from metarl.config import (
    ActionModelConfig,
    ImpalaTorso,
    MLPTorso,
    NatureTorso,
    NetworkConfig,
    OptimizerConfig,
)
from metarl.errors import UserError
from metarl.numerics import signed_hyperbolic
from metarl.rules.base import Head, RuleSpec

TINY = NetworkConfig(
    torso=MLPTorso(hidden=(16,)),
    action_model=ActionModelConfig(lstm=8, head_hidden=(8,)),
)
IMPALA = ImpalaTorso(channels=(2, 3), blocks=1, dense=5)
NATURE = NatureTorso(channels=(3, 4), kernels=(8, 4), strides=(4, 2), dense=6)


def spec(num_actions: int, prediction_size: int = 600, bins: int = 601) -> RuleSpec:
    """Return the heads of DiscoRL."""
    return RuleSpec(
        heads=(
            Head("logits", num_actions),
            Head("y", prediction_size),
            Head("z", prediction_size, per_action=True),
            Head("q", bins, per_action=True),
            Head("aux_pi", num_actions, per_action=True),
        )
    )


@dataclasses.dataclass(frozen=True)
class WithHeads(tiny.Scaled):
    """A rule that asks for certain heads."""

    heads: tuple[Head, ...] = ()

    def spec(self, num_actions: int) -> RuleSpec:
        return RuleSpec(heads=self.heads)


ACTOR_CRITIC = RuleSpec(heads=(Head("logits", 3), Head("v", 7)))


def shapes(tree: object) -> object:
    return jax.tree.map(lambda x: x.shape, tree)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("inputs", "lstm", "count"), [(64, 128, 943_375), (25, 256, 1_489_679)]
)
def test_sizes_are_those_of_the_published_agents(inputs, lstm, count):
    """DiscoRL's notebooks: 0.94 M parameters in evaluation, 1.49 M in discovery."""
    config = NetworkConfig(
        torso=MLPTorso(hidden=(512, 512)),
        action_model=ActionModelConfig(lstm=lstm, head_hidden=(lstm,)),
    )
    network = build_network(config, spec(3), 3)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, inputs)))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


def test_outputs_have_the_shapes_of_the_spec():
    network = build_network(TINY, spec(4, 5, 7), 4)
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
    both = build_network(TINY, RuleSpec(heads=(*heads, *spec(3, 5).heads[2:3])), 3)
    params = jax.eval_shape(both.init, jax.random.key(0), observations)
    assert {name.split("/")[0] for name in params} == {"torso", "q", "action_model"}
    assert jax.eval_shape(both.apply, params, observations)["z"].shape == (6, 3, 5)
    with pytest.raises(ValueError, match="on_torso=True needs per_action=True"):
        Head("q", 2, on_torso=True)


def test_last_layers_of_state_heads_start_small():
    config = NetworkConfig(torso=MLPTorso(hidden=(4,)), head_hidden=(100,))
    network = build_network(config, spec(3), 3)
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


def gains(w: jax.Array) -> np.ndarray:
    """Return the singular values of a layer's weights, inputs together."""
    return np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]))[1]


def test_weights_can_start_orthogonal():
    torso = NatureTorso(channels=(3,), kernels=(8,), strides=(4,), dense=6)
    config = NetworkConfig(torso=torso, initialization="orthogonal")
    network = build_network(config, ACTOR_CRITIC, 3)
    init = jax.jit(network.init, compiler_options=tiny.QUICK)
    params = init(jax.random.key(0), pixels(0, 1, 12, 12, 2))
    wanted = {
        "torso/conv_0": np.sqrt(2),
        "torso/dense": np.sqrt(2),
        "logits/linear_0": 0.01,
        "v/linear_0": 1.0,
    }
    assert wanted.keys() == params.keys()
    for name, gain in wanted.items():
        np.testing.assert_allclose(gains(params[name]["w"]), gain, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
@pytest.mark.parametrize("activate_final", [False, True])
def test_mlp_equals_haikus(activation, activate_final):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    settings = {"activate_final": activate_final, "name": "mlp"}
    function = {
        "relu": jax.nn.relu,
        "leaky_relu": lambda x: jnp.where(x < 0, 0.01 * x, x),
        "tanh": jnp.tanh,
    }[activation]
    theirs = hk.transform(
        lambda x: hk.nets.MLP((4, 6), activation=function, **settings)(x)
    )
    ours = hk.transform(lambda x: MLP((4, 6), activation=activation, **settings)(x))
    params = ours.init(jax.random.key(0), x)
    renamed = {name.replace("/", "/~/"): layer for name, layer in params.items()}
    y = ours.apply(params, None, x)
    np.testing.assert_allclose(y, theirs.apply(renamed, None, x), rtol=1e-12)
    assert (y < 0).any() == (not activate_final or activation != "relu")


@pytest.mark.usefixtures("x64")
def test_step_per_action_equals_a_haiku_lstm_step_on_every_one_hot():
    actions, units, size = 5, 4, 3
    rng = np.random.default_rng(0)
    hidden, cell = jnp.asarray(rng.normal(size=(2, size, units)))
    theirs = hk.transform(
        lambda x, h, c: hk.LSTM(units, name="lstm")(x, hk.LSTMState(h, c))
    )
    ours = hk.transform(lambda h, c: StepPerAction(actions, name="step")(h, c))
    fresh = ours.init(jax.random.key(0), hidden, cell)["step"]
    assert shapes(fresh) == {"w": (actions + units, 4 * units), "b": (4 * units,)}
    layer = {k: jnp.asarray(rng.normal(size=x.shape)) for k, x in fresh.items()}

    def loop(layer: object) -> jax.Array:
        one_hots = jnp.eye(actions)
        steps = [
            theirs.apply(
                {"lstm/linear": layer},
                None,
                jnp.broadcast_to(one_hots[a], (size, actions)),
                hidden,
                cell,
            )[0]
            for a in range(actions)
        ]
        return jnp.stack(steps, axis=1)

    def at_once(layer: object) -> jax.Array:
        return ours.apply({"step": layer}, None, hidden, cell)

    np.testing.assert_allclose(
        jax.jit(at_once)(layer), jax.jit(loop)(layer), rtol=1e-12
    )
    gradients = [
        jax.jit(jax.grad(lambda p, step=step: jnp.sum(step(p) ** 2)))(layer)
        for step in (at_once, loop)
    ]
    for name in layer:
        np.testing.assert_allclose(gradients[0][name], gradients[1][name], rtol=1e-11)


def impala_by_hand(params, x: jax.Array) -> jax.Array:
    """Espeholt et al. (2018), figure 3, with one residual block per section."""

    def conv(x, name):
        layer = params[f"torso/{name}"]
        outputs = layer["b"].shape[0]
        apply = hk.transform(lambda x: hk.Conv2D(outputs, 3, name="conv")(x)).apply
        return apply({"conv": layer}, None, x)

    for i in range(2):
        x = conv(x, f"section_{i}_conv")
        x = hk.max_pool(x, (3, 3, 1), (2, 2, 1), "SAME")
        y = conv(jax.nn.relu(x), f"section_{i}_block_0_conv_0")
        x = x + conv(jax.nn.relu(y), f"section_{i}_block_0_conv_1")
    return dense(params, jax.nn.relu(x))


def nature_by_hand(params, x: jax.Array) -> jax.Array:
    for i, (kernel, stride) in enumerate(((8, 4), (4, 2))):
        layer = params[f"torso/conv_{i}"]
        conv = hk.transform(
            lambda x, size=layer["b"].shape[0], k=kernel, s=stride: hk.Conv2D(
                size, k, stride=s, padding="VALID", name="conv"
            )(x)
        )
        x = jax.nn.relu(conv.apply({"conv": layer}, None, x))
    return dense(params, x)


def dense(params, x: jax.Array) -> jax.Array:
    y = x.reshape(x.shape[0], -1) @ params["torso/dense"]["w"]
    return jax.nn.relu(y + jnp.broadcast_to(params["torso/dense"]["b"], y.shape))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("convolution", ["im2col", "native"])
@pytest.mark.parametrize(
    ("torso", "by_hand"), [(IMPALA, impala_by_hand), (NATURE, nature_by_hand)]
)
def test_pixel_torsos_are_the_published_ones_on_scaled_pixels(
    torso, by_hand, convolution
):
    frames = pixels(0, 2, 21, 20, 4)
    network = build_value_network(torso, convolution)
    params = jax.jit(network.init)(jax.random.key(0), frames)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(x + rng.normal(size=x.shape) / 10), params
    )
    features = jax.jit(by_hand)(params, frames / 255)
    assert (features > 0).any()
    wanted = features @ params["value/linear_0"]["w"][:, 0]
    wanted = wanted + jnp.broadcast_to(params["value/linear_0"]["b"], wanted.shape)
    got = jax.jit(network.apply)(params, frames)["value"]
    np.testing.assert_allclose(got, wanted, rtol=1e-11)


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
        for head in spec(3, prediction_size=5, bins=7).heads
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
    network = build_network(config, spec(2, 3, 5), 2)
    frames = pixels(0, 2, 8, 8, 1).astype(dtype)
    params = jax.jit(network.init)(jax.random.key(0), frames)
    outputs = jax.jit(network.apply)(params, frames)
    assert {x.dtype for x in jax.tree.leaves((params, outputs))} == {jnp.dtype("f8")}
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    outputs = jax.jit(network.apply)(single, frames)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("f4")}


def test_equal_settings_give_the_same_network():
    copy = NetworkConfig.model_validate(TINY.model_dump())
    assert build_network(TINY, spec(3), 3) is build_network(copy, spec(3), 3)
    assert build_network(TINY, spec(3), 3) is not build_network(TINY, spec(4), 4)


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


@pytest.mark.parametrize("seed", [0, 1])
def test_tiny_agent_reproduces_the_golden_outputs(reference, seed):
    path = reference / "golden" / "disco103" / f"c_learner_chain_seed{seed}.npz"
    prefix = "initial/params/"
    with np.load(path) as archive:
        stored = {
            name.removeprefix(prefix): archive[name]
            for name in archive.files
            if name.startswith(prefix)
        }
        observations = archive["rollout/observations"]
        wanted = {
            name: archive[f"step0/agent_out/{name}"]
            for name in ("logits", "y", "z", "q", "aux_pi")
        }
    network = build_network(TINY, spec(3), 3)
    params = golden_names.agent_from_golden(stored)
    fresh = jax.eval_shape(network.init, jax.random.key(0), observations[0])
    assert shapes(params) == shapes(fresh)
    lead = observations.shape[:2]
    outputs = jax.jit(network.apply)(
        params, observations.reshape(-1, observations.shape[-1])
    )
    for name, array in wanted.items():
        got = outputs[name].reshape(*lead, *outputs[name].shape[1:])
        np.testing.assert_allclose(got, array, rtol=1e-6, atol=1e-6, err_msg=name)
    back = golden_names.agent_to_golden(params)
    assert back.keys() == stored.keys()
    assert all(back[name] is stored[name] for name in stored)


@pytest.mark.parametrize("seed", [0, 1])
def test_value_function_reproduces_the_golden_values(reference, seed):
    path = reference / "golden" / "disco103" / f"d_metagrad_disco103_seed{seed}.npz"
    prefix = "out/value_params_per_inner_step/"
    with np.load(path) as archive:
        # The values of the validation rollout are those after the last inner step.
        stored = {
            name.removeprefix(prefix): archive[name][-1]
            for name in archive.files
            if name.startswith(prefix)
        }
        observations = archive["valid/observations"]
        wanted = archive["out/log/valid_value"]
    network = build_value_network(MLPTorso(hidden=(16,)))
    params = golden_names.value_from_golden(stored)
    fresh = jax.eval_shape(network.init, jax.random.key(0), observations[0])
    assert shapes(params) == shapes(fresh)
    flat = observations.reshape(-1, observations.shape[-1])
    value = jax.jit(network.apply)(params, flat)["value"]
    assert value.shape == (wanted.size,)
    # Of the network's own scale; the reference's transform is good to about 1e-4.
    squashed = signed_hyperbolic(jnp.asarray(wanted))
    np.testing.assert_allclose(value.reshape(wanted.shape), squashed, atol=3e-4)
    back = golden_names.value_to_golden(params)
    assert back.keys() == stored.keys()
    assert all(back[name] is stored[name] for name in stored)


def test_unknown_golden_names_are_refused():
    with pytest.raises(UserError, match="'mlp/linear_7/w' belongs to no known module"):
        golden_names.agent_from_golden({"mlp/linear_7/w": np.zeros(1)})


def test_a_row_of_an_action_is_refused_where_there_are_none():
    with pytest.raises(ValueError, match="head 'y': taken=True needs per_action=True"):
        Head("y", 3, taken=True)
