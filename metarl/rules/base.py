"""The interface of an update rule: experience in, targets out, and a loss.

A rule never sees networks, environments or optimisers; it must not import agents,
environments or files. `docs/rules.md` shows how to write one.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import jax

from metarl.types import Clock, Experience, Outputs, Params, Transitions

Metrics = dict[str, jax.Array]
"""Scalars to log, by name."""

Targets = dict[str, jax.Array]
"""What the agent's outputs are pulled towards; each ``[T, B, ...]``."""

REGULARIZERS = ("target_kl", "l2_pi", "l2_y")
"""Names of `UpdateRule.regularizers`, beside all that begin with ``squared_mean``."""

Reads = Literal["own", "peers", "pool"]
"""What of its group's batch an agent is shown; see `RuleSpec`."""

RuleState = Any
"""What a rule carries over one lifetime: any pytree, known to the rule alone."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One output that the agent's network must have.

    Attributes:
      name: key in the network's outputs, in DiscoRL's names (`logits`, `y`, `z` ...).
      size: width of the last axis.
      per_action: whether the output has one row per action, ``[A, size]``; such
        heads come from the action-conditional model, unless they are `on_torso`.
      taken: whether the loss reads no row of a per-action output but that of the
        action taken. It is then handed that row alone, ``[T, B, size]``, and a
        gradient step costs no more than for a head of the state.
      zero_init: whether the weights of the last layer begin at zero, in networks that
        are built here. For heads of the state alone.
      on_torso: whether a per-action output is one MLP's on the torso, for all actions
        at once, as in deep Q-networks. It costs what a head of the state of
        ``A * size`` does.
    """

    name: str
    size: int
    per_action: bool = False
    taken: bool = False
    zero_init: bool = False
    on_torso: bool = False

    def __post_init__(self) -> None:
        """Refuse what is said of rows of actions where there are none, and unbuilt."""
        for option in ("taken", "on_torso"):
            if getattr(self, option) and not self.per_action:
                raise ValueError(
                    f"head '{self.name}': {option}=True needs per_action=True"
                )
        if self.zero_init and self.per_action:
            raise ValueError(f"head '{self.name}': zero_init is for heads of the state")


@dataclasses.dataclass(frozen=True)
class TargetNetwork:
    """How the target parameters follow the agent's.

    `ema`: coefficient * target + (1 - coefficient) * params, with the parameters
    before the update (Oh et al. 2025, released code). `copy`: the parameters after
    every `every`-th update (Mnih et al. 2015).
    """

    kind: Literal["none", "ema", "copy"] = "none"
    coefficient: float = 0.9
    every: int = 1


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """What a rule needs of the agent.

    Attributes:
      heads: outputs of the network.
      epochs: passes over each batch.
      minibatches: gradient steps per pass.
      minibatch_of: whether minibatches take whole `trajectories`, or `transitions`
        (everything flattened to ``[1, M]``, for losses that read step t alone).
      target_network: how target parameters are kept.
      reads: what of its group's batch an agent is shown; the columns C of every array
        ``[T, C, ...]`` that the rule gets. `own`: its own B trajectories, and no peers
        (P = 0), as if it were alone. `peers`: its own B trajectories, and what its
        P = K - 1 peers predict on them. `pool`: the K B trajectories of the whole
        group, which it may learn from (`transitions.own` tells whose they are), and
        what its peers predict on all of them.
    """

    heads: tuple[Head, ...]
    epochs: int = 1
    minibatches: int = 1
    minibatch_of: Literal["trajectories", "transitions"] = "trajectories"
    target_network: TargetNetwork = TargetNetwork()
    reads: Reads = "own"


class UpdateRule(abc.ABC):
    """An update rule. Instances are immutable and hashable: configuration only."""

    @abc.abstractmethod
    def spec(self, num_actions: int) -> RuleSpec:
        """Return what the rule needs of an agent with ``num_actions`` actions."""

    def init_params(self, key: jax.Array) -> Params:
        """Return new meta-parameters; an empty tree for a hand-written rule."""
        del key
        return {}

    def init_state(self) -> RuleState:
        """Return the rule state at the start of a lifetime."""
        return {}

    def act(
        self, outputs: Outputs, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return actions and the logits of the policy that drew them.

        Args:
          outputs: the network's outputs ``[B, ...]``.
          clock: the agent's age.
          key: consumed.

        Returns:
          Actions ``i32[B]`` and behaviour logits ``f32[B, A]``; by default the
          actions are drawn from ``outputs["logits"]``.
        """
        del clock
        logits = outputs["logits"]
        return jax.random.categorical(key, logits), logits

    @abc.abstractmethod
    def targets(
        self,
        meta_params: Params,
        rule_state: RuleState,
        experience: Experience,
        key: jax.Array,
    ) -> tuple[Targets, RuleState, Metrics]:
        """Return the learning targets of a batch; differentiable in ``meta_params``.

        Called once per batch. What must be constant for the outer gradient too is
        stopped here; what is only constant for the inner one needs nothing, since
        `loss` is differentiated with respect to its outputs alone.

        Args:
          meta_params: the rule's parameters.
          rule_state: state of this lifetime.
          experience: the batch.
          key: consumed.

        Returns:
          Targets ``[T, B, ...]``, the new rule state, and scalars to log.
        """

    @abc.abstractmethod
    def loss(
        self,
        outputs: Outputs,
        peers: Outputs,
        targets: Targets,
        transitions: Transitions,
    ) -> tuple[jax.Array, Metrics]:
        """Return the loss of every transition.

        Called at every gradient step, on fresh outputs. The caller masks it with
        `valid * learn` and normalises it by the sum of that over own transitions.

        Args:
          outputs: the agent's outputs at the first observation of each transition,
            ``[T, B, ...]`` (``[1, M, ...]`` for minibatches of transitions); of heads
            that are declared `taken` the row of the action taken.
          peers: the other agents' outputs on the same, ``[P, T, B, ...]``.
          targets: what `targets` returned.
          transitions: the batch's actions, rewards and flags.

        Returns:
          The loss ``[T, B]`` and per-transition values ``[T, B]`` to log.
        """

    def regularizers(self, targets: Targets, experience: Experience) -> Metrics:
        """Return scalar terms on one batch's targets for the outer objective.

        Names are those that `RegularizerConfig` weighs: ``squared_mean_*`` and
        `REGULARIZERS`. A hand-written rule has none.
        """
        del targets, experience
        return {}
