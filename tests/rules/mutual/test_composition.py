"""Mutual rules by name and by configuration: what goes together, what is refused."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from metarl import config_loader
from metarl.config import (
    MUTUAL,
    DeepMutualLearningConfig,
    DiscoConfig,
    Model,
    PPOConfig,
    TrainConfig,
    base_of,
)
from metarl.errors import UserError
from metarl.evaluation.defaults import PPO_ATARI_CLIP, rule_for, settings_for
from metarl.rule_files import load_rule, new_manifest, save_rule
from metarl.rules import make_rule
from metarl.rules.ppo import PPO


def refused(update_rule: dict[str, object]) -> str:
    """Return what a user is told of a configuration that is refused."""
    with pytest.raises(UserError) as error:
        config_loader.validate(TrainConfig, {"update_rule": update_rule})
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", MUTUAL)
def test_every_mutual_rule_has_a_name_and_a_base(kind):
    loaded = load_rule(kind)
    assert loaded.name == loaded.manifest.kind == kind
    assert loaded.manifest.config == MUTUAL[kind]()
    assert loaded.rule.base == make_rule(MUTUAL[kind]().base)
    assert loaded.rule == make_rule(MUTUAL[kind]())
    assert hash(loaded.rule) == hash(make_rule(MUTUAL[kind]()))


def test_a_base_may_be_named_before_it():
    loaded = load_rule("ppo+deep_mutual_learning")
    assert loaded.name == "ppo+deep_mutual_learning"
    assert loaded.manifest.config == DeepMutualLearningConfig(base=PPOConfig())
    assert loaded.rule.base == PPO(PPOConfig())
    spec = loaded.rule.spec(3)
    assert (spec.epochs, spec.minibatches, spec.reads) == (4, 4, "peers")


def test_a_discovered_base_brings_its_meta_parameters(tmp_path):
    config = DiscoConfig(prediction_size=3, num_bins=5, trajectory_lstm=2)
    params = make_rule(config).init_params(jax.random.key(0))
    manifest = new_manifest(config, games_seen=["Pong-v5"])
    save_rule(tmp_path / "mine", params, manifest)
    loaded = load_rule(f"{tmp_path / 'mine'}+success_gated_transfer")
    assert loaded.name == "mine+success_gated_transfer"
    assert base_of(loaded.manifest.config) == config
    assert loaded.status("Pong-v5") == "seen"
    for a, b in zip(
        jax.tree.leaves(loaded.meta_params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    shapes = jax.eval_shape(loaded.rule.init_params, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(dict(params))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "random+deep_mutual_learning",
            "does not go with random (allowed bases: policy_gradient, actor_critic",
        ),
        ("q_learning+peer_rollout_pooling", "does not go with q_learning"),
        ("policy_gradient+advantage_sharing", "has no values of states"),
        ("ppo+deep_mutual_learning+advantage_sharing", "does not go with deep_mutual"),
        ("ppo+deep_mutal_learning", "did you mean 'deep_mutual_learning'?"),
        ("pppo+deep_mutual_learning", "rule 'pppo' is neither"),
        ("nothing+like_it", "rule 'nothing+like_it' is neither"),
    ],
)
def test_names_without_meaning_are_refused(name, message):
    with pytest.raises(UserError) as error:
        load_rule(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_with_a_plus_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DiscoConfig(prediction_size=3, num_bins=5, trajectory_lstm=2)
    params = make_rule(config).init_params(jax.random.key(0))
    save_rule("ppo+deep_mutual_learning", params, new_manifest(config))
    assert load_rule("ppo+deep_mutual_learning").manifest.config == config


@pytest.mark.parametrize(
    ("update_rule", "message"),
    [
        (
            {"kind": "deep_mutual_learning", "base": {"kind": "random"}},
            "update_rule.base.kind=random: unknown kind",
        ),
        (
            {"kind": "advantage_sharing", "base": {"kind": "policy_gradient"}},
            "form=value: policy_gradient has no values of states",
        ),
        (
            {"kind": "advantage_sharing", "base": {"kind": "disco"}},
            "(allowed: policy_gradient, actor_critic, ppo)",
        ),
        (
            {"kind": "peer_rollout_pooling", "base": {"kind": "disco"}, "clip": 0.1},
            "clip: disco has no advantages",
        ),
        (
            {
                "kind": "peer_rollout_pooling",
                "base": {"kind": "disco"},
                "form": "group",
            },
            "form=group: disco has no advantages",
        ),
        (
            {
                "kind": "peer_rollout_pooling",
                "base": {"kind": "lpg"},
                "correction": "base",
            },
            "correction=base: lpg corrects for no other policy",
        ),
        (
            {"kind": "success_gated_transfer", "base": {"kind": "ppo", "clp": 0.2}},
            "update_rule.base.clp=0.2: unknown key; did you mean 'clip'?",
        ),
    ],
)
def test_configurations_without_meaning_are_refused(update_rule, message):
    assert message in refused(update_rule)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "advantage_sharing",
            {"capability": True},
            "capability=true: has no effect without form=group",
        ),
        (
            "advantage_sharing",
            {"form": "group", "bootstrap": "mixed"},
            "bootstrap=mixed: has no effect without form=value",
        ),
        (
            "advantage_sharing",
            {"form": "group", "capability_decay": 0.5},
            "capability_decay=0.5: has no effect without capability=true",
        ),
        (
            "peer_rollout_pooling",
            {"correction": "none", "max_weight": None},
            "max_weight=null: has no effect without correction=weight",
        ),
        (
            "peer_rollout_pooling",
            {"correction": "base", "ratio_power": 1.0},
            "ratio_power=1.0: has no effect without correction=weight",
        ),
        (
            "peer_rollout_pooling",
            {"capability_decay": 0.5},
            "capability_decay=0.5: has no effect without capability=true",
        ),
        (
            "success_gated_transfer",
            {"quantile": 0.5},
            "quantile=0.5: has no effect without success=quantile",
        ),
    ],
)
def test_options_that_nobody_reads_are_refused(kind, options, message):
    found = refused({"kind": kind, **options})
    assert message in found
    assert "\n" not in found
    # At their defaults, as a file that was printed has them, they say nothing.
    config_loader.validate(
        TrainConfig, {"update_rule": MUTUAL[kind]().model_dump(mode="json")}
    )


def test_agents_get_the_settings_of_the_base():
    mutual, base = load_rule("ppo+advantage_sharing"), load_rule("ppo")
    for family in ("cartpole", "catch", "atari"):
        ours, theirs = (
            settings_for(rule_for(rule, family), family, env_steps=1000)
            for rule in (mutual, base)
        )
        assert ours == theirs
    tight = rule_for(mutual, "atari")
    assert tight.rule.base.config.clip == PPO_ATARI_CLIP
    assert tight.manifest.config.base == tight.rule.base.config
    other = load_rule("advantage_sharing")
    assert rule_for(other, "atari") is other


def test_the_configuration_survives_a_file():
    for model in MUTUAL.values():
        config: Model = model()
        again = config_loader.validate(
            TrainConfig, {"update_rule": config.model_dump(mode="json")}
        )
        assert again.update_rule == config
    assert dataclasses.is_dataclass(make_rule(config))
