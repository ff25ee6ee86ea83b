"""Networks and value functions reproduce the reference's golden arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import TINY, disco_spec, shapes

from metarl.agents import golden_names
from metarl.agents.networks import build_network, build_value_network
from metarl.config import MLPTorso
from metarl.errors import UserError
from metarl.numerics import signed_hyperbolic


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
    network = build_network(TINY, disco_spec(3), 3)
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
