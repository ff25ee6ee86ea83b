"""The files in configs/: each loads, and says how to use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl.config import (
    ActionModelConfig,
    DeepMutualLearningConfig,
    DiscoConfig,
    EvaluationConfig,
    ImpalaTorso,
    NatureTorso,
    OptimizerConfig,
    PPOConfig,
    TrainConfig,
)
from metarl.config_loader import dump, load
from metarl.envs.tasks import resolve_environment
from metarl.evaluation.cells import plan
from metarl.rollout.batches import batch_size

OF_A_CONTENDER = ("group_size", "update_rule", "rule_sha256")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dump_loads_as_the_same_configuration(path, write):
    is_evaluation = path.stem.startswith("evaluate_")
    model = EvaluationConfig if is_evaluation else TrainConfig
    config = load(model, [path])
    assert config != model()
    assert load(model, [write("again.yaml", dump(config))]) == config


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
    assert value.moments_decay == 0.99
    # Adam's step is clipped to 1, and nothing else of it is changed.
    assert config.agent.optimizer == OptimizerConfig(
        learning_rate=3e-4, schedule="constant", max_abs_update=1.0, weight_decay=0
    )
    assert isinstance(config.agent.network.torso, ImpalaTorso)
    assert config.update_rule == DiscoConfig()
    # Where the paper says nothing: the released notebook.
    assert config.agent.network.action_model == ActionModelConfig(
        lstm=256, head_hidden=(256,)
    )
    assert config.meta.regularizers.model_dump(exclude={"l2_pi", "l2_y"}) == {
        "policy_entropy": 1e-2,
        "y_entropy": 1e-3,
        "z_entropy": 1e-3,
        "squared_mean": 1e-3,
        "target_kl": 1e-2,
    }
    # 57 games in lexicographic order, so that 14 of them have three agents.
    tasks = resolve_environment(config.environment, same_shapes=True)
    games = [task.game.task_id for task in tasks]
    assert (len(games), games) == (57, sorted(games))


def test_mutual_learners_are_compared_among_unseen_backgrounds_at_equal_steps():
    file = _config("evaluate_distractors")
    pair = ["ppo", "mutual", "mutual_joint"]
    cells = {
        (size, cell.rule.name): cell
        for size, rules in ((1, ["ppo"]), (2, pair))
        for cell in plan(rules, [file], [f"group_size={size}", "seeds=[1]"])
    }
    # But for the size and the rule they are one experiment.
    identities = [
        {k: v for k, v in cell.identity().items() if k not in OF_A_CONTENDER}
        for cell in cells.values()
    ]
    assert all(identity == identities[0] for identity in identities)
    assert {cell.env_steps for cell in cells.values()} == {400_000}
    assert len(load(EvaluationConfig, [file]).seeds) >= 5
    constant, joint = (cells[2, name].rule.manifest.config for name in pair[1:])
    assert constant == DeepMutualLearningConfig(base=PPOConfig())
    assert joint == constant.model_copy(update={"peer_gradient": True})
    # No background is as bright as the ball.
    distractors = cells[1, "ppo"].settings.environment.distractors
    assert (distractors.kind, distractors.strength) == ("backgrounds", 0.8)
    (half,) = plan(["ppo_half"], [file], ["env_steps=200_000", "seeds=[1]"])
    assert half.rule.rule == cells[1, "ppo"].rule.rule
    assert half.settings.agent == cells[1, "ppo"].settings.agent


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_file_says_how_to_use_it(path):
    head = path.read_text().split("exp_name:")[0]
    for word in ("command", "hardware", "time", "expect"):
        assert f"#   {word} " in head


def _config(name: str) -> Path:
    return next(path for path in CONFIGS if path.stem == name)
