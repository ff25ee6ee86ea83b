"""Rules that an evaluation's configuration describes: `rules`, each by its own name.

Host code, between the configuration and `cells.py`.
"""

from __future__ import annotations

import jax

from metarl.config import MUTUAL, CustomConfig, EvaluationConfig
from metarl.errors import UserError
from metarl.rule_files import BUILT_IN, LoadedRule, new_manifest
from metarl.rules import make_rule


def named_rules(config: EvaluationConfig) -> dict[str, LoadedRule]:
    """Return the rules of ``config.rules`` by name.

    Raises:
      UserError: two have one name, one has that of a rule that there is, or one would
        have to be discovered first.
    """
    named: dict[str, LoadedRule] = {}
    for entry in config.rules:
        name, rule_config = entry.name, entry.update_rule
        if name in named:
            raise UserError(f"rules: two are called '{name}'")
        if name in BUILT_IN or name in MUTUAL:
            raise UserError(f"rules: '{name}' is the name of a rule that there is")
        rule = make_rule(rule_config)
        shapes = jax.eval_shape(rule.init_params, jax.random.key(0))
        if isinstance(rule_config, CustomConfig) or jax.tree.leaves(shapes):
            raise UserError(
                f"rules: '{name}' is of kind {rule_config.kind}, which is evaluated by "
                "its file, run or class (allowed: hand-written rules)"
            )
        named[name] = LoadedRule(rule, {}, new_manifest(rule_config), name)
    return named
