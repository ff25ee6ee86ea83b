"""Estimators of the meta-gradient, all behind one signature.

An estimator is given `play` by the training loop, which lets the population act and
learn; so this module needs no environments. Reverse mode calls it once and
differentiates its record; evolution strategies are in `evolution.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import jax

from metarl.agents.agent import AgentState
from metarl.agents.population import map_groups
from metarl.meta.inner_loop import InnerLoop, Window
from metarl.meta.objective import ValueState
from metarl.rules.base import Metrics
from metarl.types import Params, pytree


@pytree
class Population:
    """All groups' agents and their meta-value functions; axes ``[G, K]``."""

    agents: AgentState
    values: ValueState | None  # None where nobody asks them


State = TypeVar("State")
Record = TypeVar("Record", contravariant=True)

Play = Callable[[Params, State, jax.Array], tuple[State, jax.Array, Record]]
"""``play(meta_params, population, key) -> population, objective [G], record``.

The record holds every group's window (axis G); the objective is what the agents
achieved after their updates."""


class Estimator(Protocol[State, Record]):
    """Estimates the gradient of the outer loss for the meta-parameters."""

    def __call__(
        self,
        play: Play[State, Record],
        meta_params: Params,
        population: State,
        key: jax.Array,
    ) -> tuple[State, Params, Metrics]:
        """Return the population after it, gradients ``[G, ...]``, metrics ``[G]``."""
        ...


@dataclasses.dataclass(frozen=True)
class ExactEstimator(abc.ABC):
    """Differentiates the record of one play, group by group.

    Attributes:
      inner_loop: what is differentiated.
      chunk: groups differentiated at once.
    """

    inner_loop: InnerLoop
    chunk: int = 1

    def __call__(
        self,
        play: Play[Population, Window],
        meta_params: Params,
        population: Population,
        key: jax.Array,
    ) -> tuple[Population, Params, Metrics]:
        """Play once and differentiate the record."""
        population, _, window = play(meta_params, population, key)
        grads, values, metrics = self.gradient(meta_params, window)
        return dataclasses.replace(population, values=values), grads, metrics

    @partial(jax.jit, static_argnums=0)
    def gradient(
        self, meta_params: Params, window: Window
    ) -> tuple[Params, ValueState, Metrics]:
        """Return gradients ``[G, ...]``, value functions after it, metrics ``[G]``."""
        return map_groups(
            lambda window: self.of_group(meta_params, window), window, chunk=self.chunk
        )

    @abc.abstractmethod
    def of_group(
        self, meta_params: Params, window: Window
    ) -> tuple[Params, ValueState, Metrics]:
        """Return the gradient of one group, its value functions and metrics."""


@dataclasses.dataclass(frozen=True)
class ReverseMode(ExactEstimator):
    """Reverse-mode differentiation of the unrolled updates."""

    def of_group(
        self, meta_params: Params, window: Window
    ) -> tuple[Params, ValueState, Metrics]:
        """Return the gradient of one group, its value functions and metrics."""
        grads, (_, values, metrics) = jax.grad(self.inner_loop.loss, has_aux=True)(
            meta_params, window
        )
        return grads, values, metrics
