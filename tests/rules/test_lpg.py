"""LPG against a plain loop and its formulas, and as a rule among the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.experience import make_experience

from metarl import config_loader
from metarl.config import LPGConfig, TrainConfig
from metarl.errors import UserError
from metarl.rule_files import (
    export_rule,
    load_rule,
    new_manifest,
    save_rule,
    show_rule,
)
from metarl.rules import make_rule
from metarl.rules.base import Head, Metrics, Targets
from metarl.rules.lpg import LPG
from metarl.types import Experience, Params

CONFIG = LPGConfig(prediction_size=5, lstm=3, embedding_hidden=4, discount=0.9)
RULE = LPG(CONFIG)
T, B, A = 6, 3, 3


def new_params(seed: int = 0) -> Params:
    """Return meta-parameters without a zero, in NumPy."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(RULE.init_params, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def experience_with_ends() -> Experience:
    """Return a batch with an end of every kind, and others' trajectories.

    Trajectory 0 ends after step 1 and is reset in step 2; 1 is truncated after step 3
    and reset in step 4; 2 is another agent's.
    """
    experience = make_experience(jax.random.key(3), RULE, T=T, B=B, A=A)
    flags = {name: np.zeros((T, B), bool) for name in ("is_terminal", "cut")}
    valid, own = np.ones((T, B), bool), np.ones((T, B), bool)
    flags["is_terminal"][1, 0], valid[2, 0] = True, False
    flags["cut"][3, 1], valid[4, 1] = True, False
    own[:, 2] = False
    transitions = dataclasses.replace(
        experience.transitions,
        **{name: jnp.asarray(x) for name, x in flags.items()},
        valid=jnp.asarray(valid),
        own=jnp.asarray(own),
    )
    return dataclasses.replace(experience, transitions=transitions)


@jax.jit
def run(params: Params, experience: Experience) -> tuple[Targets, Metrics, Metrics]:
    """Return targets, metrics and regularisers."""
    targets, state, metrics = RULE.targets(params, {}, experience, jax.random.key(0))
    assert state == {}
    return targets, metrics, RULE.regularizers(targets, experience)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def plain_targets(params: Params, experience: Experience, b: int) -> Targets:
    """Return the targets of one trajectory, one transition after another."""
    p, t = params, jax.device_get(experience.transitions)
    outputs = jax.device_get(experience.outputs)

    def phi(logits: np.ndarray) -> float:
        net = p["y_embedding"]
        hidden = softmax(logits) @ net["hidden"]["w"] + net["hidden"]["b"]
        return float((np.maximum(hidden, 0) @ net["out"]["w"] + net["out"]["b"])[0])

    hidden, cell = np.zeros(CONFIG.lstm), np.zeros(CONFIG.lstm)
    pi_hat, y_hat = np.zeros(T), np.zeros((T, CONFIG.prediction_size))
    for i in reversed(range(T)):
        ended = bool(t.is_terminal[i, b])
        if ended or t.cut[i, b]:
            hidden, cell = np.zeros(CONFIG.lstm), np.zeros(CONFIG.lstm)
        if t.valid[i, b]:
            x = [
                t.rewards[i, b],
                float(ended),
                CONFIG.discount,
                softmax(outputs["logits"][i, b])[t.actions[i, b]],
                phi(outputs["y"][i, b]),
                0.0 if ended else phi(outputs["y"][i + 1, b]),
            ]
            gates = np.concatenate([x, hidden]) @ p["lstm"]["w"] + p["lstm"]["b"]
            add, new, keep, show = np.split(gates, 4)
            cell = sigmoid(keep + 1) * cell + sigmoid(add) * np.tanh(new)
            hidden = sigmoid(show) * np.tanh(cell)
        pi_hat[i] = (hidden @ p["pi_target"]["w"] + p["pi_target"]["b"])[0]
        y_hat[i] = hidden @ p["y_target"]["w"] + p["y_target"]["b"]
    return {"pi": pi_hat, "y": y_hat}


@pytest.mark.usefixtures("x64")
def test_targets_are_those_of_a_plain_loop() -> None:
    params, experience = new_params(), experience_with_ends()
    targets, metrics, regularizers = run(params, experience)
    t = jax.device_get(experience.transitions)
    plain = [plain_targets(params, experience, b) for b in range(B)]
    assert max(np.abs(x["pi"]).max() for x in plain) > 1  # no bound on pi_hat
    for b in range(B):
        rows = t.valid[:, b]
        for name in ("pi", "y"):
            np.testing.assert_allclose(
                targets[name][rows, b], plain[b][name][rows], rtol=1e-12
            )

    own = t.valid & t.own
    pi_hat = np.stack([x["pi"] for x in plain], axis=1)[own]
    y_hat = np.stack([x["y"] for x in plain], axis=1)[own]
    y_hat = np.array([softmax(x) for x in y_hat])
    assert float(metrics["pi_hat"]) == pytest.approx(pi_hat.mean())
    entropy = -(y_hat * np.log(y_hat)).sum(axis=1).mean()
    assert float(metrics["rule_entropy_y"]) == pytest.approx(entropy)
    assert float(regularizers["l2_pi"]) == pytest.approx((pi_hat**2).mean())
    assert float(regularizers["l2_y"]) == pytest.approx((y_hat**2).sum(axis=1).mean())
    assert set(regularizers) == {"l2_pi", "l2_y"}


