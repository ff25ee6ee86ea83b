"""The typed schema of the YAML files: what can be configured, and what is allowed.

Knows no arrays; `config_loader.py` reads files and overrides into these models.
Sources of the defaults: Oh et al., Nature 648 (2025), "N" below, Methods and
Extended Data Table 6; its released notebooks (google-deepmind/disco_rl), "REF".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Model(BaseModel):
    """A frozen, hashable section that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


# --- Networks and optimisers ------------------------------------------------------


class MLPTorso(Model):
    """Layers of ReLU units on the flattened observation."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (512, 512)
    """Units of each layer (REF: 512, 512)."""
    activate_final: bool = False
    """Whether the last layer is followed by a ReLU too (REF: it is not)."""


class NatureTorso(Model):
    """The convolutional network of Mnih et al. (2015)."""

    kind: Literal["nature"] = "nature"
    channels: tuple[PositiveInt, ...] = (32, 64, 64)
    kernels: tuple[PositiveInt, ...] = (8, 4, 3)
    strides: tuple[PositiveInt, ...] = (4, 2, 1)
    dense: PositiveInt = 512

    @model_validator(mode="after")
    def _one_of_each(self) -> NatureTorso:
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError(
                "channels, kernels and strides must have the same length, got "
                f"{len(self.channels)}, {len(self.kernels)}, {len(self.strides)}"
            )
        return self


class ImpalaTorso(Model):
    """The residual network of Espeholt et al. (2018)."""

    kind: Literal["impala"] = "impala"
    channels: tuple[PositiveInt, ...] = (16, 32, 32)
    """Channels of each section; each halves the resolution."""
    blocks: PositiveInt = 2
    """Residual blocks in each section."""
    dense: PositiveInt = 256


Torso = Annotated[MLPTorso | NatureTorso | ImpalaTorso, Field(discriminator="kind")]


class ActionModelConfig(Model):
    """DiscoRL's action-conditional LSTM, one step per action, under z, q and aux_pi."""

    lstm: PositiveInt = 128
    """Units of the LSTM (REF: 128 in evaluation, 256 in discovery)."""
    head_hidden: tuple[PositiveInt, ...] = (128,)
    """Hidden layers of each head's MLP (REF: as wide as the LSTM)."""


class NetworkConfig(Model):
    """An agent's network; its heads come from the rule."""

    torso: Torso = MLPTorso()
    action_model: ActionModelConfig = ActionModelConfig()
    head_hidden: tuple[PositiveInt, ...] = ()
    """Hidden layers of the heads on the torso (logits, y, v)."""
    convolution: Literal["auto", "im2col", "native"] = "auto"
    """How convolutions are computed; `auto` takes im2col on CPU, where XLA runs
    convolutions inside loops on a slow path, and the native ones elsewhere."""


class OptimizerConfig(Model):
    """Adam whose scaled step is clipped elementwise (Oh et al. 2025, SI section 3)."""

    learning_rate: Positive = 5e-4
    end_learning_rate: NonNegative = 0.0
    """Where a `linear` or `cosine` schedule ends."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over the lifetime, in environment steps."""
    warmup_env_steps: Annotated[int, Field(ge=0)] = 0
    """Environment steps during which the schedule is multiplied by a factor that rises
    linearly from 0."""
    max_abs_update: Positive = 1.0
    """Bound of each entry of Adam's step before the learning rate."""
    weight_decay: NonNegative = 0.0
    """Decoupled: learning_rate * weight_decay * parameters is subtracted."""
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8


class AgentConfig(Model):
    """One base agent."""

    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


# --- Update rules -----------------------------------------------------------------


