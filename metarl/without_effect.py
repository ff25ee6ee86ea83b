"""Refuses what a user set and nobody would read, or something else would override.

Between `config_loader.py`, which knows what was given, and whoever resolves it. Must
not import jax.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from metarl import config_loader
from metarl.config import (
    AtariOptions,
    EnvironmentConfig,
    EvaluationConfig,
    FinalScoreConfig,
    Model,
    TrainConfig,
    ValidationConfig,
)
from metarl.config_families import settings_of
from metarl.envs.games import Family
from metarl.envs.tasks import apply_protocol, resolve_environment, tasks_named
from metarl.errors import UserError

_Section = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class _ReadByChoice:
    """A setting that nobody reads while a choice is as it is by default.

    Attributes:
      path: of the section that has both.
      name: of the setting.
      choice: what it depends on.
      needed: how the choice is to be made.
    """

    path: tuple[str, ...]
    name: str
    choice: str
    needed: str

    def is_off(self, config: TrainConfig) -> bool:
        """Return whether the choice is as it is by default."""
        section = _section_of(config, self.path)
        return bool(
            getattr(section, self.choice)
            == type(section).model_fields[self.choice].default
        )

    @property
    def default(self) -> object:
        """What the setting is where nobody gives it, and so does no harm."""
        section = _section_of(TrainConfig(), self.path)
        return getattr(section, self.name)


_SCHEDULE = ("schedule", "linear or cosine")
_READ_BY_CHOICE = (
    _ReadByChoice(("meta",), "slide", "window", "sliding"),
    _ReadByChoice(("population", "replay"), "capacity", "share", "0.9"),
    _ReadByChoice(("meta", "optimizer"), "schedule_meta_steps", *_SCHEDULE),
    _ReadByChoice(("meta", "optimizer"), "end_learning_rate", *_SCHEDULE),
    _ReadByChoice(("agent", "optimizer"), "end_learning_rate", *_SCHEDULE),
)


def refuse(
    config: TrainConfig | EvaluationConfig,
    files: Iterable[Path],
    overrides: Iterable[str],
) -> None:
    """Refuse a configuration in which a setting has no effect.

    A section that has every field is one that `metarl config` printed, or a run stored;
    it does not say what somebody meant.

    Args:
      config: as it was resolved.
      files: the user's.
      overrides: the user's.

    Raises:
      UserError: there is such a setting.
    """
    together: config_loader.Tree = {}
    for override in overrides:
        parsed = config_loader.parse_override(override)
        together = config_loader.merge(together, parsed, layers=False)
    layers = [*(config_loader.read_yaml(Path(file)) for file in files), together]
    _refuse_atari_without_atari(config, layers)
    _refuse_pixels_without_catch(config)
    _refuse_of_no_distractors(config, layers)
    _refuse_overridden_by_protocol(config.environment, layers)
    if isinstance(config, TrainConfig):
        if config.families.get("atari"):
            own = settings_of(config, "atari").environment
            _refuse_overridden_by_protocol(own, layers, below=("families", "atari"))
        _refuse_switched_off(config, layers)
        _refuse_validation_never(config, layers)
    else:
        _refuse_of_training(config)
        _refuse_ratio_of_no_replay(config, layers)
        _refuse_two_final_scores(config)


def _refuse_atari_without_atari(
    config: TrainConfig | EvaluationConfig, layers: Sequence[_Section]
) -> None:
    given = list(_given(layers, ("environment", "atari"), AtariOptions))
    environment = config.environment
    if not given or not (environment.suite or environment.games):
        return  # that games are needed is said elsewhere
    if "atari" in _families_of(config):
        return
    value = environment.model_dump(mode="json")["atari"][given[0]]
    shown = value if isinstance(value, str) else json.dumps(value)
    raise UserError(
        f"environment.atari.{given[0]}={shown}: is for Atari through EnvPool alone, "
        f"and {environment.suite or ', '.join(environment.games)} has no such game "
        "(leave it out)"
    )


def _refuse_pixels_without_catch(config: TrainConfig | EvaluationConfig) -> None:
    environment = config.environment
    if environment.catch_pixels is None or not (environment.suite or environment.games):
        return
    if "catch" not in _families_of(config):
        raise UserError(
            f"environment.catch_pixels={environment.catch_pixels}: is for Catch alone, "
            f"and {environment.suite or ', '.join(environment.games)} has no such game "
            "(leave it out)"
        )


def _families_of(config: TrainConfig | EvaluationConfig) -> set[Family]:
    """Return the families of all games that are played in the environment section."""
    tasks = [*resolve_environment(config.environment, same_shapes=False)]
    # Rates are tried in the same environment; rules are validated in another.
    if isinstance(config, EvaluationConfig):
        tasks += tasks_named(config.tuning.games, field="tuning.games")
    return {task.game.family for task in tasks}


def _refuse_of_no_distractors(
    config: TrainConfig | EvaluationConfig, layers: Sequence[_Section]
) -> None:
    is_none = config.environment.distractors.kind == "none"
    needed = "environment.distractors.kind, such as backgrounds"
    if is_none:
        _refuse_unless(layers, ("environment", "distractors"), "kind", needed)
    if isinstance(config, TrainConfig):
        return
    if config.robustness.episodes == 0:
        _refuse_unless(layers, ("robustness",), "episodes", "robustness.episodes=100")
    elif is_none:
        raise UserError(
            f"robustness.episodes={config.robustness.episodes}: compares frames with "
            f"and without distractors, and there are none (give {needed}, too, or "
            "leave this out)"
        )


def _refuse_unless(
    layers: Sequence[_Section], path: tuple[str, ...], choice: str, needed: str
) -> None:
    """Refuse what is set in a section whose choice is off, unless it was turned off.

    Args:
      layers: what the user gave, later ones on top.
      path: of the section.
      choice: the field that turns it on; it is off.
      needed: how to turn it on.
    """
    for layer in reversed(layers):
        section = next(_all([layer], *path), {})
        if choice in section:
            return
        if section:
            name, value = next(iter(section.items()))
            shown = value if isinstance(value, str) else json.dumps(value)
            raise UserError(
                f"{'.'.join(path)}.{name}={shown}: has no effect without {needed} "
                "(give that too, or leave this out)"
            )


def _refuse_ratio_of_no_replay(
    config: EvaluationConfig, layers: Sequence[_Section]
) -> None:
    if config.replay.capacity > 0:
        return
    for layer in reversed(layers):
        section = layer.get("replay")
        is_printed = set(EvaluationConfig.model_fields) <= set(layer)
        if not isinstance(section, Mapping) or is_printed:
            continue
        if "ratio" in section:
            raise UserError(
                f"replay.ratio={config.replay.ratio}: nothing is replayed with "
                "replay.capacity=0 (leave one of them out)"
            )
        if "capacity" in section:
            return  # turned off over what lies below


def _refuse_overridden_by_protocol(
    environment: EnvironmentConfig,
    layers: Sequence[_Section],
    *,
    below: tuple[str, ...] = (),
) -> None:
    played = apply_protocol(environment)
    sections: tuple[tuple[tuple[str, ...], Model, Model], ...] = (
        ((*below, "environment"), environment, played),
        ((*below, "environment", "atari"), environment.atari, played.atari),
    )
    for path, asked, set_to in sections:
        for name in _given(layers, path, type(asked)):
            values = getattr(asked, name, None), getattr(set_to, name, None)
            if isinstance(values[0], Model) or values[0] == values[1]:
                continue
            before, after = (json.dumps(value) for value in values)
            protocol = environment.atari.protocol
            raise UserError(
                f"{'.'.join(path)}.{name}={before}: environment.atari.protocol="
                f"{protocol} sets it to {after} (leave one of them out)"
            )


def _refuse_switched_off(config: TrainConfig, layers: Sequence[_Section]) -> None:
    """Refuse what is read by another choice alone, where that was not made."""
    own = {family: settings_of(config, family) for family in get_args(Family)}
    for read in _READ_BY_CHOICE:
        if all(read.is_off(settings) for settings in own.values()):
            _refuse_without(read, layers)
        for family, settings in own.items():
            if config.families.get(family) and read.is_off(settings):
                _refuse_without(read, layers, below=("families", family))


def _refuse_without(
    read: _ReadByChoice, layers: Sequence[_Section], *, below: tuple[str, ...] = ()
) -> None:
    """Refuse a setting, unless its choice was turned off beside it or above.

    Args:
      read: the setting.
      layers: what the user gave, later ones on top.
      below: where the section is that is laid over the population's; (): that one.
    """
    for layer in reversed(layers):
        sections = [next(_all([layer], *to, *read.path), {}) for to in ((), below)]
        if any(read.choice in section for section in sections):
            return
        value = sections[-1].get(read.name)
        if value is not None and value != read.default:
            where = ".".join((*below, *read.path))
            raise UserError(
                f"{where}.{read.name}={value}: has no effect without "
                f"{where}.{read.choice}={read.needed} (give that too, or leave this "
                "out)"
            )


def _refuse_validation_never(config: TrainConfig, layers: Sequence[_Section]) -> None:
    every = [
        section["every"] for section in _all(layers, "validation") if "every" in section
    ]
    if config.validation.every or every:
        return
    for name in _given(layers, ("validation",), ValidationConfig):
        value = config.model_dump(mode="json")["validation"][name]
        raise UserError(
            f"validation.{name}={value}: nothing is validated unless validation.every "
            "says how often (such as validation.every=100, in meta-steps)"
        )


def _refuse_of_training(config: EvaluationConfig) -> None:
    default = type(config)()
    for name, value, other, instead in (
        (
            "tracking.log_every",
            config.tracking.log_every,
            default.tracking.log_every,
            "curve_points says how many rows a cell logs",
        ),
        (
            "environment.epoch_steps",
            config.environment.epoch_steps,
            default.environment.epoch_steps,
            "an evaluation never rebuilds its environments",
        ),
    ):
        if value != other:
            raise UserError(f"{name}={value}: is for `metarl train` alone; {instead}")


def _section_of(config: Model, path: Sequence[str]) -> Model:
    section = config
    for key in path:
        section = getattr(section, key)
    return section


def _given(
    layers: Sequence[_Section], path: tuple[str, ...], model: type[Model]
) -> Iterator[str]:
    """Yield the fields of a section that somebody set."""
    for section in _all(layers, *path):
        if not set(model.model_fields) <= set(section):
            yield from (name for name, value in section.items() if value is not None)


def _all(layers: Sequence[_Section], *path: str) -> Iterator[_Section]:
    for layer in layers:
        section: object = layer
        for key in path:
            section = section.get(key) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping):
            yield section


def _refuse_two_final_scores(config: EvaluationConfig) -> None:
    final = config.final_score
    if final.last_share is not None and final.episodes != FinalScoreConfig().episodes:
        raise UserError(
            f"final_score: episodes={final.episodes} and "
            f"last_share={final.last_share:g} are both given, take one"
        )
