"""What is verified: a Disco rule with its meta-parameters, set up as a file says.

Translates between the golden files' names and ours; computes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from metarl.config import DiscoConfig, OptimizerConfig
from metarl.errors import UserError
from metarl.golden.files import GoldenFile
from metarl.numerics import Moments
from metarl.rule_files.loading import check_params, flatten_params
from metarl.rules.disco import Disco, DiscoState
from metarl.rules.disco_names import from_published
from metarl.rules.metanet import LifetimeState
from metarl.types import Outputs, Params, Peers, Transitions

Arrays = dict[str, np.ndarray]

RULE_FIELDS = {
    "pi_cost": "pi_cost",
    "y_cost": "y_cost",
    "z_cost": "z_cost",
    "value_cost": "value_cost",
    "aux_policy_cost": "aux_policy_cost",
    "target_params_coeff": "target_coefficient",
    "value_fn_td_lambda": "trace_lambda",
    "value_discount": "discount",
    "max_abs_value": "max_abs_value",
    "ema_decay": "moments_decay",
}
"""Golden hyper-parameters and the fields of `DiscoConfig` that they set."""

PUBLISHED_VALUES = {"discount": 0.997, "max_abs_value": 300.0, "moments_decay": 0.99}
"""Those that the files of parts c, d and e leave out."""

MOMENTS_EPSILON = 1e-6
"""Golden `ema_eps`; a constant of ours."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The rule that is verified.

    Attributes:
      config: its sizes; costs and coefficients come from each golden file.
      params: its meta-parameters.
    """

    config: DiscoConfig
    params: Params

    def rule(self, file: GoldenFile) -> Disco:
        """Return the rule with the hyper-parameters of ``file``.

        Raises:
          UserError: a hyper-parameter that this build cannot set has another value.
        """
        fields = dict(PUBLISHED_VALUES)
        for name, field in RULE_FIELDS.items():
            if f"hyper/{name}" in file:
                fields[field] = hyper(file, name)
            elif field not in PUBLISHED_VALUES:
                raise UserError(f"{file.path}: array 'hyper/{name}' is missing")
        if "hyper/ema_eps" in file and hyper(file, "ema_eps") != MOMENTS_EPSILON:
            raise UserError(
                f"{file.path}: hyper/ema_eps is {hyper(file, 'ema_eps')}; this build "
                f"has {MOMENTS_EPSILON}"
            )
        hyper(file, "discount_factor")  # Not used by this rule: see the README.
        return Disco(self.config.model_copy(update=fields))

    def read_params(self, file: GoldenFile, prefix: str) -> Params:
        """Return other meta-parameters, which ``file`` stores under ``prefix``.

        Raises:
          UserError: they are not those of this rule.
        """
        params = from_published(file.folder(prefix))
        return check_params(
            Disco(self.config), flatten_params(params), f"{file.path}: {prefix}"
        )


def hyper(file: GoldenFile, name: str) -> float:
    """Return a hyper-parameter as the decimal number that was rounded to float32.

    What depends on it through a difference, such as 1 - 0.99, would otherwise lose
    four digits.
    """
    return float(str(np.float32(file[f"hyper/{name}"])))


def optimizer(file: GoldenFile, prefix: str = "") -> OptimizerConfig:
    """Return the optimiser settings of ``file``; the rest is Adam's usual values."""
    return OptimizerConfig(
        learning_rate=hyper(file, f"{prefix}learning_rate"),
        # One bound for both optimisers, agent and value function.
        max_abs_update=hyper(file, "max_abs_update"),
    )


def read_state(file: GoldenFile, prefix: str) -> DiscoState:
    """Return the rule state stored under ``prefix``."""
    return DiscoState(
        lifetime=LifetimeState(
            hidden=jnp.asarray(file[f"{prefix}rnn/hidden"]),
            cell=jnp.asarray(file[f"{prefix}rnn/cell"]),
        ),
        adv_moments=read_moments(file, f"{prefix}adv_ema/"),
        td_moments=read_moments(file, f"{prefix}td_ema/"),
    )


def read_moments(file: GoldenFile, prefix: str) -> Moments:
    """Return the running moments stored under ``prefix``."""
    fields = (field.name for field in dataclasses.fields(Moments))
    return Moments(*(jnp.asarray(file[f"{prefix}{name}"]) for name in fields))


def state_arrays(state: DiscoState) -> Outputs:
    """Return a rule state under the golden names."""
    return {
        "rnn/hidden": state.lifetime.hidden,
        "rnn/cell": state.lifetime.cell,
        **moments_arrays("adv_ema/", state.adv_moments),
        **moments_arrays("td_ema/", state.td_moments),
    }


def moments_arrays(prefix: str, moments: Moments) -> Outputs:
    """Return running moments under the golden names."""
    return {
        f"{prefix}{field.name}": getattr(moments, field.name)
        for field in dataclasses.fields(Moments)
    }


def transitions(
    actions: np.ndarray,
    behaviour_logits: np.ndarray,
    rewards: np.ndarray,
    is_terminal: np.ndarray,
    learn: np.ndarray | None = None,
) -> Transitions:
    """Return T transitions of which all exist, none is cut and all are the agent's.

    Args:
      actions: ``[T+1, B]``; the last row belongs to no transition.
      behaviour_logits: ``[T+1, B, A]``, likewise.
      rewards: ``[T, B]``.
      is_terminal: ``[T, B]``.
      learn: ``[T, B]``; None: all.
    """
    everywhere = jnp.ones(rewards.shape, bool)
    return Transitions(
        actions=jnp.asarray(actions[:-1]),
        behaviour_logits=jnp.asarray(behaviour_logits[:-1]),
        rewards=jnp.asarray(rewards),
        is_terminal=jnp.asarray(is_terminal),
        cut=~everywhere,
        valid=everywhere,
        learn=jnp.asarray(
            np.ones(rewards.shape) if learn is None else learn, jnp.float32
        ),
        own=everywhere,
    )


def no_peers(outputs: Outputs) -> Peers:
    """Return what a group of one has for peers."""
    batch = outputs["logits"].shape[1]
    return Peers(
        outputs={k: jnp.zeros((0, *v.shape)) for k, v in outputs.items()},
        present=jnp.zeros(0, bool),
        returns=jnp.zeros(batch),
        success=jnp.zeros(batch, bool),
    )


def under(prefix: str, arrays: Mapping[str, object]) -> Arrays:
    """Return ``arrays`` on the host with ``prefix`` before every key."""
    return {f"{prefix}{key}": np.asarray(value) for key, value in arrays.items()}


def join(parts: Iterable[Arrays]) -> Arrays:
    """Return all arrays of ``parts``, whose keys differ."""
    joined: Arrays = {}
    for part in parts:
        assert not joined.keys() & part.keys(), "two arrays of one name"
        joined |= part
    return joined
