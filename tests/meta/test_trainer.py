"""The meta-update: averaged Adams of clipped gradients, groups that are skipped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl import config_loader
from metarl.config import MetaOptimizerConfig, TrainConfig
from metarl.errors import UserError
from metarl.meta import trainer
from metarl.types import Params

CONFIG = MetaOptimizerConfig(learning_rate=0.01, max_grad_norm=1.0)


def params() -> Params:
    return {"a": jnp.array([1.0, -2.0]), "b": {"w": jnp.array([[3.0]])}}


def gradients(seed: int, scales: list[float]) -> list[np.ndarray]:
    """Return a flat gradient ``[3]`` per group."""
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=3) for scale in scales]


def as_tree(flat: list[np.ndarray]) -> Params:
    stacked = jnp.asarray(np.stack(flat))
    return {"a": stacked[:, :2], "b": {"w": stacked[:, 2:, None]}}


def flatten(tree: Params) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


class AdamByHand:
    def __init__(self) -> None:
        self.count, self.mu, self.nu = 0, np.zeros(3), np.zeros(3)

    def direction(self, grad: np.ndarray) -> np.ndarray:
        grad = grad / max(1.0, np.linalg.norm(grad) / CONFIG.max_grad_norm)
        self.count += 1
        self.mu = 0.9 * self.mu + 0.1 * grad
        self.nu = 0.999 * self.nu + 0.001 * grad**2
        mu = self.mu / (1 - 0.9**self.count)
        return mu / (np.sqrt(self.nu / (1 - 0.999**self.count)) + 1e-8)


def test_the_step_is_the_mean_of_every_groups_adam(x64: None) -> None:
    state = trainer.init(params(), groups=3)
    expected, adams = flatten(params()), [AdamByHand() for _ in range(3)]
    for n in range(4):
        # The second group's gradient is long enough to be scaled down, the others not.
        grads = gradients(n, [0.1, 20.0, 0.01])
        before = expected
        directions = [a.direction(g) for a, g in zip(adams, grads, strict=True)]
        expected = expected - 0.01 * np.mean(directions, axis=0)
        state, metrics = trainer.update(CONFIG, state, as_tree(grads))
        np.testing.assert_allclose(flatten(state.params), expected, rtol=1e-12)
        norm = np.mean([np.linalg.norm(g) for g in grads])
        assert float(metrics["grad_norm"]) == pytest.approx(norm)
        assert float(metrics["update_norm"]) == pytest.approx(
            np.linalg.norm(expected - before)
        )
    assert int(state.skipped) == int(state.skipped_in_a_row) == 0
    np.testing.assert_array_equal(state.optimizers.count, [4, 4, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_group_without_a_finite_gradient_is_skipped(x64: None, bad: float) -> None:
    state = trainer.init(params(), groups=3)
    adams = [AdamByHand() for _ in range(3)]
    first = gradients(0, [0.1, 0.1, 0.1])
    for adam, grad in zip(adams, first, strict=True):
        adam.direction(grad)
    state, _ = trainer.update(CONFIG, state, as_tree(first))
    before = state

    grads = gradients(1, [0.1, 0.1, 0.1])
    grads[1][2] = bad
    directions = [adams[g].direction(grads[g]) for g in (0, 2)]
    expected = flatten(before.params) - 0.01 * np.mean(directions, axis=0)
    state, metrics = trainer.update(CONFIG, before, as_tree(grads))
    np.testing.assert_allclose(flatten(state.params), expected, rtol=1e-12)
    for new, old in tiny.pairs(state.optimizers, before.optimizers):
        np.testing.assert_array_equal(new[1], old[1])
    np.testing.assert_array_equal(state.optimizers.count, [2, 1, 2])
    assert int(state.skipped) == int(state.skipped_in_a_row) == 1
    assert int(metrics["skipped"]) == 1
    norm = np.mean([np.linalg.norm(grads[g]) for g in (0, 2)])
    assert float(metrics["grad_norm"]) == pytest.approx(norm)

    # A second one in a row is counted, and a good step ends the row.
    state, _ = trainer.update(CONFIG, state, as_tree(grads))
    assert int(state.skipped) == int(state.skipped_in_a_row) == 2
    state, _ = trainer.update(CONFIG, state, as_tree(first))
    assert int(state.skipped) == 2
    assert int(state.skipped_in_a_row) == 0


def test_nothing_moves_when_every_group_is_skipped() -> None:
    state = trainer.init(params(), groups=2)
    grads = [np.full(3, np.nan), np.full(3, np.inf)]
    after, metrics = trainer.update(CONFIG, state, as_tree(grads))
    tiny.assert_same_bits(after.params, state.params)
    tiny.assert_same_bits(after.optimizers, state.optimizers)
    assert int(after.skipped) == 2
    assert float(metrics["update_norm"]) == float(metrics["grad_norm"]) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            {"schedule": "linear", "schedule_meta_steps": 4, "end_learning_rate": 0.2},
            [1.0, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        (
            {"schedule": "cosine", "schedule_meta_steps": 4},
            [1.0, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5, 0.0, 0.0],
        ),
        ({"warmup_meta_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        (
            {"schedule": "linear", "schedule_meta_steps": 4, "warmup_meta_steps": 2},
            [0.5, 0.75, 0.5, 0.25, 0.0, 0.0],
        ),
    ],
)
def test_the_rate_follows_its_schedule(
    x64: None, settings: dict, expected: list[float]
) -> None:
    config = MetaOptimizerConfig(learning_rate=1.0, **settings)
    rates = [float(trainer.learning_rate(config, jnp.int32(n))) for n in range(6)]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_the_step_is_as_long_as_the_schedule_says(x64: None) -> None:
    scheduled = MetaOptimizerConfig(
        learning_rate=0.01, schedule="linear", schedule_meta_steps=10
    )
    state = other = trainer.init(params(), groups=2)
    for n in range(4):
        grads = as_tree(gradients(n, [1.0, 0.1]))
        before, unscheduled = flatten(state.params), flatten(other.params)
        state, metrics = trainer.update(scheduled, state, grads)
        other, _ = trainer.update(CONFIG, other, grads)
        step = flatten(other.params) - unscheduled
        np.testing.assert_allclose(
            flatten(state.params) - before, (1 - n / 10) * step, rtol=1e-10
        )
        assert float(metrics["learning_rate"]) == pytest.approx(0.01 * (1 - n / 10))


def test_a_schedule_needs_a_length() -> None:
    said = r"^meta\.optimizer: schedule=cosine needs schedule_meta_steps"
    with pytest.raises(UserError, match=said):
        config_loader.load(TrainConfig, [], ["meta.optimizer.schedule=cosine"])


def test_adams_begin_anew_where_they_are_told_to(x64: None) -> None:
    state = trainer.init(params(), groups=3)
    state, _ = trainer.update(CONFIG, state, as_tree(gradients(0, [1.0, 1.0, 1.0])))
    reset = trainer.reset_optimizers(state, jnp.array([False, True, False]))
    tiny.assert_same_bits(reset.params, state.params)
    np.testing.assert_array_equal(reset.optimizers.count, [1, 0, 1])
    for new, old in tiny.pairs(reset.optimizers, state.optimizers):
        assert np.all(np.asarray(old) != 0)
        np.testing.assert_array_equal(new[1], 0)
        np.testing.assert_array_equal(new[::2], old[::2])


def test_the_offending_tensor_is_named() -> None:
    grads = as_tree(gradients(0, [1.0, 1.0]))
    assert trainer.offending_leaf(grads) is None
    grads["b"]["w"] = grads["b"]["w"].at[1].set(jnp.nan)
    assert trainer.offending_leaf(grads) == "['b']['w']"
