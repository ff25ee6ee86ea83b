"""What every mutual rule must do, whatever it teaches; on small arrays, no networks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.rule_cases import RULES
from rules.mutual.mutual_cases import KEY, Group, agent_loss, make_group, rows

from metarl.config import (
    MUTUAL,
    AdvantageSharingConfig,
    DeepMutualLearningConfig,
    Model,
    MutualQConfig,
    PeerRolloutPoolingConfig,
    PolicyAgreementConfig,
    SuccessGatedTransferConfig,
)
from metarl.config.mutual import bases
from metarl.rules import make_rule
from metarl.rules.mutual.base import MutualRule
from metarl.types import Experience, drop_invalid

pytestmark = pytest.mark.usefixtures("x64")

BASE = RULES["actor_critic"].config
CASES: dict[str, Model] = {
    "deep_mutual_learning": DeepMutualLearningConfig(base=BASE, peer_gradient=True),
    "peer_rollout_pooling": PeerRolloutPoolingConfig(base=BASE, capability=True),
    "advantage_sharing": AdvantageSharingConfig(base=BASE),
    "success_gated_transfer": SuccessGatedTransferConfig(
        base=BASE, gated=False, success="quantile", max_successes=100
    ),
    "mutual_q": MutualQConfig(),
}
"""Every mutual rule with options under which peers matter to the batches here."""

OPTIONS: dict[str, dict[str, object]] = {
    "deep_mutual_learning": {
        "coefficient": 0.5,
        "peer_gradient": False,
        "over_peers": "sum",
        "direction": "reverse",
        "temperature": 2.0,
    },
    "peer_rollout_pooling": {
        "coefficient": 0.5,
        "share": 0.3,
        "over_peers": "sum",
        "form": "group",
        "correction": "base",
        "max_weight": 0.5,
        "ratio": "sequence",
        "ratio_power": 1.0,
        "clip": 0.1,
        "drop_kl": 0.1,
        "capability": False,
        "capability_decay": 0.5,
    },
    "advantage_sharing": {
        "coefficient": 0.5,
        "form": "group",
        "bootstrap": "mixed",
        "capability": True,
        "capability_decay": 0.5,
    },
    "success_gated_transfer": {
        "coefficient": 0.02,
        "gated": True,
        "max_successes": 1,
        "choose": "shortest",
        "steps": "before_reward",
        "max_step_weight": 1e-3,
        "success": "flag",
        "quantile": 0.1,
        "threshold_decay": 0.5,
    },
    "mutual_q": {
        "coefficient": 0.5,
        "weighting": "rank",
        "active_fraction": 0.05,
        "agreement": PolicyAgreementConfig(),
        "share_transitions": True,
    },
}
"""Another value of every option of every mutual rule, but for its base."""

ALONGSIDE: dict[tuple[str, str], dict[str, object]] = {
    ("advantage_sharing", "capability"): {"form": "group"},
    ("advantage_sharing", "capability_decay"): {"form": "group", "capability": True},
    ("success_gated_transfer", "gated"): {"quantile": 0.1},
    ("success_gated_transfer", "choose"): {"max_successes": 1, "quantile": 0.0},
}
"""What an option needs beside it to matter."""

each_rule = pytest.mark.parametrize("name", CASES)


def study(rule: MutualRule, experience: Experience) -> dict[str, object]:
    """Return two batches' targets and metrics, loss ``[T, B]``, and its gradients.

    Of two, because the state that the first leaves acts in the second.
    """
    own, peers = rows(experience)
    transitions = drop_invalid(experience.transitions)
    state = rule.init_state()
    meta_params = rule.init_params(jax.random.key(3))
    _, state, _ = rule.targets(meta_params, state, experience, jax.random.key(4))
    targets, state, metrics = rule.targets(meta_params, state, experience, KEY)
    loss, parts = rule.loss(own, peers, targets, transitions)
    gradients = jax.grad(
        lambda own, peers: agent_loss(rule, experience, targets, own, peers), (0, 1)
    )(own, peers)
    kept = transitions.valid & transitions.own
    return {
        "targets": targets,
        "state": state,
        "metrics": metrics,
        "parts": {k: jnp.where(kept, x, 0) for k, x in parts.items()},
        "loss": jnp.where(transitions.valid, loss, 0),
        "gradient": gradients[0],
        "peers_gradient": gradients[1],
    }


@functools.cache
def compiled(config: Model) -> object:
    """Return `study` of a rule, compiled once for all tests."""
    return jax.jit(functools.partial(study, make_rule(config)))


def close(left: object, right: object) -> None:
    """Assert that the entries of ``left`` are those of ``right``, to 1e-12."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=where)