class PolicyGradientConfig(Model):
    """REINFORCE with an entropy bonus (Williams 1992)."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    discount: Probability = 0.99
    entropy_cost: NonNegative = 0.01
    moments_decay: Decay = 0.99
    """Of the running moments that normalise returns."""


class ActorCriticConfig(Model):
    """V-trace actor-critic (Espeholt et al. 2018) with categorical values."""

    kind: Literal["actor_critic"] = "actor_critic"
    discount: Probability = 0.99
    trace_lambda: Probability = 0.95
    entropy_cost: NonNegative = 0.01
    value_cost: NonNegative = 0.5
    num_bins: Annotated[int, Field(ge=3)] = 101
    max_abs_value: Positive = 50.0
    """Bound of the value bins, in signed-hyperbolic space: values up to about 2,300.
    Disco's 300 (59,000) makes a fresh head's noise large enough to spoil the policy
    before the values are learned."""
    normalize_advantages: bool = True
    """Divide advantages by a running standard deviation."""
    moments_decay: Decay = 0.99
    """Of the running moments behind it."""


class DiscoConfig(Model):
    """DiscoRL's meta-network (Oh et al. 2025); the defaults are Disco103's sizes."""

    kind: Literal["disco"] = "disco"
    prediction_size: Annotated[int, Field(ge=2)] = 600
    num_bins: Annotated[int, Field(ge=3)] = 601
    max_abs_value: Positive = 300.0
    trajectory_lstm: PositiveInt = 256
    lifetime_lstm: PositiveInt = 128
    embedding_hidden: PositiveInt = 16
    """Hidden units of the MLPs that embed y and z."""
    action_channels: tuple[PositiveInt, PositiveInt] = (16, 2)
    """Channels of the two action-embedding layers."""
    policy_channels: PositiveInt = 16
    lifetime_input: PositiveInt = 16
    pi_cost: NonNegative = 1.0
    y_cost: NonNegative = 1.0
    z_cost: NonNegative = 1.0
    aux_policy_cost: NonNegative = 1.0
    value_cost: NonNegative = 0.2
    discount: Probability = 0.997
    trace_lambda: Probability = 0.95
    target_coefficient: Probability = 0.9
    moments_decay: Decay = 0.99
    """Of the running moments that normalise advantages and TD errors."""


RuleConfig = Annotated[
    PolicyGradientConfig | ActorCriticConfig | DiscoConfig, Field(discriminator="kind")
]

# --- Environments -----------------------------------------------------------------


class AtariOptions(Model):
    """How Atari games are presented; EnvPool's names where it has one."""

    protocol: Literal["default", "machado", "dqn"] = "default"
    """`machado` sets sticky actions 0.25, all 18 actions, no life loss, 108,000 frames
    (Machado et al. 2018); `dqn` no sticky actions, life loss ends episodes, rewards
    clipped (Mnih et al. 2015). A preset overrides the options it names."""
    frame_size: Annotated[int, Field(ge=36, le=210)] = 84
    """Height and width in pixels."""
    frame_stack: PositiveInt = 4
    frame_skip: PositiveInt = 4
    grayscale: bool = True
    sticky_actions: Probability = 0.0
    """Probability of repeating the previous action."""
    noop_max: PositiveInt = 30
    """No-ops at the start of an episode: EnvPool draws from 1 to this."""
    fire_reset: bool = False
    full_action_set: bool = True
    """All 18 actions, so that games share shapes; else the game's minimal set."""
    episodic_life: bool = False
    max_episode_frames: PositiveInt = 108_000


class EnvironmentConfig(Model):
    """Which games, and how they are played."""

    suite: str | None = None
    """A suite by name; see `metarl games`."""
    games: tuple[str, ...] = ()
    """Games by task id, in place of a suite."""
    num_envs: Annotated[int, Field(gt=0, le=4096)] = 32
    """Environments of each agent; seeds leave room for 4,096."""
    num_threads: PositiveInt = 2
    """EnvPool's threads for all pools together; changes no result."""
    clip_rewards: bool = False
    """Train on rewards clipped to [-1, 1]; raw ones are logged all the same."""
    epoch_steps: PositiveInt = 1_000_000
    """Steps of each environment after which its pool is rebuilt with a new seed, which
    bounds the replay at resume; long against an episode, since the unfinished ones are
    dropped."""
    atari: AtariOptions = AtariOptions()


# --- Meta-training ----------------------------------------------------------------


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
    """Weights of the outer objective's regularisers; all from REF (N states none)."""

    policy_entropy: NonNegative = 1e-2
    y_entropy: NonNegative = 1e-3
    z_entropy: NonNegative = 1e-3
    squared_mean: NonNegative = 1e-3
    """Of the squared mean of the targets for pi, y and z, each."""
    target_kl: NonNegative = 1e-2
    """Of KL(target network's policy || policy target)."""


class MetaOptimizerConfig(Model):
    """One Adam per group on its meta-gradient; their steps are averaged (N)."""

    learning_rate: Positive = 1e-3
    """N 1e-3; REF 5e-4."""
    max_grad_norm: Positive = 1.0
    """Each group's meta-gradient is scaled down to this global norm (N)."""
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8


Acting = Literal["current", "lagged", "initial"]
"""Which parameters act for the rollouts of a meta-step."""


