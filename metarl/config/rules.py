"""Single-agent update rules, told apart by `kind`; `mutual.py` has the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from metarl.config.base import (
    Decay,
    EnvSteps,
    Model,
    NonNegative,
    Positive,
    Probability,
)


class RandomConfig(Model):
    """Uniform actions and no learning."""

    kind: Literal["random"] = "random"


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


class PPOConfig(Model):
    """Proximal policy optimisation (Schulman et al. 2017), with a clipped surrogate.

    The defaults are those of the authors' released code for Atari (OpenAI baselines,
    ppo2), with the bound of 0.2 that they take elsewhere.
    """

    kind: Literal["ppo"] = "ppo"
    discount: Probability = 0.99
    trace_lambda: Probability = 0.95
    """Of generalised advantage estimation (Schulman et al. 2016)."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1 and still be rewarded."""
    clip_values: bool = True
    """Bound the move of the values by `clip` too, as the released code does."""
    entropy_cost: NonNegative = 0.01
    value_cost: NonNegative = 0.5
    """Of half the squared error."""
    normalize_advantages: bool = True
    """Give the advantages of each minibatch mean 0 and deviation 1."""
    epochs: PositiveInt = 4
    """Passes over each batch."""
    minibatches: PositiveInt = 4
    """Gradient steps of each pass; must divide rollout_length * num_envs."""


class ScalarValuesConfig(Model):
    """Action values as plain numbers."""

    kind: Literal["scalar"] = "scalar"
    loss: Literal["squared", "huber"] = "squared"
    """Half the squared error; `huber`: linear beyond an error of 1 (Mnih et al. 2015
    clip its gradient there)."""


class CategoricalValuesConfig(Model):
    """Action values as distributions over bins in signed-hyperbolic space."""

    kind: Literal["categorical"] = "categorical"
    num_bins: Annotated[int, Field(ge=3)] = 101
    max_abs_value: Positive = 50.0
    """Bound of the bins, as of `actor_critic`."""


ValuesConfig = Annotated[
    ScalarValuesConfig | CategoricalValuesConfig, Field(discriminator="kind")
]


class QLearningConfig(Model):
    """Q-learning with a target network (Watkins 1989; Mnih et al. 2015)."""

    kind: Literal["q_learning"] = "q_learning"
    discount: Probability = 0.99
    values: ValuesConfig = ScalarValuesConfig()
    double: bool = False
    """Let the online network choose the action that the target network values (van
    Hasselt et al. 2016)."""
    trace_lambda: Probability = 0.0
    """Of Q(lambda), whose traces end where an action was not the greedy one; 0: targets
    of one step."""
    target_every: PositiveInt = 100
    """Updates between copies of the network to the target network."""
    epsilon_start: Probability = 1.0
    """Part of the actions that are uniform at birth."""
    epsilon_end: Probability = 0.01
    epsilon_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the lifetime, over which epsilon moves linearly from start to end."""
    epsilon_env_steps: EnvSteps | None = None
    """In its place, environment steps (of a group: in total over its agents)."""


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


class LPGConfig(Model):
    """Learned Policy Gradient (Oh et al. 2020); the defaults are that paper's.

    In its re-implementation (Jackson et al. 2023, GROOVE) predictions have 8 bins.
    """

    kind: Literal["lpg"] = "lpg"
    prediction_size: Annotated[int, Field(ge=2)] = 30
    """Bins of the prediction y."""
    lstm: PositiveInt = 256
    """Units of the LSTM; a few dozen are enough for small games, and far cheaper."""
    embedding_hidden: PositiveInt = 16
    """Hidden units of the MLP that embeds y."""
    y_cost: NonNegative = 0.5
    """Of KL(y || target); the policy's part has weight 1."""
    discount: Probability = 0.99
    """An input of the LSTM, and nothing else."""


class LPGCriticConfig(LPGConfig):
    """LPG whose LSTM sees what a value function says of the batch (ours)."""

    kind: Literal["lpg_critic"] = "lpg_critic"  # type: ignore[assignment]
    discount: Probability = 0.99
    """Of the value function."""
    trace_lambda: Probability = 0.95
    """Of the value function's V-trace."""
    value_cost: NonNegative = 0.5
    num_bins: Annotated[int, Field(ge=3)] = 101
    max_abs_value: Positive = 50.0
    """Bound of the value bins, in signed-hyperbolic space, as of `actor_critic`."""
    moments_decay: Decay = 0.99
    """Of the running moments that normalise advantages."""


class CustomConfig(Model):
    """A user's own rule: a class that derives from `metarl.rules.base.UpdateRule`."""

    kind: Literal["custom"] = "custom"
    rule: str
    """`module:Class`; made without arguments, from the working directory or
    PYTHONPATH."""
