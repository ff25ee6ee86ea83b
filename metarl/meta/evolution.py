"""Evolution strategies: the meta-gradient from what other rules come to.

An estimator beside those of `estimators.py`, behind the same signature. It sees what
the meta-parameters change in the data that is collected, which the gradient of a fixed
record cannot. `play` lets agents live by the rules that are tried; so this module needs
no environments. Dimension letters: R pairs of rules for each group, G groups.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from metarl.config import EvolutionConfig
from metarl.meta.estimators import Play, Population
from metarl.rules.base import Metrics
from metarl.types import Params, pytree


@pytree
class Particles:
    """What is left of the rules that were tried, from one meta-step to the next.

    Plain evolution strategies leave nothing: their agents are born anew.
    """

    population: Population | None = None  # [2 R G, K], as `play` has them
    # [R, G, ...] of each pair, the perturbations since its agents' birth, summed.
    perturbations: Params | None = None


@dataclasses.dataclass(frozen=True)
class EvolutionStrategies:
    """Antithetic evolution strategies (Salimans et al. 2017), or persistent ones.

    Every group has pairs of rules of its own, ``eta + e`` and ``eta - e`` with
    ``e ~ N(0, sigma^2)``, and so independent estimates of its own gradient:

        g = -1 / (2 sigma^2 R) * sum over pairs of (F(eta + e) - F(eta - e)) e.

    Persistent ones (PES: Vicol, Metz and Sohl-Dickstein, ICML 2021, Eq. 9 and the
    antithetic form below it) draw a new e for every unroll of agents that live on, and
    in place of e they weigh with the sum of all e since the agents' birth: what the
    earlier ones have led to counts too, so that truncation does not bias the sum over
    unrolls. Where a life is one unroll, both are the same.

    Attributes:
      config: sigma, R and what becomes of the fitness.
      groups: G.
      persistent: whether agents live on from one meta-step to the next.
    """

    config: EvolutionConfig
    groups: int
    persistent: bool = False

    def __call__(
        self,
        play: Play[Particles, None],
        meta_params: Params,
        population: Particles,
        key: jax.Array,
    ) -> tuple[Particles, Params, Metrics]:
        """Let all rules be played once; return gradients ``[G, ...]`` to descend.

        Args:
          play: given rules ``[R, 2, G, ...]``, what is left of those before, and a
            key, returns what is left then and the fitness ``[R, 2, G]``. Both rules of
            a pair must meet the same chance.
          meta_params: eta.
          population: what is left of the meta-step before.
          key: consumed.

        Returns:
          What is left, the gradients of the negative fitness, and metrics ``[G]``.
        """
        rules, perturbations, play_key = self.propose(
            meta_params, population.perturbations, key
        )
        population, fitness, _ = play(rules, population, play_key)
        grads, metrics = self.gradient(perturbations, fitness)
        kept = perturbations if self.persistent else None
        return dataclasses.replace(population, perturbations=kept), grads, metrics

    def begin(self, meta_params: Params) -> Params | None:
        """Return the sums of perturbations before the first unroll.

        Args:
          meta_params: for shapes.
        """
        if not self.persistent:
            return None
        return jax.tree.map(
            lambda x: jnp.zeros((self.config.pairs, self.groups, *x.shape), x.dtype),
            meta_params,
        )

    @partial(jax.jit, static_argnums=0)
    def propose(
        self, meta_params: Params, before: Params | None, key: jax.Array
    ) -> tuple[Params, Params, jax.Array]:
        """Return rules to be tried.

        Args:
          meta_params: eta.
          before: sums of the perturbations before; None: there are none.
          key: consumed.

        Returns:
          The rules ``[R, 2, G, ...]``, the sums with their perturbations ``[R, G,
          ...]``, and a key to play them with.
        """
        leaves, tree = jax.tree.flatten(meta_params)
        play_key, *keys = jax.random.split(key, len(leaves) + 1)
        lead = (self.config.pairs, self.groups)
        noise = [
            self.config.sigma * jax.random.normal(k, (*lead, *x.shape), x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]

        def pairs(x: jax.Array, e: jax.Array) -> jax.Array:
            center = jnp.broadcast_to(x, e.shape)
            return jnp.stack([center + e, center - e], axis=1)

        rules = jax.tree.unflatten(tree, list(map(pairs, leaves, noise)))
        total = jax.tree.unflatten(tree, noise)
        if before is not None:
            total = jax.tree.map(jnp.add, before, total)
        return rules, total, play_key

    @partial(jax.jit, static_argnums=0)
    def gradient(
        self, perturbations: Params, fitness: jax.Array
    ) -> tuple[Params, Metrics]:
        """Return the gradients ``[G, ...]`` of the negative fitness, and metrics.

        Args:
          perturbations: ``[R, G, ...]`` of the first rule of each pair.
          fitness: ``[R, 2, G]``.
        """
        config = self.config
        shaped = jax.vmap(self.shape, in_axes=2, out_axes=2)(fitness)
        differences = shaped[:, 0] - shaped[:, 1]
        scale = -1 / (2 * config.sigma**2 * config.pairs)

        def of_leaf(e: jax.Array) -> jax.Array:
            weighed = jnp.einsum("rg,rg...->g...", differences.astype(e.dtype), e)
            return scale * weighed

        metrics = {
            "loss": -jnp.mean(fitness, axis=(0, 1)),
            "fitness": jnp.mean(fitness, axis=(0, 1)),
            "fitness_deviation": jnp.std(fitness, axis=(0, 1)),
            "pair_difference": jnp.mean(jnp.abs(fitness[:, 0] - fitness[:, 1]), axis=0),
        }
        return jax.tree.map(of_leaf, perturbations), metrics

    def shape(self, fitness: jax.Array) -> jax.Array:
        """Return what counts of the ``fitness [R, 2]`` of one group's rules."""
        kind = self.config.shaping
        if kind == "standardized":
            centered = fitness - jnp.mean(fitness)
            deviation = jnp.std(fitness)
            # Where all rules are equally good there is nothing to be learned.
            return centered / jnp.where(deviation > 0, deviation, 1)
        if kind == "ranks":
            return _centered_ranks(fitness.reshape(-1)).reshape(fitness.shape)
        if kind == "pairs":
            return 0.5 * jnp.sign(fitness - fitness[:, ::-1])
        return fitness


def _centered_ranks(x: jax.Array) -> jax.Array:
    """Return ranks from -0.5 to 0.5 of ``x [n]``; equal numbers share their mean."""
    below = jnp.sum(x[None, :] < x[:, None], axis=1)
    equal = jnp.sum(x[None, :] == x[:, None], axis=1) - 1
    return (below + 0.5 * equal) / (x.shape[0] - 1) - 0.5
