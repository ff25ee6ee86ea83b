"""Mutual-learning rules: what agents that learn the same game teach one another."""

from __future__ import annotations

from metarl.config import (
    AdvantageSharingConfig,
    DeepMutualLearningConfig,
    MutualQConfig,
    MutualRuleConfig,
    PeerRolloutPoolingConfig,
    SuccessGatedTransferConfig,
)
from metarl.rules.base import UpdateRule
from metarl.rules.mutual.base import MutualRule


def make_mutual(config: MutualRuleConfig, base: UpdateRule) -> MutualRule:
    """Return the mutual rule that ``config`` describes, on ``base``."""
    match config:
        case DeepMutualLearningConfig():
            from metarl.rules.mutual.deep_mutual_learning import DeepMutualLearning

            return DeepMutualLearning(config, base)
        case PeerRolloutPoolingConfig():
            from metarl.rules.mutual.peer_rollout_pooling import PeerRolloutPooling

            return PeerRolloutPooling(config, base)
        case AdvantageSharingConfig():
            from metarl.rules.mutual.advantage_sharing import AdvantageSharing

            return AdvantageSharing(config, base)
        case SuccessGatedTransferConfig():
            from metarl.rules.mutual.success_gated_transfer import SuccessGatedTransfer

            return SuccessGatedTransfer(config, base)
        case MutualQConfig():
            from metarl.rules.mutual.mutual_q import MutualQ

            return MutualQ(config, base)
