"""Base agents: their networks and optimisers.

Sources of the defaults: Oh et al., Nature 648 (2025), "N" in all of this package,
Methods and Extended Data Table 6; its released notebooks (google-deepmind/disco_rl),
"REF".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from metarl.config.base import Decay, Model, NonNegative, Positive


class MLPTorso(Model):
    """Layers on the flattened observation; without any, the observation itself."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (512, 512)
    """Units of each layer (REF: 512, 512)."""
    activate_final: bool = False
    """Whether the last layer is followed by the activation too (REF: it is not)."""


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
    """Hidden layers of the heads on the torso (logits, y, v; q of `q_learning`)."""
    activation: Literal["relu", "leaky_relu", "tanh"] = "relu"
    """Between the layers of an `mlp` torso and of the heads on the torso. The slope of
    `leaky_relu` below 0 is 0.01."""
    initialization: Literal["fan_in", "orthogonal"] = "fan_in"
    """Of the weights of the torso and of the heads on it. `fan_in`: truncated normals
    of deviation 1 / sqrt(inputs), 0.01 in the last layer of each head (REF).
    `orthogonal`: of gain sqrt(2), in the last layer 0.01 for logits and 1 for other
    heads (PPO's released code, OpenAI baselines)."""
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
    max_grad_norm: Positive | None = None
    """Global norm that an agent's gradient is scaled down to before Adam sees it; null:
    it is left as it is."""
    weight_decay: NonNegative = 0.0
    """Decoupled: learning_rate * weight_decay * parameters is subtracted."""
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8


class AgentConfig(Model):
    """One base agent."""

    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
