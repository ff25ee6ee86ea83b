"""Every mistake in a configuration is one line."""

from __future__ import annotations

import pytest

from metarl.config import TrainConfig
from metarl.config_loader import load
from metarl.errors import UserError

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
            f"{TORSO}: channels, kernels and strides must have the same length, got 1, "
            "3, 3",
        ),
        (
            "meta={window: sliding, slide: 3}",
            "meta: slide=3 is more than the window's inner_updates=2",
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
        load(TrainConfig, (), [override])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)


def test_an_unknown_kind_lists_every_rule():
    with pytest.raises(UserError, match=r"\(allowed: policy_gradient, actor_critic, "):
        load(TrainConfig, (), ["update_rule.kind=dqn"])


def test_several_mistakes_are_counted():
    with pytest.raises(UserError, match=r"^seed=-1: .* \(and 2 more\)$"):
        load(TrainConfig, (), ["seed=-1", "metasteps=1", "runtime.platform=tpu"])


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
