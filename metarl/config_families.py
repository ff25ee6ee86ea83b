"""What a population's settings are for the games of one family.

Between `config/` and `experiment.py`: lays the section `families` over the others.
Must not import jax or environments' builders.
"""

from __future__ import annotations

from typing import TypeVar, get_args

from metarl import config_loader
from metarl.config import (
    AgentConfig,
    EnvironmentConfig,
    MetaConfig,
    Model,
    PopulationConfig,
    TrainConfig,
)
from metarl.envs.suites import Family
from metarl.errors import UserError, nearest

Config = TypeVar("Config", bound=TrainConfig)

ALLOWED: dict[str, tuple[str, ...]] = {
    "agent": tuple(AgentConfig.model_fields),
    "environment": ("num_envs", "clip_rewards", "epoch_steps", "atari"),
    "population": ("rollout_length", "lifetime_env_steps", "replay", "chunk"),
    "meta": ("value_function",),
}
"""What may differ between families: keys of each section. All else is of the whole
population."""


class _Sections(Model):
    """The sections that differ, as one model, so that they are checked as one."""

    agent: AgentConfig
    environment: EnvironmentConfig
    population: PopulationConfig
    meta: MetaConfig


def settings_of(config: Config, family: Family) -> Config:
    """Return the configuration as it is for the games of one family.

    Raises:
      UserError: what `families` says of it cannot be.
    """
    override = config.families.get(family)
    if not override:
        return config
    _check_keys(family, override)
    tree = config.model_dump(mode="json", include=set(ALLOWED))
    try:
        sections = config_loader.validate(
            _Sections, config_loader.merge(tree, override)
        )
    except UserError as error:
        raise UserError(f"families.{family}.{error}") from None
    return config.model_copy(update=dict(sections))


def check_families(config: TrainConfig) -> None:
    """Refuse a section `families` that cannot be, for games that are absent too.

    Raises:
      UserError: it names a family that does not exist, or a key that may not differ.
    """
    families = get_args(Family)
    for name in config.families:
        if name not in families:
            raise UserError(
                f"families.{name}: unknown family{nearest(name, families)} "
                f"(allowed: {', '.join(families)})"
            )
    for family in families:
        settings_of(config, family)


def _check_keys(family: str, override: object) -> None:
    """Refuse keys that are not `ALLOWED`, before values are looked at."""
    where = f"families.{family}"
    for section, keys in _mapping(override, where).items():
        if section not in ALLOWED:
            raise UserError(
                f"{where}.{section}: unknown key{nearest(section, ALLOWED)} "
                f"(allowed: {', '.join(ALLOWED)})"
            )
        for key in _mapping(keys, f"{where}.{section}"):
            allowed = ALLOWED[section]
            if key not in allowed:
                raise UserError(
                    f"{where}.{section}.{key}: does not differ between families"
                    f"{nearest(key, allowed)} (allowed: {', '.join(allowed)})"
                )
            if key == "atari" and family != "atari":
                raise UserError(f"{where}.{section}.atari: is for families.atari alone")


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UserError(f"{where}={value}: must be a mapping of keys to values")
    return value
