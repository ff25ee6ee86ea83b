"""The one list of rules that the contract tests run over, and what they measure."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from contract.experience import make_experience

from metarl.config import (
    ActorCriticConfig,
    AdvantageSharingConfig,
    DeepMutualLearningConfig,
    DiscoConfig,
    LPGConfig,
    LPGCriticConfig,
    MutualQConfig,
    PeerRolloutPoolingConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    SuccessGatedTransferConfig,
)
from metarl.numerics import Moments
from metarl.rules import make_rule
from metarl.rules.base import RuleState, UpdateRule
from metarl.rules.mutual.base import MutualRule
from metarl.types import Experience, Outputs, Params, Transitions, drop_invalid, pytree

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "rules.md"


def documented_rule() -> UpdateRule:
    """Return the example of docs/rules.md."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    namespace: dict[str, object] = {"__name__": "docs.rules"}
    exec(compile(code, DOCUMENTATION, "exec", dont_inherit=True), namespace)
    return namespace["AdvantageWeighted"]()


RULES: dict[str, UpdateRule] = {
    "policy_gradient": make_rule(PolicyGradientConfig()),
    "actor_critic": make_rule(ActorCriticConfig(num_bins=11, max_abs_value=5.0)),
    "ppo": make_rule(PPOConfig()),
    "q_learning": make_rule(QLearningConfig(double=True, trace_lambda=0.9)),
    "disco": make_rule(
        DiscoConfig(
            prediction_size=7,
            num_bins=11,
            max_abs_value=5.0,
            trajectory_lstm=6,
            lifetime_lstm=5,
            embedding_hidden=4,
            action_channels=(3, 2),
            policy_channels=3,
            lifetime_input=4,
        )
    ),
    "lpg": make_rule(LPGConfig(prediction_size=7, lstm=6, embedding_hidden=4)),
    "lpg_critic": make_rule(
        LPGCriticConfig(
            prediction_size=7,
            lstm=6,
            embedding_hidden=4,
            num_bins=11,
            max_abs_value=5.0,
        )
    ),
    "docs_example": documented_rule(),
}
"""Single-agent rules."""

_BASE = RULES["actor_critic"].config
ALL_RULES: dict[str, UpdateRule] = RULES | {
    config.kind: make_rule(config)
    for config in (
        DeepMutualLearningConfig(base=_BASE),
        PeerRolloutPoolingConfig(base=_BASE),
        AdvantageSharingConfig(base=_BASE),
        SuccessGatedTransferConfig(base=_BASE, success="quantile"),
        MutualQConfig(),
    )
}
"""And mutual ones, here of an agent alone; `test_mutual.py` gives them peers."""

OPEN_HEADS: dict[str, set[str]] = {
    "policy_gradient": set(),
    "actor_critic": set(),
    "ppo": set(),
    "q_learning": set(),
    "disco": {"y", "z"},
    "lpg": {"logits", "y"},
    "lpg_critic": {"y"},
    "docs_example": set(),
    "deep_mutual_learning": set(),
    "peer_rollout_pooling": set(),
    "advantage_sharing": set(),
    "success_gated_transfer": set(),
    "mutual_q": set(),
}
"""Heads, own and of the target network, that targets are differentiable in. The
gradient stops at all others: they describe the agent, and are not paths by which the
meta-gradient may shape it. LPG differentiates all that its LSTM sees."""


def hold_moments(rule: UpdateRule) -> UpdateRule:
    """Return the rule with running moments that stay where they are."""
    if isinstance(rule, MutualRule):
        return dataclasses.replace(rule, base=hold_moments(rule.base))
    if not hasattr(getattr(rule, "config", None), "moments_decay"):
        return rule  # It has none.
    config = rule.config.model_copy(update={"moments_decay": 1.0})
    return dataclasses.replace(rule, config=config)


def fill_moments(state: RuleState) -> RuleState:
    """Return the state with running moments as after some updates."""
    filled = Moments(*(jnp.full((), x) for x in (0.3, 1.7, 0.5)))
    return jax.tree.map(
        lambda x: filled if isinstance(x, Moments) else x,
        state,
        is_leaf=lambda x: isinstance(x, Moments),
    )


@pytree
class Case:
    """A batch and all that a rule needs to learn from it."""

    meta_params: Params
    rule_state: RuleState
    experience: Experience


