"""Mutual-learning rules, told apart by `kind`; each is composed with a base rule.

Which bases go with which rule is said here, so that all others are refused.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveInt, ValidationError, model_validator

from metarl.config.base import Decay, Model, NonNegative, Positive, Probability
from metarl.config.rules import (
    ActorCriticConfig,
    CustomConfig,
    DiscoConfig,
    LPGConfig,
    LPGCriticConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    RandomConfig,
)
from metarl.errors import UserError, nearest

PolicyRuleConfig = Annotated[
    PolicyGradientConfig
    | ActorCriticConfig
    | PPOConfig
    | DiscoConfig
    | LPGConfig
    | LPGCriticConfig
    | CustomConfig,
    Field(discriminator="kind"),
]
"""Rules that learn a policy."""

AdvantageRuleConfig = Annotated[
    PolicyGradientConfig | ActorCriticConfig | PPOConfig, Field(discriminator="kind")
]
"""Rules whose targets are advantages."""

_CRITICS = ("actor_critic", "ppo")
"""Kinds of rules whose advantages come from values of states."""
_ADVANTAGES = ("policy_gradient", *_CRITICS)
_ON_POLICY = ("policy_gradient", "lpg", "custom")
"""Kinds of rules that correct for no other policy's data, as far as is known."""


class DeepMutualLearningConfig(Model):
    """Deep mutual learning (Zhang et al. 2018), of agents: MDPO (arXiv 2501.02481)."""

    kind: Literal["deep_mutual_learning"] = "deep_mutual_learning"
    base: PolicyRuleConfig = ActorCriticConfig()
    coefficient: NonNegative = 1.0
    """Of the divergence."""
    peer_gradient: bool = False
    """Let the divergence on an agent's states move its peers too, as MDPO does; the
    peers are constants in Zhang et al."""
    over_peers: Literal["mean", "sum"] = "mean"
    """Zhang et al. write the mean, and their code sums."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(peer || own), the sources'; `reverse`: KL(own || peer)."""
    temperature: Positive = 1.0
    """Logits are divided by it; the divergence then counts its square."""


class PeerRolloutPoolingConfig(Model):
    """Peer rollout pooling (PRP): peers' trajectories are learned from as own ones."""

    kind: Literal["peer_rollout_pooling"] = "peer_rollout_pooling"
    base: PolicyRuleConfig = ActorCriticConfig()
    coefficient: NonNegative = 1.0
    """Of what peers' trajectories add to the loss."""
    share: Probability = 1.0
    """Of the peers' trajectories, drawn anew for each batch."""
    over_peers: Literal["mean", "sum"] = "mean"
    """`mean`: all peers together count as much as one; `sum`: each does (SEAC)."""
    form: Literal["actor_critic", "group"] = "actor_critic"
    """Advantages are the base's own, or returns compared with the pool's (GRPO)."""
    correction: Literal["weight", "base", "none"] = "weight"
    """How the data's policy is corrected for. `weight`: importance ratios weigh what
    the base makes of data that looks like its own. `base`: the base is told whose data
    it is, and corrects as for replayed data. `none`: it looks like its own."""
    max_weight: Positive | None = 1.0
    """Truncates the ratios; null: nothing does. With `weight`."""
    ratio: Literal["step", "sequence"] = "step"
    """Of each action, or the geometric mean over its trajectory. With `weight`."""
    ratio_power: NonNegative = 0.0
    """Alpha: each ratio is multiplied by itself to the alpha (HACPO). With `weight`."""
    clip: Probability | None = None
    """Drop steps whose ratio is above 1 and the advantage positive, or below 1 - clip
    and the advantage negative (HACPO)."""
    drop_kl: Positive | None = None
    """Drop steps with a negative advantage and log mu(a) - log pi(a) above it
    (F-TIS)."""
    capability: bool = False
    """Multiply by the peers' success rate over one's own (HACPO)."""
    capability_decay: Decay = 0.99
    """Of the counts that these rates are of, per update."""

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        _require_advantages(self.form == "group", "form=group", self.base.kind)
        for name in ("clip", "drop_kl"):
            _require_advantages(getattr(self, name) is not None, name, self.base.kind)
        if self.correction == "base" and self.base.kind in _ON_POLICY:
            raise ValueError(
                f"correction=base: {self.base.kind} corrects for no other policy "
                "(take correction=weight)"
            )
        if self.correction != "weight":
            _refuse_unread(self, "correction=weight", "max_weight", "ratio_power")
        if not self.capability:
            _refuse_unread(self, "capability=true", "capability_decay")
        return self


class AdvantageSharingConfig(Model):
    """Cross-agent advantage sharing (XGRPO): peers change baselines alone."""

    kind: Literal["advantage_sharing"] = "advantage_sharing"
    base: AdvantageRuleConfig = ActorCriticConfig()
    coefficient: Probability = 1.0
    """Lambda: 0 compares with the agent's own, 1 with the whole group's."""
    form: Literal["value", "group"] = "value"
    """`value`: the baseline is mixed with peers' values. `group`: returns are compared
    with the group's (GRPO), which needs trajectories that start alike."""
    bootstrap: Literal["own", "mixed"] = "own"
    """The values that `value` bootstraps from."""
    capability: bool = False
    """Multiply peers' returns by one's own success rate over theirs (HACPO), with
    `group`; for returns that are successes."""
    capability_decay: Decay = 0.99
    """Of the counts that these rates are of, per update."""

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.form == "value" and self.base.kind not in _CRITICS:
            raise ValueError(
                f"form=value: {self.base.kind} has no values of states (allowed "
                f"base.kind: {', '.join(_CRITICS)}; or form=group)"
            )
        if self.form == "value":
            _refuse_unread(self, "form=group", "capability", "capability_decay")
        else:
            _refuse_unread(self, "form=value", "bootstrap")
        if not self.capability:
            _refuse_unread(self, "capability=true", "capability_decay")
        return self


