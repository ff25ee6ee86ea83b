"""Turn pydantic's errors into one line: field, value, what is allowed, nearest match.

Used by `config_loader.py` alone; knows pydantic, no files.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from metarl.errors import closest, nearest

Path = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text; quote what reads as something else: '\"3\"'",
    "path_type": "must be a path",
    "union_tag_not_found": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
}


_ALIKE = 0.8
"""How much a key is like the one that was meant, at the least, for a sure guess."""


def describe(
    model: type[BaseModel], tree: Mapping[str, object], error: ValidationError
) -> str:
    """Return one line on the first mistake in ``tree``, and how many more there are."""
    details = error.errors(include_url=False)
    lines = [_Mistake(model, tree, one).describe() for one in details]
    more = len(lines) - 1
    return lines[0] + (f" (and {more} more)" if more else "")


@dataclasses.dataclass(frozen=True)
class _Mistake:
    """One of pydantic's errors, beside the input that caused it."""

    model: type[BaseModel]
    tree: Mapping[str, object]
    error: ErrorDetails

    def describe(self) -> str:
        """Return the line for this error."""
        path = self._path()
        name = _dotted(path)
        value = _lookup(self.tree, path)
        context = self.error.get("ctx", {})
        shown = f"{name}={_shown(value)}"
        match self.error["type"]:
            case "extra_forbidden":
                return f"{shown}: unknown key{self._among_keys(path)}"
            case "union_tag_invalid":
                tag = context["tag"]
                allowed = _quoted(context["expected_tags"])
                return f"{name}.kind={tag}: unknown kind{_among(tag, allowed)}"
            case "union_tag_not_found" if isinstance(value, Mapping):
                return f"{name}.kind: missing{_among('', self._kinds(path))}"
            case "dict_type" if value in self._kinds(path):
                return f"{shown}: must be a mapping; did you mean {name}.kind={value}?"
            case "literal_error":
                allowed = _quoted(context["expected"])
                return f"{shown}: not allowed{_among(value, allowed)}"
            case "missing" if path and isinstance(path[-1], int):
                parent_path = path[:-1]
                parent_value = _shown(_lookup(self.tree, parent_path))
                return f"{_dotted(parent_path)}={parent_value}: must have more items"
            case "missing":
                return f"{name}: missing"
            case "tuple_type":
                return f"{shown}: must be a list, such as [{_shown(value)}]"
            case "value_error":
                # Of several settings of a section, whose text names them.
                where = name if isinstance(value, Mapping) else shown
                return f"{where}: {context['error']}"
            case kind:
                return f"{shown}: {_EXPECTED.get(kind) or _sentence(self.error)}"

    def _path(self) -> Path:
        """Return pydantic's location without union tags, which are no keys of ours."""
        path: list[str | int] = []
        at: object = self.tree
        location = self.error["loc"]
        for step in location:
            if _has(at, step):
                at = _lookup(at, (step,))
            elif self.error["type"] != "missing" or step != location[-1]:
                continue
            path.append(step)
        return tuple(path)

    def _candidates(self, path: Path) -> list[type[BaseModel]]:
        """Return the models that the mapping at ``path`` may have."""
        if not path:
            return [self.model]
        if isinstance(path[-1], int):
            return self._candidates(path[:-1])  # an item has its list's
        parent = self._model_at(path[:-1])
        field = parent.model_fields.get(str(path[-1])) if parent else None
        return _models_in(field.annotation) if field else []

    def _model_at(self, path: Path) -> type[BaseModel] | None:
        """Return the model of the mapping at ``path``, unions resolved by `kind`."""
        candidates = self._candidates(path)
        if len(candidates) == 1:
            return candidates[0]
        kind = _lookup(_lookup(self.tree, path), ("kind",))
        return next((one for one in candidates if _kind_of(one) == kind), None)

    def _among_keys(self, path: Path) -> str:
        """Return the key that may have been meant, and those that there are."""
        parent = self._model_at(path[:-1])
        allowed = list(parent.model_fields) if parent else []
        meant = self._elsewhere(path, allowed)
        if meant is None:
            return _among(path[-1], allowed)
        return f"; did you mean '{meant}'? (allowed here: {', '.join(allowed)})"

    def _elsewhere(self, path: Path, allowed: list[str]) -> str | None:
        """Return where a key belongs that is none of ``allowed``, nor much like one."""
        given = str(path[-1])
        if closest(given, allowed, cutoff=_ALIKE) is not None:
            return None
        prefix = _dotted(path[:-1])
        fields = [f for f in _fields_below(self.model) if f.startswith(prefix)]
        names = {field.rpartition(".")[2] for field in fields}
        name = closest(given, names, cutoff=_ALIKE)
        named = [field for field in fields if field.rpartition(".")[2] == name]
        # The agent's first, where several sections have it.
        return min(
            named,
            key=lambda field: (field[:6] != "agent.", field.count(".")),
            default=None,
        )

    def _kinds(self, path: Path) -> list[str]:
        return [_kind_of(one) or "" for one in self._candidates(path)]


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else str(field.default)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the models that an annotation names, through unions and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in _models_in(part)]


def _fields_below(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of all fields in a model's sections."""
    found = []
    for name, field in model.model_fields.items():
        for section in _models_in(field.annotation):
            inner = [f"{prefix}{name}.{key}" for key in section.model_fields]
            found += inner + _fields_below(section, f"{prefix}{name}.")
    return list(dict.fromkeys(found))


def _has(at: object, step: str | int) -> bool:
    if isinstance(at, Mapping):
        return step in at
    return isinstance(at, list) and isinstance(step, int) and step < len(at)


def _lookup(at: object, path: Path) -> object:
    """Return the value at ``path``; None where there is none."""
    for step in path:
        if not _has(at, step):
            return None
        at = typing.cast("dict[str | int, object]", at)[step]
    return at


def _among(value: object, allowed: list[str]) -> str:
    """Return the nearest of ``allowed``, and all of them."""
    return f"{nearest(str(value), allowed)} (allowed: {', '.join(allowed)})"


def _quoted(text: str) -> list[str]:
    """Return the quoted words of a text of pydantic's: ``'a', 'b' or 'c'``."""
    return re.findall(r"'([^']*)'", text)


def _sentence(error: ErrorDetails) -> str:
    """Return pydantic's own message in our form: `must be greater than 0`."""
    message = re.sub(r"^(Input|Tuple) should", "must", error["msg"])
    return " ".join(message.split())


def _dotted(path: Path) -> str:
    """Return `a.b[0]` for ``("a", "b", 0)``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _shown(value: object) -> str:
    """Return a value as a user would write it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
