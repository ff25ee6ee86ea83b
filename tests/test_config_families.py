"""Settings of one family: what is laid over the population's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run

from metarl import config_loader
from metarl.config import ImpalaTorso, MLPTorso, TrainConfig
from metarl.config_families import check_families, settings_of
from metarl.errors import UserError


def config(*overrides: str) -> TrainConfig:
    return tiny_run.config(Path("run"), *overrides)


def test_a_familys_settings_lie_over_those_of_the_population() -> None:
    given = config(
        "families={atari: {agent: {network: {torso: {kind: impala, dense: 64}}}, "
        "environment: {num_envs: 2, atari: {frame_size: 42}}, "
        "population: {rollout_length: 7}, meta: {value_function: {discount: 0.5}}}}"
    )
    atari, catch = settings_of(given, "atari"), settings_of(given, "catch")
    assert atari.agent.network.torso == ImpalaTorso(dense=64)
    # What is not named stays the population's.
    assert atari.agent.network.action_model == given.agent.network.action_model
    assert atari.agent.optimizer.learning_rate == 0.01
    assert (atari.environment.num_envs, atari.environment.atari.frame_size) == (2, 42)
    assert atari.environment.suite == "catch_5x5"
    assert atari.population.rollout_length == 7
    assert atari.population.num_agents == 2
    assert atari.meta.value_function.discount == 0.5
    assert atari.meta.inner_updates == 2
    assert catch is given
    assert catch.agent.network.torso == MLPTorso(hidden=(8,))


def test_the_section_survives_a_dump_as_it_was_given(tmp_path: Path) -> None:
    given = config("families.cartpole={agent: {network: {torso: {hidden: [3]}}}}")
    path = tmp_path / "config.yaml"
    path.write_text(config_loader.dump(given))
    # A default that was written out would win over the population's setting.
    loaded = config_loader.load(
        TrainConfig, [path], ["agent.optimizer.learning_rate=0.5"]
    )
    assert loaded.families == given.families
    assert settings_of(loaded, "cartpole").agent.optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "families.atary={environment: {num_envs: 2}}",
            "families.atary: unknown family; did you mean 'atari'? (allowed: atari, ",
        ),
        (
            "families.atari.agents={}",
            "families.atari.agents: unknown key; did you mean 'agent'? "
            "(allowed: agent, environment, population, meta)",
        ),
        (
            "families.atari.population.num_agents=3",
            "families.atari.population.num_agents: does not differ between families",
        ),
        (
            "families.atari.meta.inner_updates=3",
            "families.atari.meta.inner_updates: does not differ between families "
            "(allowed: value_function)",
        ),
        (
            "families.catch.environment.atari.frame_size=42",
            "families.catch.environment.atari: is for families.atari alone",
        ),
        (
            "families.catch.environment.num_envs=0",
            "families.catch.environment.num_envs=0: must be greater than 0",
        ),
        (
            "families.catch.agent.network.torso.kind=natur",
            "families.catch.agent.network.torso.kind=natur: unknown kind; did you mean "
            "'nature'?",
        ),
        (
            "families.catch.agent=3",
            "families.catch.agent=3: must be a mapping of keys to values",
        ),
        ("families.catch=3", "families.catch=3: must be a mapping of keys to values"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_families(config(override))
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
