"""Which rule a name or a path means: built in, in a folder, of a run, or shipped.

A host module; reads no arrays. Rules that ship are folders of `checkpoints/`: beside
the package in a checkout, inside it where a wheel was installed.
"""

from __future__ import annotations

from pathlib import Path

from metarl.config import (
    MUTUAL,
    ActorCriticConfig,
    PolicyGradientConfig,
    PPOConfig,
    QLearningConfig,
    RandomConfig,
    RuleConfig,
)
from metarl.errors import UserError, nearest
from metarl.rule_files import folder as rule_folder

CHECKPOINTS = "checkpoints"
"""The folder of rules that ship."""

BUILT_IN: dict[str, RuleConfig] = {
    "actor_critic": ActorCriticConfig(),
    "policy_gradient": PolicyGradientConfig(),
    "ppo": PPOConfig(),
    "q_learning": QLearningConfig(),
    "random": RandomConfig(),
    **{kind: config() for kind, config in MUTUAL.items()},
}
"""The hand-written rules that can be loaded by name, with their defaults."""


def find_rule(path: str | Path) -> tuple[Path, str]:
    """Return the folder (or the bare npz file) that ``path`` names, and a short name.

    A rule or a run at ``path`` wins over one that ships by this name; what is neither
    does not hide it.

    Raises:
      UserError: there is no rule; the message names the nearest that there is.
    """
    path = Path(path)
    for place in (path, *(root / path for root in checkpoint_roots())):
        if (found := _rule_at(place)) is not None:
            return found
    if path.exists():
        raise UserError(
            f"{path} holds no rule: neither rule.npz nor rule/rule.npz in it"
        )
    known = [*BUILT_IN, *shipped_rules()]
    raise UserError(
        f"rule '{path}' is neither a file, a folder, a run, a module:Class nor one of "
        f"{', '.join(known)}{nearest(str(path), known)}"
    )


def checkpoint_roots() -> list[Path]:
    """Return the folders where rules are looked for by name, in this order."""
    roots = [Path(CHECKPOINTS), packaged_checkpoints(Path(__file__).parents[1])]
    return [root for root in roots if root.is_dir()]


def packaged_checkpoints(package: Path) -> Path:
    """Return the folder of the rules that ship with the code in ``package``.

    A wheel has them inside the package: the folder beside it is then everybody's.
    """
    inside, beside = package / CHECKPOINTS, package.parent / CHECKPOINTS
    is_checkout = (package.parent / "pyproject.toml").is_file()
    return beside if is_checkout and not inside.is_dir() else inside


def shipped_rules() -> dict[str, Path]:
    """Return the rules under `checkpoints/` by name."""
    return {
        place.name: place
        for root in reversed(checkpoint_roots())
        for place in sorted(root.iterdir())
        if rule_folder.holds_rule(place)
    }


def _rule_at(place: Path) -> tuple[Path, str] | None:
    """Return the rule at ``place`` and its name; None where there is none.

    Raises:
      UserError: it is a run without a rule so far.
    """
    if place.is_file():
        if place.name != rule_folder.ARRAYS:
            return place, place.stem
        place = place.parent
        if not (place / rule_folder.MANIFEST).is_file():
            return place / rule_folder.ARRAYS, place.resolve().name
    if rule_folder.holds_rule(place):
        return place, _name_of(place.resolve())
    if rule_folder.holds_rule(place / "rule"):
        return place / "rule", place.resolve().name
    if _is_run(place):
        raise UserError(f"{place} is a run that has not saved a rule yet")
    return None


def _name_of(place: Path) -> str:
    """Return what tables call the rule in ``place``, an absolute path."""
    if not _is_run(place.parent):
        return place.name
    run = place.parent.name
    return {"rule": run, "rule_best": f"{run}__best"}.get(place.name, place.name)


def _is_run(place: Path) -> bool:
    return (place / "config.yaml").is_file()