def make_case(rule: UpdateRule, seed: int = 0, **sizes: int) -> Case:
    """Return a random case; meta-parameters are away from their initial zeros."""
    keys = jax.random.split(jax.random.key(seed), 3)
    meta_params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(keys[1], x.shape, x.dtype),
        rule.init_params(keys[0]),
    )
    return Case(
        meta_params=meta_params,
        rule_state=rule.init_state(),
        experience=make_experience(keys[2], rule, **sizes),
    )


def loss_rows(experience: Experience) -> tuple[Outputs, Outputs]:
    """Return the own and the peers' outputs that a loss may read."""
    own = {name: x[:-1] for name, x in experience.outputs.items()}
    peers = {name: x[:, :-1] for name, x in experience.peers.outputs.items()}
    return own, peers


def normalized(loss: jax.Array, transitions: Transitions) -> jax.Array:
    """Return the scalar loss, as DESIGN.md's callers of a rule do."""
    weight = transitions.learn * transitions.valid
    total = jnp.sum(jnp.where(transitions.valid, loss, 0) * weight)
    return total / (jnp.sum(weight * transitions.own) + 1e-8)


def forward(rule: UpdateRule, case: Case) -> dict[str, object]:
    """Return the targets of one batch, the state after it, and losses ``[T, B]``.

    The loss of the outputs that the targets were made of, and that of others, as after
    gradient steps on the same targets.
    """
    experience = case.experience
    targets, state, metrics = rule.targets(
        case.meta_params, case.rule_state, experience, jax.random.key(1)
    )
    transitions = drop_invalid(experience.transitions)
    own, peers = loss_rows(experience)
    loss, parts = rule.loss(own, peers, targets, transitions)
    moved = {name: x / 2 for name, x in own.items()}
    later_loss, _ = rule.loss(moved, peers, targets, transitions)
    return {
        "targets": targets,
        "state": state,
        "metrics": metrics,
        "loss": loss,
        "later_loss": later_loss,
        "parts": parts,
    }


def measure(rule: UpdateRule, case: Case) -> dict[str, object]:
    """Return what two updates on one batch give, with all gradients.

    The outer objective is the sum of both losses and regularisers; of two, because
    the state that the first call leaves acts in the second.
    """
    transitions = drop_invalid(case.experience.transitions)
    own, peers = loss_rows(case.experience)

    def objective(
        meta_params: Params, outputs: Outputs, target_outputs: Outputs
    ) -> tuple[jax.Array, dict[str, object]]:
        experience = dataclasses.replace(
            case.experience, outputs=outputs, target_outputs=target_outputs
        )

        def update(
            state: RuleState, key: jax.Array
        ) -> tuple[RuleState, tuple[jax.Array, dict[str, object]]]:
            targets, state, metrics = rule.targets(meta_params, state, experience, key)
            loss, _ = rule.loss(own, peers, targets, transitions)
            value = normalized(loss, transitions)
            value += sum(rule.regularizers(targets, experience).values())
            return state, (value, {"targets": targets, "metrics": metrics})

        # A scan compiles the rule once.
        keys = jax.random.split(jax.random.key(1))
        state, (values, records) = jax.lax.scan(update, case.rule_state, keys)
        last = jax.tree.map(lambda x: x[-1], records)
        return jnp.sum(values), {**last, "state": state}

    arguments = (
        case.meta_params,
        case.experience.outputs,
        case.experience.target_outputs,
    )
    (value, after), gradients = jax.value_and_grad(
        objective, argnums=(0, 1, 2), has_aux=True
    )(*arguments)

    def agent_loss(own: Outputs) -> tuple[jax.Array, jax.Array]:
        loss, _ = rule.loss(own, peers, after["targets"], transitions)
        return normalized(loss, transitions), loss

    (scalar, loss), gradient = jax.value_and_grad(agent_loss, has_aux=True)(own)
    return {
        "objective": value,
        "meta_gradient": gradients[0],
        "outputs_gradient": gradients[1],
        "target_outputs_gradient": gradients[2],
        "scalar_loss": scalar,
        "loss": loss,
        "gradient": gradient,
        **after,
    }


@functools.cache
def jitted(
    fn: Callable[[UpdateRule, Case], dict[str, object]], name: str
) -> Callable[[Case], dict[str, object]]:
    """Return ``fn`` of a rule of `ALL_RULES`, compiled once for all tests."""
    return jax.jit(functools.partial(fn, ALL_RULES[name]))
