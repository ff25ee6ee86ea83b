"""Read and write rules: `load_rule`, `save_rule`; `finding.py` says where they are.

A host module. Every array is checked against what the rule itself would initialise,
so that a file of other sizes is one clear line and never a failure inside a loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from pydantic import JsonValue

from metarl.config import (
    MUTUAL,
    CustomConfig,
    DiscoConfig,
    RuleConfig,
    mutual_config,
)
from metarl.errors import UserError, nearest
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.finding import BUILT_IN, find_rule, shipped_rules
from metarl.rule_files.manifest import (
    Manifest,
    Status,
    new_manifest,
    parse_manifest,
    status,
)
from metarl.rules import make_rule
from metarl.rules.base import UpdateRule
from metarl.rules.custom import is_class_name, source_of
from metarl.rules.disco_names import PUBLISHED_NAMES, from_published
from metarl.types import Params

MODULE_SHA256 = "module_sha256"
"""Key of a manifest's `source`: of the text of the module that a user's class is in."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRule:
    """An update rule with its meta-parameters, and what is known of its origin.

    Attributes:
      rule: the rule.
      meta_params: its meta-parameters; an empty tree for a hand-written rule.
      manifest: configuration, origin, games seen.
      name: what tables and figures call it.
      path: the folder (or bare npz file) that it was read from; None without one.
    """

    rule: UpdateRule
    meta_params: Params
    manifest: Manifest
    name: str
    path: Path | None = None

    def status(self, game: str) -> Status:
        """Return whether ``game`` is seen, validation, held_out or unknown."""
        return status(self.manifest, game)


def load_rule(path: str | Path) -> LoadedRule:
    """Return the rule that ``path`` names.

    Args:
      path: the name of a built-in hand-written rule; a folder with `rule.npz` and
        `manifest.json`, the `rule.npz` in it, or a run (its newest rule is taken; the
        best one is in its folder `rule_best`); the name of a folder under
        `checkpoints/`, the working directory's or the package's; published Disco
        weights as they are (what those have seen is then unknown); a class of your
        own as `module:Class`; or `BASE+RULE`, a mutual rule by its name on top of any
        of these. The first of these that there is.

    Raises:
      UserError: there is no such rule, or its file is not what its manifest says.
    """
    if str(path) in BUILT_IN:
        config = BUILT_IN[str(path)]
        return LoadedRule(make_rule(config), {}, new_manifest(config), str(path))
    if is_class_name(str(path)) and not Path(path).exists():
        return _load_class(str(path))
    base, _, kind = str(path).rpartition("+")
    is_there = Path(path).exists() or str(path) in shipped_rules()
    if not is_there and base and (kind in MUTUAL or base in BUILT_IN):
        return _combine(load_rule(base), kind)
    where, name = find_rule(path)
    if where.is_file():
        return _load_bare(where, name)
    data, text = rule_folder.read(where)
    if text is None:
        return _load_bare(where / rule_folder.ARRAYS, name)
    manifest = parse_manifest(text, where=str(where / rule_folder.MANIFEST))
    file = where / rule_folder.ARRAYS
    if manifest.sha256 != rule_folder.sha256(data):
        raise UserError(f"{file}: its sha256 is not the one that manifest.json gives")
    arrays = rule_folder.unpack(data, where=file)
    rule = make_rule(manifest.config)
    _require_same_module(manifest, where)
    params = check_params(rule, arrays, str(file))
    return LoadedRule(rule, params, manifest, name, where)


def save_rule(folder: Path | str, meta_params: Params, manifest: Manifest) -> Manifest:
    """Write a rule to ``folder``, whole or not at all.

    Args:
      folder: made where missing; a rule in it is replaced.
      meta_params: of the rule that ``manifest.config`` describes.
      manifest: its hash and number of parameters are filled in, and what the text of
        a user's own class was.

    Returns:
      The manifest as written.
    """
    arrays = flatten_params(meta_params)
    check_params(make_rule(manifest.config), arrays, str(folder))
    data = rule_folder.pack(arrays)
    written = manifest.model_copy(
        update={
            "source": manifest.source | _module_of(manifest.config),
            "sha256": rule_folder.sha256(data),
            "num_parameters": sum(array.size for array in arrays.values()),
        }
    )
    rule_folder.write(Path(folder), data, written.to_json())
    return written


