"""`metarl train`: the population, the meta-gradient, validation, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    Tag,
    model_validator,
)

from metarl.config.agent import AgentConfig, Torso
from metarl.config.base import (
    Decay,
    EnvSteps,
    Model,
    NonNegative,
    Positive,
    Probability,
)
from metarl.config.environment import EnvironmentConfig
from metarl.config.mutual import RuleConfig
from metarl.config.rules import DiscoConfig
from metarl.config.shared import RuntimeConfig, TrackingConfig


class ValueFunctionConfig(Model):
    """The meta-value function of the outer objective."""

    torso: Torso | None = None
    """None: the agent's."""
    learning_rate: Positive = 1e-3
    """REF 1e-3; N 3e-4."""
    max_abs_update: Positive = 1.0
    discount: Probability = 0.99
    """REF 0.99; N 0.997."""
    trace_lambda: Probability = 0.96
    """REF 0.96; N 0.95."""
    moments_decay: Decay = 0.99


class RegularizerConfig(Model):
    """Weights of the outer objective's regularisers, where a rule has them.

    All from REF (N states none), but for those of `lpg` alone, from Jackson et al.
    (2023), Table 2, which has 0.05 and 1e-3 for the entropies of policy and y.
    """

    policy_entropy: NonNegative = 1e-2
    y_entropy: NonNegative = 1e-3
    z_entropy: NonNegative = 1e-3
    squared_mean: NonNegative = 1e-3
    """`disco`: of the squared mean of the targets for pi, y and z, each."""
    target_kl: NonNegative = 1e-2
    """`disco`: of KL(target network's policy || policy target)."""
    l2_pi: NonNegative = 5e-3
    """`lpg`: of the mean square of pi_hat."""
    l2_y: NonNegative = 1e-3
    """`lpg`: of the mean squared norm of the probabilities y_hat."""


class MetaOptimizerConfig(Model):
    """One Adam per group on its meta-gradient; their steps are averaged (N)."""

    learning_rate: Positive = 1e-3
    """N 1e-3; REF 5e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over `schedule_meta_steps`; afterwards the rate stays at its end."""
    end_learning_rate: NonNegative = 0.0
    """Where a `linear` or `cosine` schedule ends."""
    schedule_meta_steps: PositiveInt | None = None
    """Meta-steps that a schedule takes; to be given for all but `constant`, since a run
    may be extended."""
    warmup_meta_steps: Annotated[int, Field(ge=0)] = 0
    """Meta-steps during which the rate is multiplied by a factor that rises linearly,
    from 1 / warmup_meta_steps."""
    reset_with_lifetime: bool = False
    """Whether a group's Adam begins anew when its agents' lifetime ends."""
    max_grad_norm: Positive = 1.0
    """Each group's meta-gradient is scaled down to this global norm (N)."""
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8

    @model_validator(mode="after")
    def _length_of_schedule(self) -> MetaOptimizerConfig:
        if self.schedule != "constant" and self.schedule_meta_steps is None:
            raise ValueError(
                f"schedule={self.schedule} needs schedule_meta_steps, the meta-steps "
                "that it takes"
            )
        return self


class EvolutionConfig(Model):
    """Evolution strategies: rules tried in antithetic pairs, eta + e and eta - e.

    TA: Jackson et al. (2024), who meta-train LPG so. OPEN: Goldie et al. (2024).
    """

    sigma: Positive = 0.1
    """Standard deviation of each entry of e (TA 0.1)."""
    pairs: PositiveInt = 32
    """Pairs for each agent of the population (OPEN: 64 rules)."""
    fitness: Literal["mean", "final"] = "mean"
    """What a lifetime is worth, of `es`: the mean return of all its validation
    rollouts, or that of the last one (TA). `pes`: their mean."""
    shaping: Literal["raw", "standardized", "ranks", "pairs"] = "raw"
    """What becomes of the fitness of an agent's 2 * pairs rules: nothing; mean 0 and
    deviation 1; evenly spaced ranks in [-0.5, 0.5] (Salimans et al. 2017); which of
    each pair is the better one (TA). All but `raw` bias `pes`."""
    pairs_at_once: PositiveInt | None = None
    """`es`: pairs that play side by side, which bounds memory and changes results by
    rounding alone; must divide `pairs`. None: all, as always with `pes`."""

    @model_validator(mode="after")
    def _equal_parts(self) -> EvolutionConfig:
        if self.pairs_at_once and self.pairs % self.pairs_at_once:
            raise ValueError(
                f"pairs_at_once={self.pairs_at_once} does not divide pairs={self.pairs}"
            )
        return self