def assert_is_base(name: str, config: Model, experience: Experience) -> None:
    """Assert that a rule gives what its base does, on the agent's own transitions."""
    found, base = compiled(config)(experience), compiled(config.base)(experience)
    own = experience.transitions.valid & experience.transitions.own
    for key, value in base["targets"].items():
        close(found["targets"][key][own], value[own])
    close(found["state"].base, base["state"])
    for part in ("metrics", "parts"):
        close({k: found[part][k] for k in base[part]}, base[part])
    close(found["loss"], base["loss"])
    close(found["gradient"], base["gradient"])
    assert not any(np.any(x) for x in found["peers_gradient"].values()), name


@each_rule
def test_an_agent_alone_is_one_of_the_base_rule(name):
    assert_is_base(name, CASES[name], make_group(make_rule(CASES[name].base), 1).of(0))


@each_rule
def test_without_its_coefficient_it_is_the_base_whatever_peers_do(name):
    config = CASES[name].model_copy(update={"coefficient": 0.0})
    group, other = (make_group(make_rule(CASES[name].base), 3, seed) for seed in (0, 1))
    assert_is_base(name, config, group.of(1))
    mixed = garbage_of_peers(group, other, 1)
    assert_is_base(name, config, mixed)
    close(
        compiled(config)(mixed)["gradient"], compiled(config)(group.of(1))["gradient"]
    )


@pytest.mark.parametrize("kind", ["advantage_sharing", "peer_rollout_pooling"])
def test_without_its_coefficient_the_group_form_does_not_depend_on_peers(kind):
    config = MUTUAL[kind](base=BASE, form="group", coefficient=0.0)
    group, other = (make_group(make_rule(BASE), 3, seed) for seed in (0, 1))
    run = compiled(config)
    found = [run(x) for x in (group.of(1), garbage_of_peers(group, other, 1))]
    own = group.of(1).transitions.valid & group.of(1).transitions.own
    close(*(x["targets"]["advantages"][own] for x in found))
    close(found[0]["gradient"], found[1]["gradient"])


