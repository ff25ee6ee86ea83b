"""A user's own rule, by the name of its class.

Sits beside the rules of this package behind `base.UpdateRule`; imports what the user
names, and nothing of agents or environments.
"""

from __future__ import annotations

import importlib
import re
import sys
import weakref
from types import ModuleType

from metarl.errors import UserError, nearest
from metarl.rules.base import UpdateRule
from metarl.user_modules import see_working_directory

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_TEXTS: weakref.WeakKeyDictionary[ModuleType, bytes] = weakref.WeakKeyDictionary()
"""Of modules, as they were when a rule was first made of them: a file that is edited
later is not what runs."""


def is_class_name(text: str) -> bool:
    """Return whether ``text`` reads `module:Class`, with dots in the module."""
    return _NAME.fullmatch(text) is not None


def make_custom(name: str) -> UpdateRule:
    """Return an instance of the class `module:Class`, made without arguments.

    The module is looked for as Python does, and then in the working directory.

    Raises:
      UserError: there is no such module or class, it is no rule, or it cannot be made.
    """
    module_name, _, class_name = name.partition(":")
    module = _import(module_name, name)
    if module not in _TEXTS:
        _TEXTS[module] = _text_of(module)
    if not hasattr(module, class_name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(
            f"rule '{name}': {module_name} has no '{class_name}'"
            f"{nearest(class_name, names)}"
        )
    rule_class = getattr(module, class_name)
    if not (isinstance(rule_class, type) and issubclass(rule_class, UpdateRule)):
        raise UserError(
            f"rule '{name}': not a class that derives from metarl.rules.base.UpdateRule"
        )
    try:
        rule = rule_class()
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"rule '{name}': {class_name}() failed ({type(error).__name__}: {error})"
        ) from error
    try:
        hash(rule)
    except TypeError as error:
        raise UserError(
            f"rule '{name}': its instances must be hashable, such as those of a "
            f"@dataclasses.dataclass(frozen=True) of numbers and tuples ({error})"
        ) from None
    return rule


def source_of(name: str) -> bytes:
    """Return the text of the module of `module:Class`, as it was when it was imported.

    Empty where it has no file.
    """
    return _TEXTS[sys.modules[name.partition(":")[0]]]


def _text_of(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    if file is None:
        return b""
    with open(file, "rb") as source:
        return source.read()


def _import(module_name: str, name: str) -> ModuleType:
    working_directory = see_working_directory()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"rule '{name}': no module '{error.name}' (looked in PYTHONPATH and in "
                f"{working_directory})"
            ) from None
        raise _cannot_import(name, error) from error
    except Exception as error:  # whatever the user's code raises
        raise _cannot_import(name, error) from error


def _cannot_import(name: str, error: Exception) -> UserError:
    what = f"{type(error).__name__}: {error}"
    return UserError(f"rule '{name}': importing its module failed ({what})")
