"""Read YAML files and `key=value` overrides into the models of `config/`, and back.

Defaults, then files from left to right, then overrides are merged as plain mappings,
and validated once; a mistake becomes one line. Must not import jax or environments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from metarl.config import Model
from metarl.config_errors import describe
from metarl.errors import UserError

Config = TypeVar("Config", bound=Model)
Tree = dict[str, object]

ALTERNATIVES = (("suite", "games"),)
"""Keys of one mapping of which the one given later stands in place of the other."""

_OVERRIDE = re.compile(r"(?:--)?([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)

# YAML 1.2's numbers. PyYAML's own are those of 1.1: `3e-4` and `2e8` would be strings,
# `1:30` ninety, `010` eight and `2026-01-01` a date.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$"
)
_REPLACED = ("int", "float", "timestamp")


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are the obvious ones and whose keys are not repeated."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key}' is given twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal: lists on one line, no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=True
    ),
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, exp) for tag, exp in pairs if tag.split(":")[-1] not in _REPLACED]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")
    )


def load(
    model: type[Config],
    files: Iterable[str | Path] = (),
    overrides: Iterable[str] = (),
    *,
    defaults: Mapping[str, object] | None = None,
) -> Config:
    """Return the configuration that defaults, files and overrides make together.

    A mapping with another `kind` replaces the one before; other mappings merge key by
    key, and everything else is replaced.

    Args:
      model: the schema.
      files: YAML files, later ones on top.
      overrides: `key=value` or `--key=value`, with dotted keys and YAML values.
      defaults: lie under the files, and over the model's own.

    Raises:
      UserError: a file cannot be read, an override has no such form, or a value does
        not fit the schema. One line, which names the first mistake and counts others.
    """
    tree = merge(model().model_dump(mode="json"), defaults or {})
    for file in files:
        tree = merge(tree, read_yaml(Path(file)))
    # Together, so that the order of a new kind and its settings does not matter, and
    # two alternatives given at once are left for the validation to refuse.
    together: Tree = {}
    for override in overrides:
        together = merge(together, parse_override(override), layers=False)
    return validate(model, merge(tree, together))


def validate(model: type[Config], tree: Mapping[str, object]) -> Config:
    """Return ``tree`` as a ``model``, strictly: no string is a number, no bool an int.

    Raises:
      UserError: it does not fit.
    """
    try:
        # Through JSON, since strict Python input would refuse lists as tuples.
        return model.model_validate_json(json.dumps(_whole_numbers(tree)), strict=True)
    except ValidationError as error:
        raise UserError(describe(model, tree, error)) from None


def dump(config: Model) -> str:
    """Return ``config`` as YAML that loads as an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def schema(model: type[Model]) -> str:
    """Return the JSON schema of ``model``, for editors."""
    return json.dumps(model.model_json_schema(), indent=2)


def merge(
    below: Mapping[str, object], above: Mapping[str, object], *, layers: bool = True
) -> Tree:
    """Return ``below`` with ``above`` on top.

    Args:
      below: merged into, key by key; a mapping with another `kind` is dropped.
      above: what wins.
      layers: whether a key of ``above`` also drops its `ALTERNATIVES` in ``below``;
        False within one layer, where giving both is a mistake that must not vanish.
    """
    if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
        return dict(above)
    merged = dict(below)
    for pair in ALTERNATIVES if layers else ():
        if sum(bool(above.get(key)) for key in pair) == 1:
            merged = {key: merged[key] for key in merged if key not in pair}
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value, layers=layers)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> Tree:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
      UserError: it cannot be read, is no YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read configuration file {path}: {reason}") from None
    tree = _parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold 'key: value' lines, not {_excerpt(text)}")
    return tree


def parse_override(text: str) -> Tree:
    """Return `a.b=value` or `--a.b=value` as ``{"a": {"b": value}}``.

    Raises:
      UserError: it has no such form.
    """
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise UserError(
            f"override '{text}': must be key=value or --key=value, such as "
            "seed=3 or --agent.optimizer.learning_rate=3e-4"
        )
    path, value = match.groups()
    tree = _parse(value, f"override '{text}'")
    for key in reversed(path.split(".")):
        tree = {key: tree}
    assert isinstance(tree, dict)
    return tree


def is_override(text: str) -> bool:
    """Return whether ``text`` has the form of an override."""
    return _OVERRIDE.fullmatch(text) is not None


def _parse(text: str, where: str) -> object:
    """Return the value of a YAML text; ``where`` it stood is for the message."""
    try:
        tree: object = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise UserError(f"{where}:{line} {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {reason}") from None
    _check_keys(tree, where)
    return tree


def _check_keys(tree: object, where: str) -> None:
    """Raise UserError if a key is no string."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise UserError(f"{where}: key {key!r} must be a name")
            _check_keys(value, where)
    elif isinstance(tree, list):
        for value in tree:
            _check_keys(value, where)


def _whole_numbers(tree: object) -> object:
    """Return ``tree`` with floats such as 2e8 as ints, which fields of both take."""
    if isinstance(tree, Mapping):
        return {key: _whole_numbers(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_whole_numbers(value) for value in tree]
    if isinstance(tree, float) and tree.is_integer():
        return int(tree)
    return tree


def _excerpt(text: str) -> str:
    """Return the first line of ``text``, quoted and shortened."""
    line = text.strip().splitlines()[0]
    return repr(line if len(line) <= 40 else line[:37] + "...")
