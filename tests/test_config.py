"""Configuration: merging, numbers, overrides, and one line for every mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarl.config import (
    ActorCriticConfig,
    DiscoConfig,
    EvaluationConfig,
    ImpalaTorso,
    MLPTorso,
    NatureTorso,
    TrainConfig,
)
from metarl.config_loader import dump, is_override, load, merge, parse_override, schema
from metarl.errors import UserError
from metarl.rollout.batches import batch_size

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def train(*overrides: str) -> TrainConfig:
    return load(TrainConfig, (), overrides)


@pytest.fixture
def write(tmp_path):
    def _write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return _write


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


# --- Mistakes ---------------------------------------------------------------------

TORSO = "agent.network.torso"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=x", "seed=x: must be an integer"),
        ("seed=2.5", "seed=2.5: must be an integer"),
        ("seed=true", "seed=true: must be an integer"),
        ("seed='3'", "seed=3: must be an integer"),
        ("seed=-1", "seed=-1: must be greater than or equal to 0"),
        (
            "environment.num_envs=5000",
            "environment.num_envs=5000: must be less than or equal to 4096",
        ),
        (
            "meta.value_function.max_abs_update=.inf",
            "meta.value_function.max_abs_update=Infinity: must be a finite number",
        ),
        ("meta.remat=1", "meta.remat=1: must be true or false"),
        (
            # One more than 32 bits count.
            "population.lifetime_env_steps=2147483648",
            "population.lifetime_env_steps=2147483648: must be less than 2147483648",
        ),
        (
            "agent.optimizer.learning_rate=fast",
            "agent.optimizer.learning_rate=fast: must be a number",
        ),
        ("meta=3", "meta=3: must be a mapping of keys to values"),
        (
            "agent.optimzer.b1=0",
            "agent.optimzer={\"b1\": 0}: unknown key; did you mean 'optimizer'? "
            "(allowed: network, optimizer)",
        ),
        (
            "agent.sigma=3",
            "agent.sigma=3: unknown key (allowed: network, optimizer)",
        ),
        (
            "agent.optimizer.lr=1",
            "agent.optimizer.lr=1: unknown key; did you mean 'learning_rate'? (",
        ),
        (
            "lr=1",
            "lr=1: unknown key; did you mean 'agent.optimizer.learning_rate'? (allowed "
            "here: exp_name, ",
        ),
        (
            "meta.learning_rates=1",
            "meta.learning_rates=1: unknown key; did you mean "
            "'meta.optimizer.learning_rate'? (allowed here: ",
        ),
        (
            "stiky_actions=1",
            "stiky_actions=1: unknown key; did you mean "
            "'environment.atari.sticky_actions'? (allowed here: ",
        ),
        ("seeds=1", "seeds=1: unknown key; did you mean 'seed'? (allowed: "),
        (
            "agent.optimizer.learning_rate=1e99",
            "agent.optimizer.learning_rate=1e+99: must be a number that 32 bits hold, "
            "from 1.2e-38 to 3.4e38",
        ),
        (
            "agent.optimizer.eps=1e-99",
            "agent.optimizer.eps=1e-99: must be a number that 32 bits hold",
        ),
        (
            TORSO + "={kind: nature, chanels: [1]}",
            f"{TORSO}.chanels=[1]: unknown key; did you mean 'channels'? (allowed: "
            "kind, channels, kernels, strides, dense)",
        ),
        (
            "update_rule.kind=dico",
            "update_rule.kind=dico: unknown kind; did you mean 'disco'? ",
        ),
        (
            TORSO + "={kind: resnet}",
            f"{TORSO}.kind=resnet: unknown kind (allowed: mlp, nature, impala)",
        ),
        (
            "meta.value_function.torso.hidden=[3]",
            "meta.value_function.torso.kind: missing (allowed: mlp, nature, impala)",
        ),
        (
            "update_rule=disco",
            "update_rule=disco: must be a mapping; did you mean "
            "update_rule.kind=disco?",
        ),
        (
            "tracking.wandb=onlin",
            "tracking.wandb=onlin: not allowed; did you mean 'online'? "
            "(allowed: auto, online, offline, disabled)",
        ),
        (f"{TORSO}.hidden=[3,x]", f"{TORSO}.hidden[1]=x: must be an integer"),
        (
            "environment.games=Pong-v5",
            "environment.games=Pong-v5: must be a list, such as [Pong-v5]",
        ),
        (
            "update_rule.action_channels=[1]",
            "update_rule.action_channels=[1]: must have more items",
        ),
        (
            TORSO + "={kind: nature, channels: [1]}",
            f'{TORSO}={{"kind": "nature", "channels": [1]}}: channels, kernels and '
            "strides must have the same length, got 1, 3, 3",
        ),
        ("seed", "override 'seed': must be key=value or --key=value"),
        ("seed=[1", "override 'seed=[1': line 1, column 3: "),
        (
            "seed={a: 1, a: 2}",
            "override 'seed={a: 1, a: 2}': line 1, column 8:",
        ),
        ("seed={1: 2}", "override 'seed={1: 2}': key 1 must be a name"),
        ("exp_name=3", "exp_name=3: must be text; quote what reads as something else"),
    ],
)
def test_a_mistake_is_one_line(override, line):
    with pytest.raises(UserError) as caught:
        train(override)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)


def test_an_unknown_kind_lists_every_rule():
    with pytest.raises(UserError, match=r"\(allowed: policy_gradient, actor_critic, "):
        train("update_rule.kind=dqn")


def test_several_mistakes_are_counted():
    with pytest.raises(UserError, match=r"^seed=-1: .* \(and 2 more\)$"):
        train("seed=-1", "metasteps=1", "runtime.platform=tpu")


def test_a_syntax_error_names_file_and_line(write):
    path = write("a.yaml", "seed: 1\nmeta: [1\nmeta_steps: 3\n")
    with pytest.raises(UserError, match=r"a\.yaml: line 3, column 11: ") as caught:
        load(TrainConfig, [path])
    assert "\n" not in str(caught.value)


def test_a_repeated_key_is_refused(write):
    path = write("a.yaml", "seed: 1\nmeta_steps: 2\nseed: 3\n")
    with pytest.raises(UserError, match=r"line 3, column 1: key 'seed' is given twice"):
        load(TrainConfig, [path])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        load(TrainConfig, [tmp_path / "none.yaml"])


def test_a_file_without_keys_is_refused(write):
    with pytest.raises(UserError, match=r"must hold 'key: value' lines, not 'seed=3'"):
        load(TrainConfig, [write("a.yaml", "seed=3\n")])


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.yaml: it is not UTF-8 text"):
        load(TrainConfig, [tmp_path / "a.yaml"])


# --- Writing ----------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dump_loads_as_the_same_configuration(path, write):
    is_evaluation = path.stem.startswith("evaluate_")
    model = EvaluationConfig if is_evaluation else TrainConfig
    config = load(model, [path])
    assert config != model()
    assert load(model, [write("again.yaml", dump(config))]) == config


@given(
    name=st.sampled_from(["3e-4", "2e8", "1:30", "null", "yes", "0x1", "a: b", "#", ""])
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    rate=st.floats(min_value=1.2e-38, max_value=3.4e38),
)
def test_any_text_and_number_survive_a_dump(name, rate, tmp_path_factory):
    config = train().model_copy(update={"exp_name": name})
    optimizer = config.agent.optimizer.model_copy(update={"learning_rate": rate})
    agent = config.agent.model_copy(update={"optimizer": optimizer})
    config = config.model_copy(update={"agent": agent})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config))
    assert load(TrainConfig, [path]) == config


@pytest.mark.parametrize("model", [TrainConfig, EvaluationConfig])
def test_the_schema_describes_every_field(model):
    tree = json.loads(schema(model))
    assert list(tree["properties"]) == list(model.model_fields)
    assert tree["additionalProperties"] is False


# --- What ships -------------------------------------------------------------------


def test_quickstart_is_a_population_of_atari_games():
    config = load(TrainConfig, [_config("quickstart")])
    assert len(config.environment.games) >= 4
    assert config.environment.atari.frame_size >= 42
    assert config.meta_steps >= 20
    assert isinstance(config.agent.network.torso, NatureTorso)


def test_atari57_is_the_published_recipe():
    """Oh et al. 2025, Methods."""
    config = load(TrainConfig, [_config("atari57")])
    assert config.environment.suite == "atari57"
    assert config.population.num_agents == 128
    assert config.population.rollout_length == 29
    millions = [budget / 1e6 for budget in config.population.lifetime_env_steps]
    assert millions == [200, 100, 50, 20]
    assert config.population.replay.share == 0.9
    # The nearest to 9.6 new ones of 96 that is whole.
    assert batch_size(config.population.replay, num_envs=10) == 100
    assert config.environment.num_envs == 10
    assert (config.meta.inner_updates, config.meta.window) == (20, "sliding")
    # 48 validation trajectories, of as many steps as those of an update.
    assert config.environment.num_envs * config.meta.validation_rollouts == 50
    assert config.meta.optimizer.learning_rate == 1e-3
    assert config.meta.optimizer.max_grad_norm == 1.0
    assert config.agent.optimizer.learning_rate == 3e-4
    value = config.meta.value_function
    assert (value.learning_rate, value.discount, value.trace_lambda) == (
        3e-4,
        0.997,
        0.95,
    )
    assert isinstance(config.agent.network.torso, ImpalaTorso)
    assert config.update_rule == DiscoConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_file_says_how_to_use_it(path):
    head = path.read_text().split("exp_name:")[0]
    for word in ("command", "hardware", "time", "expect"):
        assert f"#   {word} " in head


def _config(name: str) -> Path:
    return next(path for path in CONFIGS if path.stem == name)