def flatten_params(params: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Return the arrays of a nested dict by their path, joined by slashes."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if "/" in name:
            raise ValueError(f"meta-parameter '{name}': a name holds no slash")
        if isinstance(value, Mapping):
            below = flatten_params(value)
            arrays |= {f"{name}/{path}": array for path, array in below.items()}
        else:
            arrays[name] = np.asarray(jax.device_get(value))
    return arrays


def check_params(
    rule: UpdateRule, arrays: Mapping[str, np.ndarray], where: str
) -> Params:
    """Return ``arrays`` as the tree that ``rule`` would initialise.

    Args:
      rule: whose meta-parameters they are.
      arrays: by path.
      where: the file, for messages.

    Raises:
      UserError: a tensor is missing or unknown, or of another shape or dtype.
    """
    expected = jax.eval_shape(lambda: rule.init_params(jax.random.key(0)))
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(expected)
    shapes = {_join(path): leaf for path, leaf in with_paths}
    if unknown := sorted(set(arrays) - set(shapes)):
        raise UserError(
            f"{where}: unknown tensor '{unknown[0]}'{nearest(unknown[0], shapes)}"
        )
    for path, leaf in shapes.items():
        if path not in arrays:
            raise UserError(f"{where}: tensor '{path}' is missing")
        array = arrays[path]
        if array.shape != leaf.shape:
            raise UserError(
                f"{where}: tensor '{path}' has shape {array.shape}, the "
                f"configuration needs {leaf.shape}"
            )
        # Initialised in float64 under jax_enable_x64, a rule still reads its float32.
        if array.dtype not in (leaf.dtype, _single(leaf.dtype)):
            raise UserError(
                f"{where}: tensor '{path}' is {array.dtype}, the configuration "
                f"needs {leaf.dtype}"
            )
    leaves = [jax.device_put(arrays[path]) for path in shapes]
    params: Params = jax.tree_util.tree_unflatten(treedef, leaves)
    return params


def _combine(base: LoadedRule, kind: str) -> LoadedRule:
    """Return the mutual rule ``kind`` on ``base``, with that one's meta-parameters.

    Raises:
      UserError: there is no such rule, or it does not go with that base.
    """
    config = mutual_config(kind, base.manifest.config)
    manifest = base.manifest.model_copy(update={"config": config, "kind": kind})
    return LoadedRule(
        make_rule(config), base.meta_params, manifest, f"{base.name}+{kind}", base.path
    )


def _load_class(name: str) -> LoadedRule:
    """Return a user's own rule; what shaped it is not known.

    Its hash is of the module's text and the meta-parameters, so that a rule that was
    changed is another one.
    """
    config = CustomConfig(rule=name)
    rule = make_rule(config)
    params = rule.init_params(jax.random.key(0))
    arrays = flatten_params(params)
    manifest = new_manifest(config).model_copy(
        update={
            "seen_is_complete": False,
            "num_parameters": sum(array.size for array in arrays.values()),
            "sha256": rule_folder.sha256(source_of(name) + rule_folder.pack(arrays)),
            "source": {"class": name},
        }
    )
    return LoadedRule(rule, params, manifest, name.partition(":")[2])


def _require_same_module(manifest: Manifest, where: Path) -> None:
    """Refuse a user's class whose text is not the one that its parameters belong to.

    Args:
      manifest: of the rule; one that does not tell (of an earlier version) is accepted.
      where: its folder, for the message.

    Raises:
      UserError: the module was changed.
    """
    config, before = manifest.config, manifest.source.get(MODULE_SHA256)
    if before is None or not isinstance(config, CustomConfig):
        return
    now = _module_of(config)[MODULE_SHA256]
    if now != before:
        raise UserError(
            f"{where}: the module of {config.rule} is not what it was when this rule "
            f"was written: its sha256 is {str(now)[:12]}, not {str(before)[:12]} "
            "(bring the old text back, or meta-train anew)"
        )


def _module_of(config: RuleConfig) -> dict[str, JsonValue]:
    """Return what to remember of the text of a user's class; nothing of other rules."""
    if not isinstance(config, CustomConfig):
        return {}
    make_rule(config)  # imports it
    return {MODULE_SHA256: rule_folder.sha256(source_of(config.rule))}


def _load_bare(file: Path, name: str) -> LoadedRule:
    """Return published Disco weights without a manifest: nobody knows what they saw."""
    data = file.read_bytes()
    arrays = rule_folder.unpack(data, where=file)
    if not set(arrays) & set(PUBLISHED_NAMES.values()):
        raise UserError(
            f"{file}: no manifest.json beside it, and its tensors are not those of "
            "published Disco weights"
        )
    config = DiscoConfig()
    rule = make_rule(config)
    params = check_params(rule, flatten_params(from_published(arrays)), str(file))
    manifest = Manifest(
        config=config,
        seen_is_complete=False,
        num_parameters=sum(array.size for array in arrays.values()),
        sha256=rule_folder.sha256(data),
        source={"file": file.name},
    )
    return LoadedRule(rule, params, manifest, name, file)


def _single(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _join(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
