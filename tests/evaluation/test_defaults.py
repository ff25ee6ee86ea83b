from __future__ import annotations

import typing

import pytest

from metarl.config import (
    AgentConfig,
    AtariOptions,
    DeepMutualLearningConfig,
    DiscoConfig,
    DistractorsConfig,
    EnvironmentConfig,
    EvaluationConfig,
    LPGConfig,
    LPGCriticConfig,
    MLPTorso,
    MutualQConfig,
    NatureTorso,
    NetworkConfig,
    OptimizerConfig,
    PPOConfig,
)
from metarl.envs import suites
from metarl.errors import UserError
from metarl.evaluation.defaults import rule_for, settings_for
from metarl.rule_files import LoadedRule, load_rule, new_manifest
from metarl.rules import make_rule

DML_OF_PPO = DeepMutualLearningConfig(base=PPOConfig())


def discovered(agent: dict | None = None) -> LoadedRule:
    config = DiscoConfig()
    return LoadedRule(make_rule(config), {}, new_manifest(config, agent=agent), "d")


def settings(rule: LoadedRule, family="catch", *overrides: str, **options):
    arguments = {"env_steps": 1000, "overrides": overrides, **options}
    return settings_for(rule, family, **arguments)


def test_discovered_rules_get_discorls_settings_on_small_games():
    found = settings(discovered())
    assert found.rollout_length == 29
    assert (found.replay.capacity, found.replay.ratio) == (1024, 32)
    assert found.environment.num_envs == 2  # so batches of 64
    assert found.agent.optimizer == OptimizerConfig(learning_rate=1e-2)
    network = found.agent.network
    assert network.torso == MLPTorso(hidden=(512, 512), activate_final=False)
    assert network.action_model.lstm == 128
    assert network.action_model.head_hidden == (128,)
    assert network.head_hidden == ()


def test_discovered_rules_get_the_papers_schedule_on_atari():
    found = settings(discovered(), "atari", env_steps=200_000_000)
    optimizer = found.agent.optimizer
    assert (optimizer.learning_rate, optimizer.end_learning_rate) == (3e-4, 0)
    assert optimizer.schedule == "cosine"
    assert optimizer.warmup_env_steps == 5_000_000
    assert optimizer.weight_decay == 0.1
    assert found.replay.ratio * found.environment.num_envs == 96
    assert isinstance(found.agent.network.torso, NatureTorso)


def test_the_warm_up_is_a_part_of_the_users_budget():
    found = settings(discovered(), "atari", "env_steps=4000", env_steps=10**6)
    assert found.env_steps == 4000
    assert found.agent.optimizer.warmup_env_steps == 100


def test_hand_written_rules_learn_on_policy():
    for name in ("actor_critic", "policy_gradient"):
        for family in ("catch", "atari"):
            found = settings(load_rule(name), family)
            assert found.replay.capacity == 0
            assert found.environment.num_envs == 32


def test_lpg_learns_on_policy_and_from_clipped_rewards_on_atari():
    config = LPGConfig()
    lpg = LoadedRule(make_rule(config), {}, new_manifest(config), "lpg")
    reference = load_rule("actor_critic")
    assert settings(lpg) == settings(reference)
    found, plain = settings(lpg, "atari"), settings(reference, "atari")
    assert not plain.environment.clip_rewards
    assert found.replay.capacity == 0
    assert found.environment.clip_rewards
    clipped = plain.environment.model_copy(update={"clip_rewards": True})
    assert found == plain.model_copy(update={"environment": clipped})


def test_lpg_critic_replays_on_atari():
    config = LPGCriticConfig()
    rule = LoadedRule(make_rule(config), {}, new_manifest(config), "lpg_critic")
    found = settings(rule, "atari")
    assert (found.rollout_length, found.environment.num_envs) == (16, 4)
    assert (found.replay.capacity, found.replay.ratio) == (256, 4)
    assert found.agent == settings(load_rule("actor_critic"), "atari").agent


@pytest.mark.parametrize("family", ["cartpole", "acrobot"])
def test_ppo_gets_the_reference_settings_on_classic_control(family):
    found = settings(load_rule("ppo"), family, env_steps=500_000)
    assert (found.rollout_length, found.environment.num_envs) == (128, 4)
    assert found.replay.capacity == 0
    optimizer = found.agent.optimizer
    assert optimizer == OptimizerConfig(
        learning_rate=2.5e-4,
        schedule="linear",
        eps=1e-5,
        max_grad_norm=0.5,
        max_abs_update=10.0,
    )
    # Adam's largest step, of a gradient after a long time without any.
    assert optimizer.max_abs_update > (1 - optimizer.b1) / (1 - optimizer.b2) ** 0.5
    network = found.agent.network
    assert (network.torso, network.head_hidden) == (MLPTorso(hidden=()), (64, 64))
    assert (network.activation, network.initialization) == ("tanh", "orthogonal")