Acting = Literal["current", "lagged", "initial"]
"""Which parameters act for the rollouts of a meta-step."""


class MetaConfig(Model):
    """How the rule is meta-trained."""

    inner_updates: PositiveInt = 2
    """N: agent updates that each meta-gradient goes back through (N 20; REF 2)."""
    window: Literal["block", "sliding"] = "block"
    """Which N updates: those that agents have made since the last meta-step (`block`);
    or their newest N, of which `slide` are new, recomputed with the rule as it is now
    (`sliding`, N)."""
    slide: PositiveInt = 1
    """Updates that a sliding window moves on by in each meta-step; at most N."""
    acting: Acting = "current"
    """Whether each rollout is acted with the parameters just updated (`current`), with
    those one update before, so that it can be acted while that update is computed
    (`lagged`; importance weights correct for it), or all of a meta-step's with those at
    its start (`initial`, REF)."""
    validation_rollouts: PositiveInt = 2
    """Length of the validation rollout, in rollouts (REF 2)."""
    estimator: Literal["mixed", "reverse", "es", "pes"] = "mixed"
    """How the meta-gradient is computed: mixed mode (forward over reverse) or reverse
    over reverse, which are equal but for rounding; mixed mode is faster, and needs a
    rule that takes one gradient step per batch. Or estimated by trying other rules:
    evolution strategies over whole lifetimes (`es`), or persistent ones, over
    `inner_updates` updates (`pes`, Vicol et al. 2021)."""
    evolution: EvolutionConfig = EvolutionConfig()
    remat: bool = True
    """Recompute each inner update in the backward pass, so that memory grows with N
    only by the agents' states. Without it mixed mode keeps what the rule computed, and
    reverse mode everything."""
    optimizer: MetaOptimizerConfig = MetaOptimizerConfig()
    value_function: ValueFunctionConfig = ValueFunctionConfig()
    regularizers: RegularizerConfig = RegularizerConfig()
    max_skipped: PositiveInt = 10
    """Meta-steps in a row with a non-finite meta-gradient after which the run stops."""

    @model_validator(mode="after")
    def _slide_within_the_window(self) -> MetaConfig:
        if self.window == "sliding" and self.slide > self.inner_updates:
            raise ValueError(
                f"slide={self.slide} is more than the window's "
                f"inner_updates={self.inner_updates}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_that_the_estimator_ignores(self) -> MetaConfig:
        if not self.evolves:
            if self.evolution != EvolutionConfig():
                raise ValueError(
                    f"evolution is for estimator=es or pes, not {self.estimator} "
                    "(leave it out)"
                )
            return self
        default = MetaConfig()
        for name in ("window", "slide", "remat", "value_function", "regularizers"):
            value = getattr(self, name)
            if value != getattr(default, name):
                shown = "" if isinstance(value, Model) else f"={value}".lower()
                raise ValueError(
                    f"{name}{shown} is for meta-gradients through updates, not for "
                    f"estimator={self.estimator} (leave it out)"
                )
        if self.optimizer.reset_with_lifetime:
            raise ValueError(
                "optimizer.reset_with_lifetime=true: with "
                f"estimator={self.estimator} an Adam serves many lifetimes "
                "(allowed: false)"
            )
        if self.estimator == "pes":
            for name in ("fitness", "pairs_at_once"):
                value = getattr(self.evolution, name)
                if value != getattr(default.evolution, name):
                    raise ValueError(
                        f"evolution.{name}={value} is for estimator=es, not pes "
                        "(leave it out)"
                    )
        return self

    @property
    def evolves(self) -> bool:
        """Whether the meta-gradient is estimated by trying other rules."""
        return self.estimator in ("es", "pes")

    @property
    def acted_updates(self) -> int:
        """Updates that agents make in each meta-step."""
        return self.inner_updates if self.window == "block" else self.slide

    @property
    def overlaps(self) -> bool:
        """Whether windows share updates; one that slides by all of it is a block."""
        return self.acted_updates < self.inner_updates


class PopulationReplayConfig(Model):
    """Replay of an agent's own trajectories, first in first out."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the trajectories of each update that are replayed (N 0.9). A batch has
    num_envs / (1 - share) of them, which must be whole, and always holds the new
    ones."""
    capacity: PositiveInt = 1024
    """Trajectories that each agent keeps."""


Lifetimes = Annotated[
    Annotated[EnvSteps, Tag("budget")]
    | Annotated[tuple[EnvSteps, ...], Field(min_length=1), Tag("budgets")],
    # So that a mistake is told of the form that was meant.
    Discriminator(lambda x: "budgets" if isinstance(x, list | tuple) else "budget"),
]


class PopulationConfig(Model):
    """The agents that the rule is meta-trained on."""

    num_agents: Annotated[int, Field(gt=0, le=8192)] | None = None
    """Agents, cycling through the games in order; None: one per game. Seeds leave room
    for 8,192."""
    rollout_length: PositiveInt = 16
    """T: transitions per agent update (N 29; REF 16)."""
    lifetime_env_steps: Lifetimes = 200_000_000
    """Environment steps after which an agent is replaced by a new one, and schedules
    end; a list: of each life one of them, drawn with probability proportional to its
    inverse (N: 200, 100, 50 and 20 million). The first lives are staggered, over all
    agents."""
    replay: PopulationReplayConfig = PopulationReplayConfig()
    chunk: PositiveInt = 1
    """The most agents that one device call acts for or updates together (vmap): where
    there are fewer, all; else the others follow one after another. Results do not
    depend on it but for rounding."""
    overlap: Literal["auto", "always", "never"] = "auto"
    """Let agents act, in a thread, while updates and meta-gradients are computed,
    wherever `meta.acting` lets that change no result; takes the memory of two more
    rollouts. `auto`: where the device is not the CPU, which has no time to spare."""


class CheckpointConfig(Model):
    """What is saved while meta-training."""

    every: PositiveInt = 100
    """Meta-steps between checkpoints; the last one is always saved."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    replay: bool = True
    """Save the trajectories that agents keep too, in replays (`population.replay`) and
    sliding windows (`meta.window`), which may be by far the largest part. Without them
    both are empty where a run is resumed: agents learn from new trajectories alone and
    windows are short until they fill, so that it is not the same to the bit as a run
    that was never stopped."""


class ValidationConfig(Model):
    """Fresh agents with the frozen rule on other games, while it is meta-trained.

    Their score says how good the rule is, and which rule of the run is the best.
    """

    every: Annotated[int, Field(ge=0)] = 0
    """Meta-steps between validations; the rule of the last meta-step is validated too.
    0: none."""
    suite: str | None = None
    """To validate on; see `metarl games`."""
    games: tuple[str, ...] = ()
    """Games by task id, in place of a suite, or several suites."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    """Of each game's agents."""
    env_steps: EnvSteps | None = None
    """Of each agent; None: the suite's budget, as in `metarl evaluate`."""
    overrides: tuple[str, ...] = ()
    """Other settings of `metarl evaluate`, such as environment.num_envs=8, on top of
    those that it would take for this rule."""
    allow_seen: bool = False
    """Accept games that the rule is meta-trained on, which validate nothing: how well
    it teaches those is all that the score then says."""


class TrainConfig(Model):
    """`metarl train`: meta-train a rule on a population of agents."""

    exp_name: str = "metarl"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    run_dir: Path | None = None
    """None: runs/{exp_name}__{seed}__{time}."""
    meta_steps: PositiveInt = 1000
    initial_rule: Path | None = None
    """A rule file to start from (finetuning); None: random meta-parameters."""
    environment: EnvironmentConfig = EnvironmentConfig()
    population: PopulationConfig = PopulationConfig()
    agent: AgentConfig = AgentConfig()
    families: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """What differs for the games of a family (`metarl games` names them), laid over
    the sections agent, environment, population and meta: `{atari: {agent: {network:
    {torso: {kind: nature}}}, environment: {num_envs: 8}}}`."""
    update_rule: RuleConfig = DiscoConfig()
    meta: MetaConfig = MetaConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
