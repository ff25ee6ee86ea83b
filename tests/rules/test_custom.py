"""A user's own rule, by `module:Class`."""

from __future__ import annotations

import re
import sys

import pytest
from contract.rule_cases import DOCUMENTATION

import metarl
from metarl.config import CustomConfig
from metarl.errors import UserError
from metarl.evaluation import evaluate
from metarl.rule_files import load_rule, show_rule
from metarl.rules import make_rule

MODULE = "a_users_rules"
MISTAKES = """
import dataclasses

from metarl.rules.base import UpdateRule


class Incomplete(UpdateRule):
    pass


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
    assert load_rule(f"{MODULE}:AdvantageWeighted").manifest.sha256 != before


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
