"""A user's own rule, by `module:Class`."""

from __future__ import annotations

import hashlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_run
from contract.experience import make_experience
from contract.rule_cases import DOCUMENTATION

import metarl
from metarl import train
from metarl.agents import group
from metarl.agents.build import build_agent
from metarl.config import (
    ActorCriticConfig,
    AgentConfig,
    CustomConfig,
    MLPTorso,
    NetworkConfig,
)
from metarl.errors import UserError
from metarl.evaluation import evaluate
from metarl.evaluation.cells import plan
from metarl.kept_rules import KeptRules
from metarl.rule_files import load_rule, show_rule
from metarl.rules import make_rule
from metarl.rules.checked import checked
from metarl.run_folder import RunFolder

MODULE = "a_users_rules"
MISTAKES = """
import dataclasses

from metarl.rules.base import UpdateRule


class Incomplete(UpdateRule):
    pass


class Learned(AdvantageWeighted):
    def init_params(self, key):
        return {"weight": jnp.zeros(3)}


class Greedy(Learned):
    def spec(self, num_actions):
        return RuleSpec(heads=(Head("values", num_actions), Head("v", 1)))

    def act(self, outputs, clock, key):
        return jnp.argmax(outputs["values"], axis=-1), outputs["values"]


class NeedsArguments(AdvantageWeighted):
    def __init__(self, size):
        raise AssertionError


class NotHashable(AdvantageWeighted):
    __hash__ = None


class NoRule:
    pass


number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """Put a module beside the user, who stands in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    path = tmp_path / f"{MODULE}.py"
    path.write_text(code + MISTAKES)
    (tmp_path / "broken_rules.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield path
    sys.modules.pop(MODULE, None)


def test_it_is_found_in_the_working_directory_and_its_origin_is_unknown():
    loaded = metarl.load_rule(f"{MODULE}:AdvantageWeighted")
    assert type(loaded.rule).__name__ == loaded.name == "AdvantageWeighted"
    assert loaded.meta_params == {}
    assert loaded.status("Pong-v5") == "unknown"
    assert loaded.manifest.config == CustomConfig(rule=f"{MODULE}:AdvantageWeighted")
    assert make_rule(loaded.manifest.config) == loaded.rule
    assert f"class={MODULE}:AdvantageWeighted" in show_rule(
        f"{MODULE}:AdvantageWeighted"
    )


def test_a_changed_module_is_another_rule(module):
    before = load_rule(f"{MODULE}:AdvantageWeighted").manifest.sha256
    assert load_rule(f"{MODULE}:AdvantageWeighted").manifest.sha256 == before
    module.write_text(module.read_text() + "# changed\n")
    # What was imported is what runs.
    assert load_rule(f"{MODULE}:AdvantageWeighted").manifest.sha256 == before
    sys.modules.pop(MODULE)
    assert load_rule(f"{MODULE}:AdvantageWeighted").manifest.sha256 != before


def kept_rules(folder) -> KeptRules:
    config = tiny_run.config(
        folder, f"update_rule={{kind: custom, rule: '{MODULE}:Learned'}}"
    )
    run = RunFolder(folder) if folder.exists() else RunFolder.create(config)
    return KeptRules(config, run, games=["Catch-v0"], parent=None)


def test_a_run_with_a_class_of_ones_own_remembers_its_module(tmp_path, module):
    run = tmp_path / "run"
    params = {"weight": jnp.ones(3)}
    kept_rules(run).write(
        run / "rule", params, meta_steps=1, env_steps=9, games_validation=["Pong-v5"]
    )
    loaded = load_rule(run)
    assert loaded.status("Catch-v0") == "seen"
    # Nobody knows what shaped the class.
    assert loaded.status("Pong-v5") == loaded.status("Hero-v5") == "unknown"
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    assert loaded.manifest.source == {"module_sha256": digest}
    (cell, *_) = plan([loaded], overrides=["environment.suite=catch_5x5"])
    assert cell.identity()["rule_module_sha256"] == digest
    kept_rules(run)  # it can be gone on with
    sys.modules.pop(MODULE)
    module.write_text(module.read_text() + "# changed\n")
    message = rf"run/rule: the module of {MODULE}:Learned is not what it was when"
    for take_up in (load_rule, kept_rules):
        with pytest.raises(UserError, match=message) as caught:
            take_up(run)
        assert f", not {digest[:12]} (bring" in str(caught.value)
        assert "\n" not in str(caught.value)
    # An earlier version wrote neither; what it could not know is unknown.
    manifest = json.loads((run / "rule" / "manifest.json").read_text())
    manifest |= {"source": {}, "seen_is_complete": True}
    (run / "rule" / "manifest.json").write_text(json.dumps(manifest))
    assert load_rule(run).status("Hero-v5") == "unknown"


def test_it_is_evaluated_like_any_other(tmp_path):
    (result,) = evaluate(
        [f"{MODULE}:AdvantageWeighted"],
        overrides=[
            "environment.suite=catch_5x5",
            "environment.num_envs=4",
            "rollout_length=6",
            "agent.network.torso.hidden=[8]",
            "env_steps=100",
            "seeds=[1]",
            f"results_dir={tmp_path / 'results'}",
        ],
    )
    assert (result.rule, result.status) == ("AdvantageWeighted", "unknown")
    assert result.episodes > 10


def test_agents_without_a_policy_are_not_meta_trained(tmp_path):
    given = tiny_run.config(
        tmp_path / "run", f"update_rule={{kind: custom, rule: '{MODULE}:Greedy'}}"
    )
    with pytest.raises(UserError) as caught:
        train.new_run(given)
    assert str(caught.value) == (
        "update_rule: agents of Greedy have no Head('logits', 3), the policy that "
        "meta-gradients go through (mixed, reverse; es and pes need none)"
    )
    assert not (tmp_path / "run").exists()


def test_a_checked_rule_is_the_same_rule():
    rule = load_rule(f"{MODULE}:AdvantageWeighted").rule
    assert checked(rule) == checked(type(rule)())
    assert hash(checked(rule)) == hash(checked(type(rule)()))
    own = make_rule(ActorCriticConfig())
    assert checked(own) is own


RIGHT = {
    "spec": "RuleSpec(heads=(Head('logits', num_actions),))",
    "targets": "{'weight': t.rewards}, rule_state, {'reward': jnp.mean(t.rewards)}",
    "loss": "weighted, {'policy_loss': weighted}",
}
WRONG = [
    ("spec", "None", "spec(3) is None (needed: a RuleSpec)"),
    ("spec", "RuleSpec(heads=('logits',))", "spec(3).heads is ('logits',) (needed: a"),
    ("spec", "RuleSpec(heads=())", "spec(3).heads is () (needed: one or more, each"),
    (
        "spec",
        "RuleSpec(heads=(Head('v', 1), Head('logits', 3), Head('v', 1)))",
        "spec(3).heads is (v, logits, v) (needed: one or more, each name once)",
    ),
    (
        "spec",
        "RuleSpec(heads=(Head('v', 1),))",
        "needed: Head('logits', 3), which actions are drawn from, or an `act` of",
    ),
    ("spec", "RuleSpec(heads=(Head('logits', 4),))", "needed: Head('logits', 3), whi"),
    (
        "spec",
        "RuleSpec(heads=(Head('logits', 3, per_action=True),))",
        "needed: Head('logits', 3), whi",
    ),
    (
        "loss",
        "jnp.sign(weighted).astype(int), {}",
        "loss: the loss is int32[6, 4] (needed: floating-point numbers)",
    ),
    ("loss", "jnp.mean(weighted), {}", "loss: the loss is float32[] (needed: [T, B]"),
    ("loss", "weighted[0], {}", "loss: the loss is float32[4] (needed: [T, B], one"),
    ("loss", "weighted.T, {}", "is float32[4, 6] (needed: [T, B], one of each tran"),
    ("loss", "weighted[..., None], {}", "the loss is float32[6, 4, 1] (needed"),
    ("loss", "weighted", "loss is float32[6, 4] (needed: (loss, values to log))"),
    ("loss", "weighted, {'a': 0.0}", "loss: the 'a' to log is float64[] (needed: [T"),
    ("loss", "weighted, [weighted]", "loss: the values to log is [float32[6, 4]] (n"),
    ("targets", "{}, rule_state", "targets is ({}, {}) (needed: (targets, rule sta"),
    (
        "targets",
        "{'weight': 1.0}, rule_state, {}",
        "targets: the target 'weight' is float64[] (needed: [T, B, ...] with [6, 4]",
    ),
    (
        "targets",
        "{'weight': t.rewards}, {'n': 0}, {}",
        "targets: the rule state is {'n': int64[]} (needed: {} again)",
    ),
    (
        "targets",
        "{'weight': t.rewards}, rule_state, {'reward': t.rewards}",
        "targets: the 'reward' to log is float32[6, 4] (needed: a scalar here)",
    ),
]


@pytest.mark.parametrize(("method", "returned", "message"), WRONG)
def test_what_a_rule_returns_is_checked_before_it_is_broadcast(
    module, method, returned, message
):
    returns = RIGHT | {method: returned}
    module.write_text(
        f"""
import dataclasses
import jax, jax.numpy as jnp
from metarl.numerics import take_action
from metarl.rules.base import Head, RuleSpec, UpdateRule

@dataclasses.dataclass(frozen=True)
class Mine(UpdateRule):
    def spec(self, num_actions):
        return {returns["spec"]}

    def targets(self, meta_params, rule_state, experience, key):
        t = experience.transitions
        return {returns["targets"]}

    def loss(self, outputs, peers, targets, transitions):
        log_pi = jax.nn.log_softmax(outputs["logits"])
        taken = take_action(log_pi, transitions.actions)
        weighted = -targets["weight"] * taken * jnp.ones_like(transitions.rewards)
        return {returns["loss"]}
"""
    )
    with pytest.raises(UserError) as caught:
        _trace(load_rule(f"{MODULE}:Mine").rule)
    assert str(caught.value).startswith("rule Mine: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "{'l2_phi': jnp.zeros(())}",
            "regularizers: a term is 'l2_phi' (needed: one that a weight is known of: "
            "squared_mean_*, target_kl, l2_pi, l2_y)",
        ),
        (
            "{'l2_pi': experience.transitions.rewards}",
            "regularizers: the term 'l2_pi' is float32[6, 4] (needed: a scalar here)",
        ),
        ("{'l2_pi': jnp.zeros(()), 'squared_mean_y': jnp.ones(())}", None),
    ],
)
def test_a_regularizer_needs_a_weight(module, returned, message):
    module.write_text(
        module.read_text()
        + f"""

class Regular(AdvantageWeighted):
    def regularizers(self, targets, experience):
        return {returned}
"""
    )
    rule = checked(load_rule(f"{MODULE}:Regular").rule)
    experience = make_experience(jax.random.key(0), rule, T=6, B=4)

    def trace() -> object:
        return jax.eval_shape(lambda e: rule.regularizers({}, e), experience)

    if message is None:
        assert sorted(trace()) == ["l2_pi", "squared_mean_y"]
        return
    with pytest.raises(UserError) as caught:
        trace()
    assert str(caught.value) == f"rule Regular: {message}"