class SuccessGatedTransferConfig(Model):
    """Success-gated transfer (SGT): imitate peers where one's own attempts all fail."""

    kind: Literal["success_gated_transfer"] = "success_gated_transfer"
    base: PolicyRuleConfig = ActorCriticConfig()
    coefficient: NonNegative = 0.05
    """Of the imitation: of the mean -log pi(a) over the rescued trajectories."""
    gated: bool = True
    """False: imitate peers' successes whatever one's own attempts were."""
    max_successes: PositiveInt = 8
    """Trajectories imitated per batch."""
    choose: Literal["uniform", "shortest"] = "uniform"
    """Which of them, where there are more; `shortest`: fewest steps used."""
    steps: Literal["all", "before_reward"] = "all"
    """Which of their steps; `before_reward`: those that a reward above 0 followed in
    the same episode."""
    max_step_weight: Positive = 1.0
    """Bound of what a rescued step counts, where one of the agent's own counts 1."""
    success: Literal["flag", "quantile"] = "flag"
    """`flag`: a raw return above 0; `quantile`: one above a running quantile."""
    quantile: Probability = 0.75
    """Of the returns of the group."""
    threshold_decay: Decay = 0.99
    """Of the running mean of that quantile, per update."""

    @model_validator(mode="after")
    def _check_read(self) -> Self:
        if self.success == "flag":
            _refuse_unread(self, "success=quantile", "quantile", "threshold_decay")
        return self


class ValuesAgreementConfig(Model):
    """Learners agree on the values of all actions."""

    kind: Literal["values"] = "values"


class PolicyAgreementConfig(Model):
    """Learners agree on policies: softmaxes of their action values."""

    kind: Literal["policy"] = "policy"
    temperature: Positive = 1.0
    """That values are divided by."""
    only_where_greedy_differs: bool = False
    """Only on states where the learner's greedy action is not that of the peers'."""


class MutualQConfig(Model):
    """Mutual Q-learning (C. Reid and S. Mukhopadhyay, 2020)."""

    kind: Literal["mutual_q"] = "mutual_q"
    base: QLearningConfig = QLearningConfig()
    coefficient: NonNegative = 5.0
    """Of the distance to peers' values, times the weighting."""
    weighting: Literal["proportional", "rank", "softmax", "constant"] = "proportional"
    """Of a peer: its score over the learner's own, ranks likewise, the softmax of the
    group's scores, or 1."""
    active_fraction: Probability = 0.2
    """Of the lifetime, from its start, in which peers are listened to."""
    agreement: Annotated[
        ValuesAgreementConfig | PolicyAgreementConfig, Field(discriminator="kind")
    ] = ValuesAgreementConfig()
    share_transitions: bool = False
    """Learn from the peers' transitions as from one's own; all together count as much
    as one's own would."""


MutualRuleConfig = (
    DeepMutualLearningConfig
    | PeerRolloutPoolingConfig
    | AdvantageSharingConfig
    | SuccessGatedTransferConfig
    | MutualQConfig
)

MUTUAL: dict[str, type[MutualRuleConfig]] = {
    str(model.model_fields["kind"].default): model
    for model in get_args(MutualRuleConfig)
}
"""The mutual rules by kind."""

RuleConfig = Annotated[
    PolicyGradientConfig
    | ActorCriticConfig
    | PPOConfig
    | QLearningConfig
    | DiscoConfig
    | LPGConfig
    | LPGCriticConfig
    | RandomConfig
    | CustomConfig
    | MutualRuleConfig,
    Field(discriminator="kind"),
]
"""Any rule's."""


def base_of(config: RuleConfig) -> RuleConfig:
    """Return the configuration of a mutual rule's base; of another rule its own."""
    return config.base if isinstance(config, MutualRuleConfig) else config


def mutual_config(kind: str, base: RuleConfig) -> MutualRuleConfig:
    """Return a mutual rule's configuration, with its defaults, on ``base``.

    Raises:
      UserError: there is no such rule, or it does not go with that base.
    """
    if kind not in MUTUAL:
        raise UserError(
            f"rule '{base.kind}+{kind}': '{kind}' is no mutual rule"
            f"{nearest(kind, MUTUAL)} (allowed: {', '.join(MUTUAL)})"
        )
    model = MUTUAL[kind]
    try:
        return model.model_validate({"base": base.model_dump()})
    except ValidationError as error:
        context = error.errors()[0].get("ctx", {})
        reason = context.get("error") or f"allowed bases: {', '.join(bases(kind))}"
        raise UserError(
            f"rule '{base.kind}+{kind}': {kind} does not go with {base.kind} ({reason})"
        ) from None


def bases(kind: str) -> tuple[str, ...]:
    """Return the kinds of rules that the mutual rule ``kind`` goes with."""
    annotation = MUTUAL[kind].model_fields["base"].annotation
    models = get_args(annotation) or (annotation,)
    return tuple(model.model_fields["kind"].default for model in models)


def _refuse_unread(config: Model, needed: str, *names: str) -> None:
    """Refuse options that were set, and that nobody reads without another choice."""
    for name in names:
        value = getattr(config, name)
        if value != type(config).model_fields[name].default:
            shown = value if isinstance(value, str) else json.dumps(value)
            raise ValueError(
                f"{name}={shown}: has no effect without {needed} (give that too, or "
                "leave this out)"
            )


def _require_advantages(asked: bool, option: str, kind: str) -> None:
    if asked and kind not in _ADVANTAGES:
        raise ValueError(
            f"{option}: {kind} has no advantages (allowed base.kind: "
            f"{', '.join(_ADVANTAGES)})"
        )