@pytest.mark.usefixtures("x64")
def test_loss_and_gradient_are_the_formulas() -> None:
    experience = experience_with_ends()
    t = experience.transitions
    rng = np.random.default_rng(5)
    targets = {"pi": rng.normal(size=(T, B)), "y": rng.normal(size=(T, B, 5))}
    outputs = {name: np.asarray(x[:-1]) for name, x in experience.outputs.items()}

    def total(outputs: dict[str, jax.Array]) -> tuple[jax.Array, object]:
        loss, parts = RULE.loss(outputs, {}, targets, t)
        return jnp.sum(loss), (loss, parts)

    gradient = jax.jit(jax.grad(total, has_aux=True))
    grads, (loss, parts) = gradient(outputs)
    for i, b in np.ndindex(T, B):
        pi, y = softmax(outputs["logits"][i, b]), softmax(outputs["y"][i, b])
        pi_hat, y_hat = targets["pi"][i, b], softmax(targets["y"][i, b])
        action = int(t.actions[i, b])
        divergence = float(np.sum(y * np.log(y / y_hat)))  # prediction first
        policy = -pi_hat * np.log(pi[action])
        np.testing.assert_allclose(parts["policy_loss"][i, b], policy)
        np.testing.assert_allclose(parts["y_loss"][i, b], divergence)
        own = float(t.own[i, b])
        np.testing.assert_allclose(loss[i, b], own * (policy + 0.5 * divergence))
        np.testing.assert_allclose(
            grads["logits"][i, b], -own * pi_hat * (np.eye(A)[action] - pi), atol=1e-12
        )
        np.testing.assert_allclose(
            grads["y"][i, b],
            own * 0.5 * y * (np.log(y / y_hat) - divergence),
            atol=1e-12,
        )


@pytest.mark.usefixtures("x64")
def test_only_a_truncated_episode_looks_at_its_final_frame() -> None:
    params, experience = new_params(), experience_with_ends()
    y = experience.outputs["y"]
    # Observation t + 1 of the terminal transition, and of the truncated one.
    changed = dataclasses.replace(
        experience,
        outputs=experience.outputs
        | {"y": y.at[2, 0].set(jnp.arange(5.0)).at[4, 1].set(jnp.arange(5.0))},
    )
    before, after = (run(params, x)[0]["pi"] for x in (experience, changed))
    valid = experience.transitions.valid
    np.testing.assert_array_equal(before[:, 0][valid[:, 0]], after[:, 0][valid[:, 0]])
    assert np.all(before[:4, 1] != after[:4, 1])
    np.testing.assert_array_equal(before[5:, 1], after[5:, 1])


def test_heads_and_sizes_of_the_defaults() -> None:
    rule = make_rule(LPGConfig())
    assert rule.spec(4).heads == (Head("logits", 4), Head("y", 30))
    assert rule.spec(4).target_network.kind == "none"
    shapes = jax.eval_shape(rule.init_params, jax.random.key(0))
    # Embedding 30-16-1, LSTM of 256 units on 6 inputs, outputs of 1 and 30.
    expected = (31 * 16 + 17) + (6 + 256 + 1) * 4 * 256 + 257 * 31
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_a_new_rule_reinforces_nothing() -> None:
    experience = make_experience(jax.random.key(3), RULE, T=T, B=B, A=A)
    params = RULE.init_params(jax.random.key(1))
    targets, _, _ = run(params, experience)
    assert not np.any(targets["pi"])
    assert np.all(np.any(targets["y"] != 0, axis=-1))

    def reinforced(params: Params) -> jax.Array:
        targets, _, _ = run(params, experience)
        return jnp.sum(targets["pi"] * experience.transitions.rewards)

    # Zeros that meta-training can leave, by what the LSTM saw.
    grads = jax.grad(reinforced)(params)
    assert np.all(grads["pi_target"]["w"] != 0)


def test_saved_loaded_and_shown(tmp_path: Path) -> None:
    written = save_rule(tmp_path / "lpg", new_params(), new_manifest(CONFIG))
    loaded = load_rule(tmp_path / "lpg")
    assert loaded.rule == RULE
    assert loaded.manifest == written
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.meta_params, new_params()))
    shown = show_rule(tmp_path / "lpg")
    for words in (["kind", "lpg"], ["y_target/w", "3", "x", "5"]):
        assert any(line.split()[: len(words)] == words for line in shown.splitlines())
    with pytest.raises(UserError, match="only 'disco' has a published format"):
        export_rule(tmp_path / "lpg", tmp_path / "out.npz")
    other = CONFIG.model_copy(update={"lstm": 4})
    with pytest.raises(UserError, match="the configuration needs"):
        save_rule(tmp_path / "other", new_params(), new_manifest(other))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("prediction_size: 1", "update_rule.prediction_size=1: "),
        ("lstm: 0", "update_rule.lstm=0: "),
        ("y_cost: -1", "update_rule.y_cost=-1: "),
        ("discount: 1.5", "update_rule.discount=1.5: "),
        ("embeding_hidden: 4", "did you mean 'embedding_hidden'?"),
    ],
)
def test_a_mistake_is_one_line(options: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_loader.load(TrainConfig, [], [f"update_rule={{kind: lpg, {options}}}"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