@pytest.mark.parametrize("family", ["catch", "frozen_lake", "minigrid"])
def test_ppo_gets_the_torso_of_other_rules_on_toys(family):
    found = settings(load_rule("ppo"), family)
    other = settings(load_rule("actor_critic"), family)
    assert found.agent.network.torso == other.agent.network.torso
    assert (found.rollout_length, found.environment.num_envs) == (128, 16)
    assert found.agent.optimizer.learning_rate == 1e-3
    assert found.agent.optimizer.max_grad_norm == 0.5


def test_ppo_gets_the_reference_settings_on_atari():
    rule = load_rule("ppo")
    found = settings(rule, "atari")
    assert (found.rollout_length, found.environment.num_envs) == (128, 8)
    assert found.environment.clip_rewards
    assert found.agent.network.initialization == "orthogonal"
    assert rule_for(rule, "atari").rule == make_rule(PPOConfig(clip=0.1))
    assert rule_for(rule, "atari").manifest.config == PPOConfig(clip=0.1)
    assert rule_for(rule, "cartpole") is rule
    # Whoever chose options of his own keeps them.
    mine = PPOConfig(epochs=3)
    other = LoadedRule(make_rule(mine), {}, new_manifest(mine), "mine")
    assert rule_for(other, "atari") is other


@pytest.mark.parametrize(
    ("family", "batch", "kept"),
    [("cartpole", 32, 1000), ("catch", 64, 20_000), ("atari", 256, 32_768)],
)
def test_q_learning_replays_transitions(family, batch, kept):
    found = settings(load_rule("q_learning"), family)
    replay, num_envs = found.replay, found.environment.num_envs
    assert replay.ratio * num_envs * found.rollout_length == batch
    assert replay.capacity * found.rollout_length == kept
    assert found.agent.optimizer.max_abs_update == 10  # never reached
    # Of what is acted, each transition is learned from as often as is usual.
    assert replay.ratio == (32 if family == "cartpole" else 8)
    assert found.environment.clip_rewards == (family == "atari")


def test_q_learning_on_classic_control_is_the_published_learner():
    found = settings(load_rule("q_learning"), "cartpole")
    assert (found.rollout_length, found.environment.num_envs) == (1, 1)
    assert found.agent.optimizer.learning_rate == 1e-2
    torso = MLPTorso(hidden=(8, 8), activate_final=True)
    assert found.agent.network == NetworkConfig(torso=torso, activation="leaky_relu")


def test_agents_of_a_mutual_rule_get_the_settings_of_its_base():
    for config, base in ((MutualQConfig(), "q_learning"), (DML_OF_PPO, "ppo")):
        mutual = LoadedRule(make_rule(config), {}, new_manifest(config), "m")
        for family in ("cartpole", "catch", "atari"):
            assert settings(mutual, family) == settings(load_rule(base), family)


def test_the_budget_is_the_suites_unless_given():
    rule = load_rule("actor_critic")
    assert settings(rule).env_steps == 1000
    assert settings(rule, "catch", "env_steps=2e3").env_steps == 2000
    assert settings(rule, "catch", "env_steps=null").env_steps == 1000


