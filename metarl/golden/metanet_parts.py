"""Parts a, b and f: the meta-network, its losses, and its products with cotangents.

Everything is computed by `metarl.rules.disco` and `metarl.rules.metanet`; part a's
target parameters by `metarl.agents.agent`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from metarl.agents.agent import Agent, AgentState
from metarl.config import OptimizerConfig
from metarl.golden.files import GoldenFile
from metarl.golden.subject import (
    Arrays,
    Subject,
    join,
    no_peers,
    read_state,
    state_arrays,
    transitions,
    under,
)
from metarl.numerics import adam_init
from metarl.rules import metanet
from metarl.rules.base import Targets
from metarl.rules.disco import Disco, DiscoState
from metarl.rules.disco_names import to_published
from metarl.types import (
    Clock,
    Experience,
    Network,
    Outputs,
    Params,
    Transitions,
)


def metanet_chain(file: GoldenFile, subject: Subject) -> Arrays:
    """Return the outputs of parts a and b: calls in a chain through their states."""
    rule = subject.rule(file)
    state = read_state(file, "initial/")
    slow: Params = {"dummy": {"w": jnp.asarray(file["initial/target_params/dummy/w"])}}
    found = []
    for call in file.numbers(r"call(\d+)/"):
        experience = read_experience(file, f"call{call}/in/")
        arrays, state = _forward(rule, subject.params, state, experience)
        fast = {"dummy": {"w": jnp.asarray(file[f"call{call}/in/params/dummy/w"])}}
        slow = _follow(rule, fast, slow)
        arrays["new_state/target_params/dummy/w"] = slow["dummy"]["w"]
        found.append(under(f"call{call}/out/", arrays))
    return join(found)


def read_experience(file: GoldenFile, prefix: str) -> Experience:
    """Return the batch stored under ``prefix``: inputs of the meta-network."""
    outputs = _device(file.folder(f"{prefix}agent_out/"))
    return Experience(
        transitions=transitions(
            file[f"{prefix}actions"],
            file[f"{prefix}behaviour_agent_out/logits"],
            file[f"{prefix}rewards"],
            file[f"{prefix}is_terminal"],
        ),
        outputs=outputs,
        target_outputs=_device(file.folder(f"{prefix}target_out/")),
        peers=no_peers(outputs),
        clock=Clock(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros(())),
    )


def _device(arrays: Arrays) -> Outputs:
    return {key: jnp.asarray(value) for key, value in arrays.items()}


def _follow(rule: Disco, params: Params, target_params: Params) -> Params:
    """Return the target parameters after an update from ``params``."""

    def no_network(*_: object) -> Outputs:
        raise AssertionError("parts a and b have no network")

    network = Network(no_network, no_network)
    agent = Agent(rule, network, 1, OptimizerConfig(), lifetime_env_steps=1)
    zero = jnp.zeros((), jnp.int32)
    state = AgentState(
        params, target_params, adam_init(params), rule.init_state(), zero, zero
    )
    return agent.follow(state, params)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    rule: Disco, params: Params, state: DiscoState, experience: Experience
) -> tuple[Outputs, DiscoState]:
    """Return one call's outputs by their golden names, and the state after it."""
    targets, new_state, _ = rule.targets(params, state, experience, jax.random.key(0))
    # What `targets` computes on its way; the compiler joins the two computations.
    values, _ = rule.value_estimates(state, experience)
    meta, _ = metanet.apply(params, state.lifetime, experience, values)
    arrays = {
        **{name: targets[name] for name in ("pi", "y", "z")},
        **{
            name: getattr(values, name)
            for name in (
                "q_value",
                "q_target",
                "adv",
                "normalized_adv",
                "qv_adv",
                "normalized_qv_adv",
                "q_td",
                "normalized_q_td",
            )
        },
        "meta_input_emb": meta.meta_input,
        "extra/value": values.value,
        "extra/target_value": values.target_value,
        "extra/target_q_value": values.target_q_value,
        "extra/rho": values.rho,
        "extra/trajectory_features": meta.trajectory_features,
        "extra/lifetime_features": meta.lifetime_features,
        "extra/action_features": meta.action_features,
    }
    for name, value in state_arrays(new_state).items():
        arrays[f"new_state/{name}"] = value
    losses = _losses(rule, experience, targets)
    return {**arrays, **losses}, new_state


