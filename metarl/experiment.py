"""From the configuration of a run to what it is made of.

Builds the static parts (tasks, agent, inner loop) and the first state; `train.py`
runs them. No files, no environments.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents import population as agents_population
from metarl.agents.agent import Agent
from metarl.agents.build import build_agent
from metarl.agents.group import takes_one_step
from metarl.agents.networks import build_value_network
from metarl.config import TrainConfig
from metarl.envs.tasks import PoolSpec, Task, pool_spec, resolve_environment
from metarl.errors import UserError
from metarl.meta import trainer
from metarl.meta.estimators import ExactEstimator, Population, ReverseMode
from metarl.meta.inner_loop import InnerLoop
from metarl.meta.mixed_mode import MixedMode
from metarl.meta.objective import ValueFunction
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.types import Params

ESTIMATORS: dict[str, type[ExactEstimator]] = {
    "mixed": MixedMode,
    "reverse": ReverseMode,
}
"""By the name of `meta.estimator`."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The static parts of a run.

    Attributes:
      tasks: one per group; agents cycle through the games in order.
      pool_spec: shapes of observations and actions, the same for all.
      agent: what all agents have in common.
      estimator: of the meta-gradient.
    """

    tasks: tuple[Task, ...]
    pool_spec: PoolSpec
    agent: Agent
    estimator: ExactEstimator

    @property
    def rule(self) -> UpdateRule:
        """The rule that is being discovered."""
        return self.agent.rule

    @property
    def games(self) -> tuple[str, ...]:
        """Task ids of the games, each once, in order."""
        return tuple(dict.fromkeys(task.game.task_id for task in self.tasks))


def build(config: TrainConfig) -> Experiment:
    """Return the static parts of a run that meta-trains its rule.

    Raises:
      UserError: the games do not exist or do not fit together, or the rule has
        nothing to be meta-trained.
    """
    rule, kind = make_rule(config.update_rule), config.update_rule.kind
    if not jax.tree.leaves(jax.eval_shape(rule.init_params, jax.random.key(0))):
        raise UserError(
            f"update_rule.kind={kind}: a hand-written rule has no meta-parameters to "
            f"train (allowed: disco, lpg; try it by `metarl evaluate {kind}`)"
        )
    experiment = assemble(config)
    if config.meta.estimator == "mixed" and not takes_one_step(experiment.agent.spec):
        raise UserError(
            f"meta.estimator=mixed: '{kind}' takes several gradient steps per batch "
            "(allowed for it: reverse)"
        )
    return experiment


def assemble(config: TrainConfig) -> Experiment:
    """Return the static parts that ``config`` describes, of any rule.

    Agents act and are updated by a hand-written rule too; see `build`.

    Raises:
      UserError: the games do not exist or do not fit together.
    """
    rule = make_rule(config.update_rule)
    games = resolve_environment(config.environment)
    num_agents = config.population.num_agents or len(games)
    tasks = tuple(games[i % len(games)] for i in range(num_agents))
    spec = pool_spec(tasks[0], config.environment)
    agent = build_agent(
        config.agent,
        rule,
        spec.num_actions,
        lifetime_env_steps=config.population.lifetime_env_steps,
    )
    value = config.meta.value_function
    torso = config.agent.network.torso if value.torso is None else value.torso
    inner_loop = InnerLoop(
        agent=agent,
        value_function=ValueFunction(
            build_value_network(torso, config.agent.network.convolution), value
        ),
        weights=config.meta.regularizers,
        remat=config.meta.remat,
    )
    estimator = ESTIMATORS[config.meta.estimator](
        inner_loop, chunk=config.population.chunk
    )
    return Experiment(tasks, spec, agent, estimator)


def initial_meta_params(experiment: Experiment, config: TrainConfig) -> Params:
    """Return the random meta-parameters that the seed stands for."""
    return jax.jit(experiment.rule.init_params)(_key(config, 0))


def initial_state(
    experiment: Experiment, config: TrainConfig, meta_params: Params
) -> tuple[trainer.MetaState, Population]:
    """Return the rule's optimisers and newborn agents, one group per task."""
    init = jax.jit(functools.partial(trainer.init, groups=len(experiment.tasks)))
    return init(meta_params), _newborn(experiment, _key(config, 1))


def newborn(experiment: Experiment, config: TrainConfig, meta_step: int) -> Population:
    """Return new agents for all groups, for those whose lifetime ends here."""
    return _newborn(experiment, _step_key(config, 4, meta_step))


@functools.partial(jax.jit, static_argnums=0)
def _newborn(experiment: Experiment, key: jax.Array) -> Population:
    spec, groups = experiment.pool_spec, len(experiment.tasks)
    example = jnp.zeros((1, *spec.observation_shape), spec.observation_dtype)
    value_function = experiment.estimator.inner_loop.value_function
    agents_key, values_key = jax.random.split(key)
    agents = agents_population.init(
        experiment.agent, agents_key, example, groups=groups, peers=1
    )
    values = jax.vmap(jax.vmap(lambda key: value_function.init(key, example)))(
        jax.random.split(values_key, (groups, 1))
    )
    return Population(agents, values)


@jax.jit
def reborn(population: Population, newborn: Population, ended: jax.Array) -> Population:
    """Return the population with new agents in the groups that ``ended bool[G]``."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, newborn, population)


def meta_step_key(config: TrainConfig, meta_step: int) -> jax.Array:
    """Return the key of one meta-step: no PRNG state needs to be kept."""
    return _step_key(config, 3, meta_step)


def _step_key(config: TrainConfig, purpose: int, meta_step: int) -> jax.Array:
    path = np.array([purpose, meta_step], np.uint32)
    return _fold_in(config.seed, jax.device_put(path))


@functools.partial(jax.jit, static_argnums=0)
def _fold_in(seed: int, path: jax.Array) -> jax.Array:
    key = jax.random.key(seed)
    for i in range(path.shape[0]):
        key = jax.random.fold_in(key, path[i])
    return key


def _key(config: TrainConfig, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), purpose)
