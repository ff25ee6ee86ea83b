"""Torsos and the action model agree with Haiku's layers, and start as they should."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_networks import ACTOR_CRITIC, IMPALA, NATURE, pixels, shapes

from metarl.agents.action_model import StepPerAction
from metarl.agents.networks import build_network, build_value_network
from metarl.agents.torsos import MLP
from metarl.config import NatureTorso, NetworkConfig


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
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("activate_final", [False, True])
def test_mlp_equals_haikus(activation, activate_final):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    settings = {"activate_final": activate_final, "name": "mlp"}
    function = {"relu": jax.nn.relu, "tanh": jnp.tanh}[activation]
    theirs = hk.transform(
        lambda x: hk.nets.MLP((4, 6), activation=function, **settings)(x)
    )
    ours = hk.transform(lambda x: MLP((4, 6), activation=activation, **settings)(x))
    params = ours.init(jax.random.key(0), x)
    renamed = {name.replace("/", "/~/"): layer for name, layer in params.items()}
    y = ours.apply(params, None, x)
    np.testing.assert_allclose(y, theirs.apply(renamed, None, x), rtol=1e-12)
    assert (y < 0).any() == (not activate_final or activation == "tanh")


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
