"""Learners whose networks are a matrix per head, and experience for them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metarl.config import DiscoConfig
from metarl.learner import Learner
from metarl.rollout.builder import RolloutBuilder
from metarl.rule_files import LoadedRule, new_manifest
from metarl.rules import make_rule
from metarl.rules.base import Head, UpdateRule
from metarl.types import Outputs, Params, Rollout

Pair = tuple[Callable[..., Params], Callable[..., Outputs]]
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
