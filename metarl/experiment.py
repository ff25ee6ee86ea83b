"""From the configuration of a run to what it is made of.

Builds the static parts (tasks, agents, inner loops) and the first state; `train.py`
runs them. No files, no environments.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from metarl.agents import population as agents_population
from metarl.agents.agent import Agent, AgentState
from metarl.agents.build import build_agent
from metarl.agents.group import takes_one_step
from metarl.agents.networks import build_value_network
from metarl.config import (
    EnvironmentConfig,
    MetaConfig,
    PopulationConfig,
    TrainConfig,
)
from metarl.config_families import check_families, settings_of
from metarl.envs.tasks import (
    PoolSpec,
    Task,
    envpool_options,
    pool_spec,
    resolve_environment,
)
from metarl.errors import UserError
from metarl.lifetimes import longest
from metarl.meta import trainer
from metarl.meta.estimators import ExactEstimator, Population, ReverseMode
from metarl.meta.evolution import EvolutionStrategies
from metarl.meta.inner_loop import InnerLoop
from metarl.meta.mixed_mode import MixedMode
from metarl.meta.objective import ValueFunction
from metarl.rollout.batches import batch_size
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.types import Params

ESTIMATORS: dict[str, type[ExactEstimator]] = {
    "mixed": MixedMode,
    "reverse": ReverseMode,
}
"""Those that differentiate, by the name of `meta.estimator`."""

MAX_MEMBERS = 8192
"""Groups that seeds leave room for, those of tried rules included."""

_PURPOSES = 8
"""Of PRNG keys: 0 the rule, 1 the first agents, 3 a meta-step, 4 its births. Those of
every stack after the first lie so much further on."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Groups whose arrays have equal shapes: one program acts and learns for them all.

    Attributes:
      index: among the population's stacks.
      members: numbers of its groups in the population, which decide their seeds.
      num_groups: of the population, in all its stacks.
      tasks: one per group.
      pool_spec: shapes of observations and actions.
      agent: what its agents have in common.
      estimator: of their meta-gradients.
      environment: how the tasks are played.
      population: settings of its agents.
    """

    index: int
    members: tuple[int, ...]
    num_groups: int
    tasks: tuple[Task, ...]
    pool_spec: PoolSpec
    agent: Agent
    estimator: ExactEstimator | EvolutionStrategies
    environment: EnvironmentConfig
    population: PopulationConfig

    @property
    def games(self) -> tuple[str, ...]:
        """Task ids of the games, each once, in order."""
        return tuple(dict.fromkeys(task.game.task_id for task in self.tasks))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The static parts of a run.

    Attributes:
      rule: that is being discovered; it moves all stacks.
      stacks: of the population; wherever all groups are in a row, in this order.
      games: task ids, each once, in the order in which agents cycle through them.
    """

    rule: UpdateRule
    stacks: tuple[Stack, ...]
    games: tuple[str, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One per group."""
        return tuple(task for stack in self.stacks for task in stack.tasks)

    @property
    def only(self) -> Stack:
        """The stack of a population that has one.

        Raises:
          UserError: it has more.
        """
        if len(self.stacks) > 1:
            first, second = (stack.games[0] for stack in self.stacks[:2])
            raise UserError(
                f"environment: {first} and {second} differ in shape, where all games "
                "must be of one (allowed: one of them at a time)"
            )
        return self.stacks[0]


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
            "train (allowed: disco, lpg, lpg_critic; try it by `metarl evaluate "
            f"{kind}`)"
        )
    experiment = assemble(config)
    agent = experiment.stacks[0].agent
    if config.meta.estimator in ESTIMATORS:
        _require_policy(experiment)
    if config.meta.estimator == "mixed" and not takes_one_step(agent.spec):
        raise UserError(
            f"meta.estimator=mixed: '{kind}' takes several gradient steps per batch "
            "(allowed for it: reverse, es, pes)"
        )
    _check_seeds(config.meta, agents=len(experiment.tasks))
    return experiment


def _check_seeds(meta: MetaConfig, *, agents: int) -> None:
    """Refuse more pairs of rules than pools have seeds for."""
    pairs = meta.evolution.pairs
    if meta.evolves and pairs * agents > MAX_MEMBERS:
        raise UserError(
            f"meta.evolution.pairs={pairs}: of {agents} agents each, seeds leave room "
            f"for {MAX_MEMBERS // agents} (allowed: 1 to {MAX_MEMBERS // agents})"
        )


def _require_policy(experiment: Experiment) -> None:
    """Refuse a rule whose agents act by something that the outer objective lacks."""
    for stack in experiment.stacks:
        actions = stack.pool_spec.num_actions
        heads = [h for h in stack.agent.spec.heads if not h.per_action]
        if {h.name: h.size for h in heads}.get("logits") != actions:
            raise UserError(
                f"update_rule: agents of {type(experiment.rule).__name__} have no "
                f"Head('logits', {actions}), the policy that meta-gradients go through "
                f"({', '.join(ESTIMATORS)}; es and pes need none)"
            )


def assemble(config: TrainConfig) -> Experiment:
    """Return the static parts that ``config`` describes, of any rule.

    Agents act and are updated by a hand-written rule too; see `build`.

    Raises:
      UserError: the games do not exist, or a setting cannot be.
    """
    check_families(config)
    rule = make_rule(config.update_rule)
    games = resolve_environment(config.environment, same_shapes=False)
    num_agents = config.population.num_agents or len(games)
    tasks = tuple(games[i % len(games)] for i in range(num_agents))
    members: dict[object, list[int]] = {}
    for member, task in enumerate(tasks):
        members.setdefault(_shapes(config, task), []).append(member)
    stacks = tuple(
        _stack(config, rule, index, tasks, members=tuple(together))
        for index, together in enumerate(members.values())
    )
    names = dict.fromkeys(task.game.task_id for task in tasks)
    return Experiment(rule, stacks, tuple(names))


def _shapes(config: TrainConfig, task: Task) -> object:
    """Return what agents must agree in to be of one stack."""
    family = task.game.family
    own = settings_of(config, family)
    if config.families.get(family):
        try:  # refuses what cannot be played
            envpool_options(task, own.environment)
        except UserError as error:
            raise UserError(f"families.{family}.{error}") from None
    spec = pool_spec(task, own.environment)
    settings = (own.agent, own.environment, own.population, own.meta)
    shapes = (spec.observation_shape, spec.observation_dtype, spec.num_actions)
    return (*settings, *shapes, spec.frame_stack)


def _stack(
    config: TrainConfig,
    rule: UpdateRule,
    index: int,
    tasks: tuple[Task, ...],
    *,
    members: tuple[int, ...],
) -> Stack:
    """Return a stack of those groups of a population that ``members`` numbers.

    They are of equal shapes; ``tasks`` has one for each group of the population.
    """
    first = tasks[members[0]]
    config = settings_of(config, first.game.family)
    spec = pool_spec(first, config.environment)
    batch_size(config.population.replay, num_envs=config.environment.num_envs)
    agent = build_agent(
        config.agent,
        rule,
        spec.num_actions,
        lifetime_env_steps=longest(config.population.lifetime_env_steps),
    )
    return Stack(
        index=index,
        members=members,
        num_groups=len(tasks),
        tasks=tuple(tasks[member] for member in members),
        pool_spec=spec,
        agent=agent,
        estimator=_estimator(config, agent, groups=len(members)),
        environment=config.environment,
        population=config.population,
    )


def _estimator(
    config: TrainConfig, agent: Agent, *, groups: int
) -> ExactEstimator | EvolutionStrategies:
    """Return what estimates the meta-gradients of a stack."""
    meta = config.meta
    if meta.evolves:
        persistent = meta.estimator == "pes"
        return EvolutionStrategies(meta.evolution, groups, persistent=persistent)
    value = meta.value_function
    torso = config.agent.network.torso if value.torso is None else value.torso
    inner_loop = InnerLoop(
        agent=agent,
        value_function=ValueFunction(
            build_value_network(torso, config.agent.network.convolution), value
        ),
        weights=meta.regularizers,
        remat=meta.remat,
        values_after=meta.slide if meta.overlaps else None,
    )
    return ESTIMATORS[meta.estimator](inner_loop, chunk=config.population.chunk)


def check_networks(experiment: Experiment, config: TrainConfig) -> None:
    """Refuse networks that cannot read what the games show.

    Raises:
      UserError: naming a game, where there are several stacks.
    """
    jax.eval_shape(lambda: initial_meta_params(experiment, config))
    for stack in experiment.stacks:
        try:
            jax.eval_shape(functools.partial(first_population, stack, config.seed))
        except UserError as error:
            if len(experiment.stacks) == 1:
                raise
            family = stack.tasks[0].game.family
            raise UserError(
                f"{error} (for {stack.games[0]}: families.{family}.agent.network may "
                "be another one)"
            ) from None


def initial_meta_params(experiment: Experiment, config: TrainConfig) -> Params:
    """Return the random meta-parameters that the seed stands for."""
    return jax.jit(experiment.rule.init_params)(_key(config.seed, 0))


def initial_meta(experiment: Experiment, meta_params: Params) -> trainer.MetaState:
    """Return the rule's optimisers, one per group."""
    groups = len(experiment.tasks)
    return jax.jit(functools.partial(trainer.init, groups=groups))(meta_params)


def first_population(stack: Stack, seed: int) -> Population:
    """Return the agents that a run begins with."""
    return _newborn(stack, _key(seed, 1 + _PURPOSES * stack.index))


def newborn(stack: Stack, seed: int, meta_step: int) -> Population:
    """Return new agents for all groups, for those whose lifetime ends here."""
    return _newborn(stack, _step_key(seed, 4 + _PURPOSES * stack.index, meta_step))


@functools.partial(jax.jit, static_argnums=0)
def _newborn(stack: Stack, key: jax.Array) -> Population:
    spec, groups = stack.pool_spec, len(stack.tasks)
    example = jnp.zeros((1, *spec.observation_shape), spec.observation_dtype)
    agents_key, values_key = jax.random.split(key)
    agents = agents_population.init(
        stack.agent, agents_key, example, groups=groups, peers=1
    )
    if isinstance(stack.estimator, EvolutionStrategies):
        return Population(agents, None)
    value_function = stack.estimator.inner_loop.value_function
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


def newborn_by_draw(
    stack: Stack, seed: int, meta_step: int, draws: jax.Array
) -> AgentState:
    """Return new agents ``[len(draws), 1]``, equal ones for equal draws.

    Args:
      stack: what they have in common.
      seed: of the run.
      meta_step: meta-steps done.
      draws: ``i32[M]``.
    """
    key = _step_key(seed, 4 + _PURPOSES * stack.index, meta_step)
    return _newborn_by_draw(stack.agent, stack.pool_spec, key, draws)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _newborn_by_draw(
    agent: Agent, spec: PoolSpec, key: jax.Array, draws: jax.Array
) -> AgentState:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draws)
    example = jnp.zeros((1, *spec.observation_shape), spec.observation_dtype)
    return agents_population.init_each(agent, keys[:, None], example)


def meta_step_key(stack: Stack, seed: int, meta_step: int) -> jax.Array:
    """Return a stack's key of one meta-step: no PRNG state needs to be kept."""
    return _step_key(seed, 3 + _PURPOSES * stack.index, meta_step)


def _step_key(seed: int, purpose: int, meta_step: int) -> jax.Array:
    path = np.array([purpose, meta_step], np.uint32)
    return _fold_in(seed, jax.device_put(path))


@functools.partial(jax.jit, static_argnums=0)
def _fold_in(seed: int, path: jax.Array) -> jax.Array:
    key = jax.random.key(seed)
    for i in range(path.shape[0]):
        key = jax.random.fold_in(key, path[i])
    return key


def _key(seed: int, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), purpose)
