"""The typed schema of the YAML files: what can be configured, and what is allowed.

Knows no arrays; `config_loader.py` reads files and overrides into these models.
"""

from __future__ import annotations

from metarl.config.agent import (
    ActionModelConfig,
    AgentConfig,
    ImpalaTorso,
    MLPTorso,
    NatureTorso,
    NetworkConfig,
    OptimizerConfig,
    Torso,
)
from metarl.config.base import Decay, Model, NonNegative, Positive, Probability
from metarl.config.benchmarks import BenchConfig, BenchOptions
from metarl.config.environment import AtariOptions, EnvironmentConfig
from metarl.config.evaluation import (
    EvaluationConfig,
    FinalScoreConfig,
    NamedRuleConfig,
    ReplayConfig,
    TuningConfig,
)
from metarl.config.mutual import (
    MUTUAL,
    AdvantageSharingConfig,
    DeepMutualLearningConfig,
    MutualRuleConfig,
    PeerRolloutPoolingConfig,
    RuleConfig,
    SuccessGatedTransferConfig,
    base_of,
    mutual_config,
)
from metarl.config.rules import (
    ActorCriticConfig,
    CategoricalValuesConfig,
    CustomConfig,
    DiscoConfig,
    LPGConfig,
    LPGCriticConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    RandomConfig,
    ScalarValuesConfig,
)
from metarl.config.shared import ReportConfig, RuntimeConfig, TrackingConfig
from metarl.config.training import (
    Acting,
    CheckpointConfig,
    EvolutionConfig,
    MetaConfig,
    MetaOptimizerConfig,
    PopulationConfig,
    PopulationReplayConfig,
    RegularizerConfig,
    TrainConfig,
    ValidationConfig,
    ValueFunctionConfig,
)

__all__ = [
    "MUTUAL",
    "Acting",
    "ActionModelConfig",
    "ActorCriticConfig",
    "AdvantageSharingConfig",
    "AgentConfig",
    "AtariOptions",
    "BenchConfig",
    "BenchOptions",
    "CategoricalValuesConfig",
    "CheckpointConfig",
    "CustomConfig",
    "Decay",
    "DeepMutualLearningConfig",
    "DiscoConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "EvolutionConfig",
    "FinalScoreConfig",
    "ImpalaTorso",
    "LPGConfig",
    "LPGCriticConfig",
    "MLPTorso",
    "MetaConfig",
    "MetaOptimizerConfig",
    "Model",
    "MutualRuleConfig",
    "NamedRuleConfig",
    "NatureTorso",
    "NetworkConfig",
    "NonNegative",
    "OptimizerConfig",
    "PPOConfig",
    "PeerRolloutPoolingConfig",
    "PolicyGradientConfig",
    "PopulationConfig",
    "PopulationReplayConfig",
    "Positive",
    "Probability",
    "QLearningConfig",
    "RandomConfig",
    "RegularizerConfig",
    "ReplayConfig",
    "ReportConfig",
    "RuleConfig",
    "RuntimeConfig",
    "ScalarValuesConfig",
    "SuccessGatedTransferConfig",
    "Torso",
    "TrackingConfig",
    "TrainConfig",
    "TuningConfig",
    "ValidationConfig",
    "ValueFunctionConfig",
    "base_of",
    "mutual_config",
]