def test_the_user_wins(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rollout_length: 5\nagent: {optimizer: {learning_rate: 0.5}}\n")
    found = settings(discovered(), "catch", "--rollout_length=7", files=[file])
    assert found.rollout_length == 7
    assert found.agent.optimizer.learning_rate == 0.5
    assert found.replay.ratio == 32


def test_another_torso_replaces_the_defaults_whole():
    override = "agent.network.torso={kind: mlp, hidden: [3]}"
    found = settings(load_rule("actor_critic"), "atari", override)
    assert found.agent.network.torso == MLPTorso(hidden=(3,))


def trained_on(environment: EnvironmentConfig) -> tuple[dict, AgentConfig]:
    agent = AgentConfig(
        network=NetworkConfig(torso=MLPTorso(hidden=(11,))),
        optimizer=OptimizerConfig(learning_rate=0.25),
    )
    section = {
        "agent": agent.model_dump(mode="json"),
        "rollout_length": 13,
        "num_envs": environment.num_envs,
        "environment": environment.model_dump(mode="json"),
    }
    return section, agent


def test_a_rule_of_several_families_brings_the_settings_of_each():
    # As `metarl train` writes it: that of the first family, and of all.
    mixed = EnvironmentConfig(games=("CartPole-v1", "Catch-v0"), num_envs=6)
    first, agent = trained_on(mixed)
    replayed = {**first, "num_envs": 3, "replay": {"capacity": 50, "ratio": 10}}
    replayed["environment"] = {**first["environment"], "num_envs": 3}
    rule = discovered({**first, "families": {"cartpole": first, "catch": replayed}})
    found = settings(rule, "catch")
    assert (found.agent, found.environment.num_envs) == (agent, 3)
    assert (found.replay.capacity, found.replay.ratio) == (50, 10)
    found = settings(rule, "cartpole")
    assert (found.environment.num_envs, found.replay.capacity) == (6, 0)
    # What others need, of which the two are not agreed, is not known.
    assert settings(rule, "minigrid") == settings(discovered(), "minigrid")


def test_what_several_families_share_suits_another_without_pictures():
    mixed = EnvironmentConfig(games=("CartPole-v1", "Catch-v0"), num_envs=6)
    section, agent = trained_on(mixed)
    pictures = {**section, "rollout_length": 9}
    families = {"cartpole": section, "catch": section, "atari": pictures}
    rule = discovered({**section, "families": families})
    for family in ("minigrid", "envpool"):
        found = settings(rule, family)
        assert (found.agent, found.rollout_length) == (agent, 13)
        assert found.environment.num_envs == 6
    assert settings(rule, "atari").rollout_length == 9
    assert settings(rule, "procgen") == settings(discovered(), "procgen")


def test_one_family_without_pictures_says_nothing_of_another():
    mixed = EnvironmentConfig(games=("Catch-v0", "Pong-v5"), num_envs=6)
    section, _ = trained_on(mixed)
    rule = discovered({**section, "families": {"catch": section, "atari": section}})
    assert settings(rule, "minigrid") == settings(discovered(), "minigrid")
    # As of a rule that has seen no pictures.
    alone, _ = trained_on(EnvironmentConfig(suite="catch_5x5", num_envs=6))
    assert settings(discovered(alone), "minigrid") == settings(rule, "minigrid")


def test_a_rule_brings_what_it_was_meta_trained_with():
    section, agent = trained_on(EnvironmentConfig(suite="catch_5x5", num_envs=6))
    found = settings(discovered(section))
    assert found.agent == agent
    assert found.rollout_length == 13
    assert found.environment.num_envs == 6
    assert found.replay.capacity == 0
    # What is played is the user's choice, not the rule's.
    assert found.environment.suite is None


def test_its_board_is_a_picture_where_it_was_one_in_meta_training():
    pictures = EnvironmentConfig(
        suite="catch_5x5",
        catch_pixels=3,
        distractors=DistractorsConfig(kind="noise"),
    )
    section, _ = trained_on(pictures)
    rule = discovered({**section, "families": {"catch": section}})
    found = settings(rule).environment
    assert found.catch_pixels == 3
    # What it is tested among is the user's choice.
    assert found.distractors == DistractorsConfig()
    chosen = settings(rule, "catch", "environment.catch_pixels=2").environment
    assert chosen.catch_pixels == 2
    assert settings(rule, "minigrid").environment.catch_pixels is None


def test_its_frames_are_those_it_was_meta_trained_on():
    atari = AtariOptions(frame_size=42, sticky_actions=0.25)
    section, _ = trained_on(EnvironmentConfig(games=("Pong-v5",), atari=atari))
    assert settings(discovered(section), "atari").environment.atari == atari
    overridden = settings(
        discovered(section), "atari", "environment.atari.frame_size=50"
    )
    assert overridden.environment.atari.frame_size == 50
    assert overridden.environment.atari.sticky_actions == 0.25


def test_on_another_family_it_gets_the_published_settings():
    section, _ = trained_on(EnvironmentConfig(suite="catch_5x5"))
    assert settings(discovered(section), "cartpole") == settings(
        discovered(), "cartpole"
    )
    assert settings(discovered(section), "atari") == settings(discovered(), "atari")


@pytest.mark.parametrize(
    "section",
    [
        {"agent": {}, "environment": {"suite": "gone"}},
        {"environment": {"suite": "catch"}},
        {"agent": "x", "environment": {"suite": "catch"}},
    ],
)
def test_a_section_that_says_too_little_is_left_aside(section):
    assert settings(discovered(section)) == settings(discovered())


def test_a_mistake_is_one_line_that_names_the_field():
    with pytest.raises(UserError, match=r"replay\.capacity.*-1"):
        settings(discovered(), "catch", "replay.capacity=-1")


def test_a_protocol_of_atari_says_nothing_of_other_games():
    given = ["environment.atari.protocol=dqn", "environment.num_envs=3"]
    atari, catch = (
        settings_for(
            load_rule("actor_critic"), family, env_steps=1000, overrides=given
        ).environment
        for family in ("atari", "catch")
    )
    assert (atari.atari.protocol, atari.num_envs) == ("dqn", 3)
    assert (catch.atari.protocol, catch.num_envs) == ("default", 3)


def test_settings_are_a_valid_configuration():
    for rule in (discovered(), load_rule("actor_critic")):
        for family in typing.get_args(suites.Family):
            found = settings(rule, family)
            assert EvaluationConfig.model_validate(found.model_dump()) == found