def _losses(rule: Disco, experience: Experience, targets: Targets) -> Outputs:
    """Return part b: losses and gradients of their sums, by golden names."""
    without_value = dataclasses.replace(
        rule, config=rule.config.model_copy(update={"value_cost": 0.0})
    )
    costs = ("pi_cost", "y_cost", "z_cost", "aux_policy_cost")
    value_alone = dataclasses.replace(
        rule, config=rule.config.model_copy(update=dict.fromkeys(costs, 0.0))
    )

    def total(rule: Disco, outputs: Outputs, targets: Targets) -> jax.Array:
        return jnp.sum(_loss(rule, outputs, targets, experience.transitions)[0])

    own = experience.outputs
    loss, parts = _loss(without_value, own, targets, experience.transitions)
    value_loss, _ = _loss(value_alone, own, targets, experience.transitions)
    wrt_outputs, wrt_targets = jax.grad(total, (1, 2))(without_value, own, targets)
    value_wrt_outputs = jax.grad(total, 1)(value_alone, own, targets)
    return {
        "agent_loss": loss,
        "agent_loss_no_meta": value_loss,
        **{
            f"agent_loss_parts/{name}": parts[f"{name}_loss"]
            for name in ("pi", "y", "z", "aux_policy")
        },
        **{f"grad_agent_loss/{name}": g for name, g in wrt_outputs.items()},
        "grad_agent_loss_no_meta/q": value_wrt_outputs["q"],
        **{
            f"grad_agent_loss_wrt_meta_out/{name}": wrt_targets[name]
            for name in ("pi", "y", "z")
        },
    }


def _loss(
    rule: Disco, outputs: Outputs, targets: Targets, transitions: Transitions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss on outputs ``[T+1, B, ...]``, of which it reads T rows."""
    rows = {name: output[:-1] for name, output in outputs.items()}
    return rule.loss(rows, {}, targets, transitions)


def metanet_products(file: GoldenFile, subject: Subject) -> Arrays:
    """Return the outputs of part f: two vector-Jacobian products.

    Inputs and state are those of the third call of part a's file of the same sizes
    and seed.
    """
    name = file.path.name.replace("f_vjp_", "a_metanet_", 1)
    chain = GoldenFile(file.path.with_name(name))
    rule = subject.rule(chain)
    experience = read_experience(chain, "call2/in/")
    state = read_state(chain, "call1/out/new_state/")
    cotangents = {
        name: jnp.asarray(file[f"in/cotangent/{name}"])
        for name in ("pi", "y", "z", "hidden", "cell")
    }
    found = []
    for product, names in {
        "vjp_targets": ("pi", "y", "z"),
        "vjp_state": ("hidden", "cell"),
    }.items():
        masked = {
            name: value if name in names else jnp.zeros_like(value)
            for name, value in cotangents.items()
        }
        params, arrays = _product(rule, subject.params, state, experience, masked)
        found.append(under(f"out/{product}/meta_params/", to_published(params)))
        found.append(under(f"out/{product}/", arrays))
    return join(found)


@functools.partial(jax.jit, static_argnums=0)
def _product(
    rule: Disco,
    params: Params,
    state: DiscoState,
    experience: Experience,
    cotangents: Outputs,
) -> tuple[Params, Outputs]:
    """Return the cotangents of the meta-parameters and of the meta-network's inputs."""

    def call(
        params: Params,
        lifetime: metanet.LifetimeState,
        outputs: Outputs,
        target_outputs: Outputs,
        behaviour_logits: jax.Array,
    ) -> Outputs:
        batch = dataclasses.replace(
            experience,
            outputs=outputs,
            target_outputs=target_outputs,
            transitions=dataclasses.replace(
                experience.transitions, behaviour_logits=behaviour_logits
            ),
        )
        targets, new_state, _ = rule.targets(
            params,
            dataclasses.replace(state, lifetime=lifetime),
            batch,
            jax.random.key(0),
        )
        return {
            **{name: targets[name] for name in ("pi", "y", "z")},
            "hidden": new_state.lifetime.hidden,
            "cell": new_state.lifetime.cell,
        }

    _, pull = jax.vjp(
        call,
        params,
        state.lifetime,
        experience.outputs,
        experience.target_outputs,
        experience.transitions.behaviour_logits,
    )
    wrt_params, lifetime, own, target, behaviour = pull(cotangents)
    arrays = {
        "rnn/hidden": lifetime.hidden,
        "rnn/cell": lifetime.cell,
        # The policy that acted is known for T steps here, for T + 1 in the file.
        "behaviour_agent_out/logits": jnp.pad(behaviour, ((0, 1), (0, 0), (0, 0))),
    }
    arrays |= {f"agent_out/{name}": value for name, value in own.items()}
    arrays |= {f"target_out/{name}": value for name, value in target.items()}
    return wrt_params, arrays