def _trace(rule) -> None:
    """Trace an update of 4 trajectories of 6 steps, with 3 actions."""
    network = NetworkConfig(torso=MLPTorso(hidden=(4,)))
    agent = build_agent(
        AgentConfig(network=network), rule, tiny.NUM_ACTIONS, lifetime_env_steps=100
    )
    rollouts = tiny.rollouts(0, 1, steps=6, batch=4)

    def update(key: jax.Array) -> object:
        states = agent.init(key, rollouts.observations[0, 0])
        states = jax.tree.map(lambda x: x[None], states)
        return group.update(agent, {}, states, rollouts, key)[0]

    jax.eval_shape(update, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Rule", "no module 'no_such_module' (looked in PYTHONPATH"),
        (f"{MODULE}.part:Rule", f"no module '{MODULE}.part' (looked in PYTHONPATH"),
        ("broken_rules:Rule", "importing its module failed (ModuleNotFoundError: "),
        (f"{MODULE}:AdvantageWeihted", "; did you mean 'AdvantageWeighted'?"),
        (f"{MODULE}:NoRule", "not a class that derives from metarl.rules.base"),
        (f"{MODULE}:number", "not a class that derives from metarl.rules.base"),
        (f"{MODULE}:Incomplete", "Incomplete() failed (TypeError: Can't instantiate"),
        (f"{MODULE}:NeedsArguments", "NeedsArguments() failed (TypeError: "),
        (f"{MODULE}:NotHashable", "its instances must be hashable"),
    ],
)
def test_mistakes_are_one_line(name, message):
    with pytest.raises(UserError) as caught:
        load_rule(name)
    assert str(caught.value).startswith(f"rule '{name}': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_with_a_colon_is_a_path(tmp_path):
    (tmp_path / "runs:old").mkdir()
    with pytest.raises(UserError, match=r"runs:old holds no rule"):
        load_rule("runs:old")


def test_a_name_that_is_nothing_tells_what_is_allowed():
    with pytest.raises(UserError, match="a module:Class nor one of actor_critic"):
        load_rule("no_such_rule")
