"""Configuration: what is merged in which order, and what values are."""

from __future__ import annotations

import math

import pytest

from metarl.config import ActorCriticConfig, DiscoConfig, MLPTorso, TrainConfig
from metarl.config_loader import is_override, load, merge, parse_override


def train(*overrides: str) -> TrainConfig:
    return load(TrainConfig, (), overrides)


# --- Merging ----------------------------------------------------------------------


def test_files_merge_from_left_to_right_then_overrides(write):
    base = write("a.yaml", "seed: 1\nmeta_steps: 10\nmeta: {inner_updates: 3}\n")
    top = write("b.yaml", "seed: 2\nmeta: {validation_rollouts: 4}\n")
    config = load(TrainConfig, [base, top], ["meta_steps=30", "seed=5"])
    assert (config.seed, config.meta_steps) == (5, 30)
    assert (config.meta.inner_updates, config.meta.validation_rollouts) == (3, 4)
    assert load(TrainConfig, [top, base]).seed == 1


def test_another_kind_replaces_the_mapping(write):
    base = write("a.yaml", "update_rule: {kind: disco, discount: 0.5}\n")
    config = load(TrainConfig, [base], ["update_rule={kind: actor_critic}"])
    assert config.update_rule == ActorCriticConfig()


def test_the_same_kind_merges(write):
    base = write("a.yaml", "update_rule: {kind: disco, discount: 0.5}\n")
    config = load(TrainConfig, [base], ["update_rule={kind: disco, y_cost: 3}"])
    assert config.update_rule == DiscoConfig(discount=0.5, y_cost=3)


def test_a_field_of_the_default_kind_needs_no_kind():
    config = train("agent.network.torso.hidden=[3]", "update_rule.discount=0.9")
    assert config.agent.network.torso == MLPTorso(hidden=(3,))
    assert config.update_rule == DiscoConfig(discount=0.9)


@pytest.mark.parametrize("order", [1, -1])
def test_a_kind_and_its_fields_may_be_given_in_any_order(order):
    overrides = ["update_rule.entropy_cost=0.5", "update_rule.kind=actor_critic"]
    rule = train(*overrides[::order]).update_rule
    assert rule == ActorCriticConfig(entropy_cost=0.5)


def test_given_defaults_lie_between_the_models_and_the_files(write):
    base = write("a.yaml", "seed: 2\n")
    config = load(TrainConfig, [base], defaults={"seed": 3, "meta_steps": 4})
    assert (config.seed, config.meta_steps) == (2, 4)
    assert config.exp_name == TrainConfig().exp_name


def test_lists_are_replaced_not_merged(write):
    base = write("a.yaml", "environment: {games: [Pong-v5, Boxing-v5]}\n")
    config = load(TrainConfig, [base], ["environment.games=[Qbert-v5]"])
    assert config.environment.games == ("Qbert-v5",)


def test_a_suite_takes_the_place_of_games_given_before(write):
    games = write("a.yaml", "environment: {games: [Pong-v5]}\n")
    suite = write("b.yaml", "environment: {suite: catch}\n")
    by_suite = load(TrainConfig, [games], ["environment.suite=catch"]).environment
    assert (by_suite.suite, by_suite.games) == ("catch", ())
    by_games = load(TrainConfig, [suite, games]).environment
    assert (by_games.suite, by_games.games) == (None, ("Pong-v5",))


def test_a_suite_and_games_given_together_are_both_kept_for_refusal():
    both = train("environment.games=[Pong-v5]", "environment.suite=catch").environment
    assert (both.suite, both.games) == ("catch", ("Pong-v5",))


def test_merge_leaves_its_inputs_unchanged():
    below, above = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(below, above) == {"a": {"b": 3, "c": 2}}
    assert (below, above) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_an_empty_file_changes_nothing(write):
    assert load(TrainConfig, [write("a.yaml", "# nothing\n")]) == TrainConfig()


# --- Values -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("2e8", 2e8),
        ("1E+3", 1000.0),
        ("-1.5e-2", -0.015),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("0x10", 16),
        (".inf", math.inf),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2e3]", [1, 2000.0]),
        ("{kind: mlp}", {"kind": "mlp"}),
        # Text, though YAML 1.1 has numbers and dates for them.
        ("1:30", "1:30"),
        ("010", "010"),
        ("2026-01-01", "2026-01-01"),
        ("e4", "e4"),
        ("1e", "1e"),
        ("'3e-4'", "3e-4"),
    ],
)
def test_values_of_overrides(text, value):
    parsed = parse_override(f"a={text}")["a"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_exponents_in_files_are_numbers(write):
    path = write("a.yaml", "population: {lifetime_env_steps: 2e8}\nmeta_steps: 1e3\n")
    config = load(TrainConfig, [path])
    assert config.population.lifetime_env_steps == 200_000_000
    assert config.meta_steps == 1000


def test_both_forms_of_overrides_mean_the_same():
    key = "agent.optimizer.learning_rate"
    assert train(f"--{key}=3e-4") == train(f"{key}=3e-4")
    assert train(f"{key}=3e-4").agent.optimizer.learning_rate == 3e-4


def test_a_value_may_hold_equals_signs():
    assert train("exp_name=a=b").exp_name == "a=b"


@pytest.mark.parametrize("text", ["a=1", "--a.b_c=", "a.b=x=y"])
def test_overrides_are_recognised(text):
    assert is_override(text)


@pytest.mark.parametrize("text", ["a", "-a=1", "./a=1", "a/b=1", "=1", "a.=1", "1a=1"])
def test_other_words_are_no_overrides(text):
    assert not is_override(text)
