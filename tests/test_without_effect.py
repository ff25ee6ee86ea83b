"""What a user set, and nobody would read, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl import config_loader, without_effect
from metarl.config import EvaluationConfig, TrainConfig
from metarl.errors import UserError
from metarl.evaluation.cells import plan

MACHADO = "environment.atari.protocol=machado"
DQN = "environment.atari.protocol=dqn"
Config = type[TrainConfig] | type[EvaluationConfig]


def refuse(model: Config, *overrides: str, files: tuple[Path, ...] = ()) -> None:
    config = config_loader.load(model, files, overrides)
    without_effect.refuse(config, files, overrides)


@pytest.mark.parametrize("model", [TrainConfig, EvaluationConfig])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [MACHADO, "environment.atari.full_action_set=false"],
            "environment.atari.full_action_set=false: environment.atari.protocol="
            "machado sets it to true (leave one of them out)",
        ),
        (
            ["environment={atari: {sticky_actions: 0.1}}", MACHADO],
            "environment.atari.sticky_actions=0.1: environment.atari.protocol=machado "
            "sets it to 0.25 (leave one of them out)",
        ),
        (
            [DQN, "environment.clip_rewards=false"],
            "environment.clip_rewards=false: environment.atari.protocol=dqn sets it to "
            "true (leave one of them out)",
        ),
    ],
)
def test_a_protocol_overrides_nothing_that_was_given(model, overrides, message):
    with pytest.raises(UserError) as caught:
        refuse(model, *overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "overrides",
    [
        [MACHADO],
        [MACHADO, "environment.atari.sticky_actions=0.25"],
        [MACHADO, "environment.atari.frame_skip=2", "environment.clip_rewards=true"],
        [DQN, "environment.atari.full_action_set=false"],
        ["environment.atari.episodic_life=true"],
    ],
)
def test_what_does_not_contradict_is_accepted(overrides):
    refuse(EvaluationConfig, *overrides)


def test_files_count_and_the_last_value_is_the_one_that_was_meant(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("environment: {atari: {sticky_actions: 0.1}}\n")
    with pytest.raises(UserError, match=r"sticky_actions=0\.1"):
        refuse(EvaluationConfig, MACHADO, files=(file,))
    later = "environment.atari.sticky_actions=0.25"
    refuse(EvaluationConfig, MACHADO, later, files=(file,))


def test_a_printed_configuration_is_no_contradiction_of_itself(tmp_path):
    config = config_loader.load(TrainConfig, [], [MACHADO, "validation.every=0"])
    file = tmp_path / "config.yaml"
    file.write_text(config_loader.dump(config))
    assert "sticky_actions: 0.0" in file.read_text()
    refuse(TrainConfig, files=(file,))
    with pytest.raises(UserError, match=r"episodic_life=true"):
        refuse(TrainConfig, "environment.atari.episodic_life=true", files=(file,))


def test_an_evaluation_from_python_is_checked_too():
    overrides = ["environment.games=[Pong]", DQN, "environment.atari.sticky_actions=1"]
    with pytest.raises(UserError, match=r"sticky_actions=1.*dqn sets it to 0"):
        plan(["random"], overrides=overrides)


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("validation.suite=atari3_val", "suite=atari3_val"),
        ("validation.games=[Pong]", r"games=\['Pong'\]"),
        ("validation.seeds=[1]", r"seeds=\[1\]"),
    ],
)
def test_validation_needs_to_be_told_how_often(override, shown):
    with pytest.raises(UserError, match=rf"validation\.{shown}: .*validation\.every="):
        refuse(TrainConfig, override)
    refuse(TrainConfig, override, "validation.every=2")
    refuse(TrainConfig, override, "validation.every=0")  # off for now


@pytest.mark.parametrize(
    "override", ["tracking.log_every=10", "environment.epoch_steps=50"]
)
def test_an_evaluation_refuses_what_is_for_training(override):
    refuse(TrainConfig, override)
    with pytest.raises(UserError, match=f"{override}: is for `metarl train` alone; "):
        refuse(EvaluationConfig, override)


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("meta.slide=5", "meta.window=sliding"),
        ("population.replay.capacity=64", "population.replay.share=0.9"),
        ("meta.optimizer.schedule_meta_steps=9", "meta.optimizer.schedule=linear"),
        ("meta.optimizer.end_learning_rate=0.1", "meta.optimizer.schedule=cosine"),
        ("agent.optimizer.end_learning_rate=0.1", "agent.optimizer.schedule=cosine"),
        (
            "families.catch.agent.optimizer.end_learning_rate=0.1",
            "families.catch.agent.optimizer.schedule=linear",
        ),
        (
            "families.catch.population.replay.capacity=64",
            "families.catch.population.replay.share=0.9",
        ),
    ],
)
def test_a_setting_needs_the_choice_that_reads_it(tmp_path, override, needed):
    given = [override, "meta.inner_updates=8"]
    if override.startswith("meta.optimizer.end_"):
        needed += " meta.optimizer.schedule_meta_steps=9"
    name = needed.partition("=")[0].replace(".", r"\.")
    message = rf"^{override.replace('.', '[.]')}: has no effect without {name}="
    with pytest.raises(UserError, match=message):
        refuse(TrainConfig, *given)
    refuse(TrainConfig, *given, *needed.split())
    file = tmp_path / "mine.yaml"
    config = config_loader.load(TrainConfig, [], [*given, *needed.split()])
    file.write_text(config_loader.dump(config))
    off = {"sliding": "block", "0.9": "0", "linear": "constant", "cosine": "constant"}
    name, _, value = needed.split()[0].partition("=")
    refuse(TrainConfig, f"{name}={off[value]}", files=(file,))  # off for now


def test_a_capacity_is_read_where_one_family_replays():
    share = "families.catch.population.replay.share=0.5"
    refuse(TrainConfig, "population.replay.capacity=64", share)


def test_the_end_of_a_schedule_is_read_where_one_family_has_one():
    schedule = "families.catch.agent.optimizer.schedule=linear"
    refuse(TrainConfig, "agent.optimizer.end_learning_rate=0.1", schedule)
    # Another family's does not make up for its own.
    end = "families.atari.agent.optimizer.end_learning_rate=0.1"
    with pytest.raises(UserError, match=r"^families\.atari\.agent\..*: has no effect"):
        refuse(TrainConfig, end, schedule)
    refuse(TrainConfig, end, "agent.optimizer.schedule=linear")


def test_a_default_that_nobody_reads_does_no_harm(tmp_path):
    end, schedule = "optimizer.end_learning_rate=0", "agent.optimizer.schedule=linear"
    refuse(TrainConfig, f"agent.{end}", f"meta.{end}", f"families.catch.agent.{end}")
    file = tmp_path / "mine.yaml"
    file.write_text("families: {catch: {agent: {optimizer: {end_learning_rate: 1}}}}\n")
    refuse(TrainConfig, schedule, files=(file,))
    # Turned off for now, for the family too.
    refuse(TrainConfig, "agent.optimizer.schedule=constant", files=(file,))


def test_a_protocol_of_a_family_overrides_nothing_that_was_given():
    family = "families.atari.environment.atari"
    sticky, protocol = f"{family}.sticky_actions=0.1", f"{family}.protocol=machado"
    with pytest.raises(UserError) as caught:
        refuse(TrainConfig, sticky, protocol)
    assert str(caught.value) == (
        f"{sticky}: environment.atari.protocol=machado sets it to 0.25 (leave one of "
        "them out)"
    )
    refuse(TrainConfig, protocol)
    refuse(TrainConfig, sticky)


CATCH, PONG = "environment.suite=catch", "environment.games=[Pong]"


@pytest.mark.parametrize("model", [TrainConfig, EvaluationConfig])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [CATCH, MACHADO],
            "environment.atari.protocol=machado: is for Atari through EnvPool alone, "
            "and catch has no such game (leave it out)",
        ),
        (
            [
                "environment.games=[CartPole-v1, 'gym:ale_py:ALE/Pong-v5']",
                "environment.atari.full_action_set=false",
            ],
            "environment.atari.full_action_set=false: is for Atari through EnvPool "
            "alone, and CartPole-v1, gym:ale_py:ALE/Pong-v5 has no such game (leave it "
            "out)",
        ),
    ],
)
def test_options_of_atari_are_for_atari(model, overrides, message):
    with pytest.raises(UserError) as caught:
        refuse(model, *overrides)
    assert str(caught.value) == message
    refuse(model, "environment.games=[Pong, Catch]", overrides[1])
    refuse(model, overrides[0])


def test_options_of_atari_serve_the_games_that_rates_are_tried_on():
    tuning = "tuning={learning_rates: [1], games: [Assault]}"
    refuse(EvaluationConfig, CATCH, MACHADO, tuning)
    with pytest.raises(UserError, match="protocol=machado: is for Atari"):
        refuse(EvaluationConfig, CATCH, MACHADO, tuning.replace("Assault", "CartPole"))


@pytest.mark.parametrize("model", [TrainConfig, EvaluationConfig])
def test_a_printed_configuration_gives_no_options_of_atari(tmp_path, model):
    config = config_loader.load(model, [], [PONG, MACHADO])
    file = tmp_path / "config.yaml"
    file.write_text(config_loader.dump(config))
    refuse(model, CATCH, files=(file,))


def test_a_ratio_needs_a_replay(tmp_path):
    ratio, none = "replay.ratio=4", "replay.capacity=0"
    for overrides in ([ratio, none], ["replay={capacity: 0, ratio: 4}"]):
        with pytest.raises(UserError, match=r"replay\.ratio=4: nothing is replayed"):
            refuse(EvaluationConfig, *overrides)
    refuse(EvaluationConfig, ratio)
    refuse(EvaluationConfig, none)
    file = tmp_path / "mine.yaml"
    file.write_text("replay: {capacity: 64, ratio: 4}\n")
    refuse(EvaluationConfig, none, files=(file,))  # off for now
    file.write_text("replay: {capacity: 0}\n")
    with pytest.raises(UserError, match=r"replay\.ratio=4"):
        refuse(EvaluationConfig, ratio, files=(file,))
    refuse(EvaluationConfig, ratio, "replay.capacity=8", files=(file,))
    config = config_loader.load(EvaluationConfig, [], [none])
    file.write_text(config_loader.dump(config))
    assert "ratio: 32" in file.read_text()
    refuse(EvaluationConfig, files=(file,))


def test_the_final_score_is_of_episodes_or_of_a_share():
    share = "final_score.last_share=0.1"
    with pytest.raises(UserError, match=r"episodes=10 and last_share=0\.1 are both"):
        refuse(EvaluationConfig, CATCH, "final_score.episodes=10", share)
    refuse(EvaluationConfig, CATCH, share)
    refuse(EvaluationConfig, CATCH, "final_score.episodes=10")