class MetaConfig(Model):
    """How the rule is meta-trained."""

    inner_updates: PositiveInt = 2
    """N: agent updates that each meta-gradient goes back through (N 20; REF 2)."""
    acting: Acting = "current"
    """Whether each rollout is acted with the parameters just updated (`current`), with
    those one update before, so that it can be acted while that update is computed
    (`lagged`; importance weights correct for it), or all of a meta-step's with those at
    its start (`initial`, REF)."""
    validation_rollouts: PositiveInt = 2
    """Length of the validation rollout, in rollouts (REF 2)."""
    estimator: Literal["mixed", "reverse"] = "mixed"
    """How the meta-gradient is computed: mixed mode (forward over reverse) or reverse
    over reverse. Equal but for rounding; mixed mode is faster, and needs a rule that
    takes one gradient step per batch."""
    remat: bool = True
    """Recompute each inner update in the backward pass, so that memory grows with N
    only by the agents' states. Without it mixed mode keeps what the rule computed, and
    reverse mode everything."""
    optimizer: MetaOptimizerConfig = MetaOptimizerConfig()
    value_function: ValueFunctionConfig = ValueFunctionConfig()
    regularizers: RegularizerConfig = RegularizerConfig()
    max_skipped: PositiveInt = 10
    """Meta-steps in a row with a non-finite meta-gradient after which the run stops."""


class PopulationConfig(Model):
    """The agents that the rule is meta-trained on."""

    num_agents: Annotated[int, Field(gt=0, le=8192)] | None = None
    """Agents, cycling through the games in order; None: one per game. Seeds leave room
    for 8,192."""
    rollout_length: PositiveInt = 16
    """T: transitions per agent update (N 29; REF 16)."""
    lifetime_env_steps: PositiveInt = 200_000_000
    """Environment steps after which an agent is replaced by a new one, and schedules
    end (N: drawn from 200, 100, 50 and 20 million). The first lives are staggered."""
    chunk: PositiveInt = 1
    """Agents that one device call acts for or updates together (vmap); the others
    follow one after another. Results do not depend on it but for rounding."""
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


class TrackingConfig(Model):
    """Weights & Biases, and how often a line is written."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when logged in, else offline. `WANDB_MODE` wins."""
    project: str = "metarl"
    entity: str | None = None
    log_every: PositiveInt = 1
    """Meta-steps between rows of metrics."""


class RuntimeConfig(Model):
    """Where and how XLA runs."""

    platform: Literal["auto", "cpu", "gpu"] = "auto"
    compilation_cache: bool = True
    """Keep compiled programs in ~/.cache/metarl, so that a second start is fast."""


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
    update_rule: RuleConfig = DiscoConfig()
    meta: MetaConfig = MetaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    runtime: RuntimeConfig = RuntimeConfig()


# --- Evaluation -------------------------------------------------------------------


class ReplayConfig(Model):
    """Replay of whole trajectories, first in first out (REF's evaluation)."""

    capacity: Annotated[int, Field(ge=0)] = 1024
    """Trajectories kept; 0: none, every batch is what was just acted."""
    ratio: PositiveInt = 32
    """How often each trajectory is trained on, on average: a batch has
    ratio * num_envs trajectories."""


class EvaluationConfig(Model):
    """`metarl evaluate`: train fresh agents with frozen rules."""

    exp_name: str = "evaluation"
    results_dir: Path = Path("results")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    env_steps: PositiveInt | None = None
    """Of each cell, in total over a group; None: the suite's budget."""
    rollout_length: PositiveInt = 29
    replay: ReplayConfig = ReplayConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    agent: AgentConfig = AgentConfig()
    curve_points: PositiveInt = 20
    """Rows of each learning curve."""
    cells_at_once: PositiveInt = 4
    """Cells of equal shapes trained side by side in one program."""
    tracking: TrackingConfig = TrackingConfig()
    runtime: RuntimeConfig = RuntimeConfig()


# --- Benchmarks -------------------------------------------------------------------


class BenchOptions(Model):
    """How `metarl bench` measures."""

    rollouts: Literal["synthetic", "environment"] = "synthetic"
    """What updates and meta-gradients are computed from: random experience of the
    right shapes, made on the device, or experience that new agents collected."""
    compare: bool = True
    """Measure what the case is to be compared with too."""
    warm_cache: bool = False
    """Read the measured programs from the cache of compiled programs where it has them,
    as a second start does; else each is compiled anew."""
    seconds: Positive = 10.0
    """How long each case is timed, in 10 calls or more; in 3 or more where 10 would
    take six times as long."""
    repeats: PositiveInt | None = None
    """Time exactly so many calls; None: as `seconds` says."""


class BenchConfig(TrainConfig):
    """`metarl bench`: time the parts of a run of `metarl train`."""

    bench: BenchOptions = BenchOptions()