def garbage_of_peers(group: Group, other: Group, k: int) -> Experience:
    """Return agent k's experience, with all that is not its own from another group."""
    mine, theirs = group.of(k), other.of(k)
    own = mine.transitions.own

    def choose(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    frames = jnp.concatenate([own, own[:1]])
    peers = theirs.peers
    return dataclasses.replace(
        mine,
        transitions=jax.tree.map(
            lambda a, b: choose(a, b, own), mine.transitions, theirs.transitions
        ),
        outputs={
            name: choose(x, 9 * theirs.outputs[name], frames)
            for name, x in mine.outputs.items()
        },
        peers=dataclasses.replace(
            peers,
            outputs={name: 9 * x for name, x in peers.outputs.items()},
            returns=choose(mine.peers.returns, 9 * peers.returns, own[0]),
            success=choose(mine.peers.success, peers.success, own[0]),
        ),
    )


@each_rule
def test_peers_matter_where_the_coefficient_is_not_zero(name):
    group, other = (make_group(make_rule(CASES[name].base), 3, seed) for seed in (0, 1))
    run = compiled(CASES[name])
    before, after = run(group.of(1)), run(garbage_of_peers(group, other, 1))
    (head, *_) = make_rule(CASES[name]).spec(3).heads
    assert np.any(before["gradient"][head.name] != after["gradient"][head.name])


@each_rule
def test_absent_peers_are_none_whatever_they_left(name):
    group = make_group(make_rule(CASES[name].base), 3)
    absent = dataclasses.replace(group, present=jnp.array([False, True, False]))
    poisoned = jax.tree.map(
        lambda x: x.at[jnp.array([0, 2])].set(jnp.nan), absent.outputs
    )
    absent = dataclasses.replace(absent, outputs=poisoned)
    assert_is_base(name, CASES[name], absent.of(1))


@each_rule
def test_one_absent_peer_leaves_the_group_of_the_others(name):
    """An absent third agent changes nothing for a pair, whatever its outputs were."""
    whole = make_group(make_rule(CASES[name].base), 3)
    width = whole.experience.transitions.valid.shape[1] // 3
    trio = dataclasses.replace(whole, present=jnp.array([True, True, False])).of(0)
    (head, *_) = make_rule(CASES[name]).spec(3).heads
    outputs = {head.name: trio.peers.outputs[head.name].at[1].set(jnp.nan)}
    peers = dataclasses.replace(trio.peers, outputs={**trio.peers.outputs, **outputs})
    trio = dataclasses.replace(trio, peers=peers)
    pair = Group(
        experience=jax.tree.map(
            lambda x: x[:, : 2 * width] if x.ndim > 1 else x[: 2 * width],
            dataclasses.replace(whole.experience, clock=(), peers=()),
        ),
        outputs=jax.tree.map(lambda x: x[:2, :, : 2 * width], whole.outputs),
        target_outputs=jax.tree.map(
            lambda x: x[:2, :, : 2 * width], whole.target_outputs
        ),
        present=jnp.ones(2, bool),
    )
    cut = dataclasses.replace(
        whole.experience.peers,
        returns=whole.experience.peers.returns[: 2 * width],
        success=whole.experience.peers.success[: 2 * width],
    )
    pair = dataclasses.replace(
        pair,
        experience=dataclasses.replace(
            pair.experience, clock=whole.experience.clock, peers=cut
        ),
    )
    run = compiled(CASES[name])
    three, two = run(trio), run(pair.of(0))
    close(three["loss"][:, : 2 * width], two["loss"])
    close({k: x[:, : 2 * width] for k, x in three["gradient"].items()}, two["gradient"])
    assert not np.any(three["loss"][:, 2 * width :])


@each_rule
def test_the_order_of_peers_does_not_matter(name):
    group = make_group(make_rule(CASES[name].base), 3)
    width = group.experience.transitions.valid.shape[1] // 3
    order = np.array([0, 2, 1])
    columns = (order[:, None] * width + np.arange(width)).ravel()
    experience = group.of(0)
    swapped = dataclasses.replace(
        experience,
        transitions=jax.tree.map(lambda x: x[:, columns], experience.transitions),
        outputs={k: x[:, columns] for k, x in experience.outputs.items()},
        peers=dataclasses.replace(
            experience.peers,
            outputs={
                k: x[::-1][:, :, columns] for k, x in experience.peers.outputs.items()
            },
            returns=experience.peers.returns[columns],
            success=experience.peers.success[columns],
        ),
    )
    run = compiled(CASES[name])
    before, after = run(experience), run(swapped)
    close(before["loss"][:, columns], after["loss"])
    close({k: x[:, columns] for k, x in before["gradient"].items()}, after["gradient"])
    for part in ("state", "metrics"):
        close(before[part], after[part])


@each_rule
def test_transitions_that_do_not_exist_change_nothing(name):
    group = make_group(make_rule(CASES[name].base), 3)
    experience = group.of(1)
    t = experience.transitions
    garbage = dataclasses.replace(
        t,
        actions=jnp.where(t.valid, t.actions, (t.actions + 1) % 3),
        behaviour_logits=jnp.where(t.valid[..., None], t.behaviour_logits, jnp.nan),
        rewards=jnp.where(t.valid, t.rewards, jnp.nan),
        own=t.own | ~t.valid,
    )
    run = compiled(CASES[name])
    before = run(experience)
    after = run(dataclasses.replace(experience, transitions=garbage))
    for part in ("loss", "gradient", "peers_gradient", "metrics", "state"):
        close(before[part], after[part])


@each_rule
def test_every_option_changes_something(name):
    config = CASES[name]
    assert set(OPTIONS[name]) == set(type(config).model_fields) - {"kind", "base"}
    experience = make_group(make_rule(CASES[name].base), 3, T=6).of(1)
    experience = dataclasses.replace(experience, scores=jnp.array([1.0, 2.0, 5.0]))
    known: dict[Model, dict[str, object]] = {}
    for option, value in OPTIONS[name].items():
        beside = config.model_copy(update=ALONGSIDE.get((name, option), {}))
        changed = beside.model_copy(update={option: value})
        if beside not in known:
            known[beside] = _quick(study, beside)(experience)
        results = known[beside], _quick(study, changed)(experience)
        # A mean of equal batches is the same, however fast it forgets.
        part = "state" if option.endswith("_decay") else "gradient"
        pairs = zip(*(jax.tree.leaves(x[part]) for x in results), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs), option


def _quick(function: object, config: Model) -> object:
    """Return ``function`` of a rule, for one run: compiling takes longer than it."""
    return jax.jit(
        functools.partial(function, make_rule(config)),
        compiler_options={"xla_backend_optimization_level": 0},
    )


@pytest.mark.parametrize("kind", MUTUAL)
def test_it_goes_with_every_base_that_the_configuration_allows(kind):
    for base in bases(kind):
        if base in ("custom", "actor_critic") or base not in RULES:
            continue  # a user's own; all other tests here
        model = MUTUAL[kind]
        group_form = {"form": "group"} if base == "policy_gradient" else {}
        options = group_form if kind == "advantage_sharing" else {}
        config = model(base=RULES[base].config, **options)
        rule = make_rule(config)
        result = _quick(study, config)(make_group(rule, 2).of(0))
        for path, x in jax.tree_util.tree_leaves_with_path(result):
            assert np.all(np.isfinite(x)), (base, jax.tree_util.keystr(path))
        assert any(np.any(x) for x in result["gradient"].values()), base
        spec, own = rule.spec(3), rule.base.spec(3)
        assert dataclasses.replace(spec, reads="own") == own
        assert spec.reads in ("peers", "pool")
