"""What a rule file says of its rule: configuration, origin, and the games it has seen.

Knows no arrays and no files. Whether a game is held out is derived here from the
manifest, never typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt

from metarl.config import RuleConfig
from metarl.errors import UserError
from metarl.provenance import git_commit, package_versions

FORMAT = 1

Status = Literal["seen", "validation", "held_out", "unknown"]


class Parent(BaseModel):
    """A rule that this one was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    sha256: str
    """Of the parent's `rule.npz`."""


class Manifest(BaseModel):
    """The contents of `manifest.json`; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: NonNegativeInt = FORMAT
    kind: str = ""
    """The rule's kind, repeated from `config` for readers of the file."""
    config: RuleConfig
    games_seen: tuple[str, ...] = ()
    """Task ids that the rule or any of its ancestors was meta-trained on."""
    seen_is_complete: bool = True
    """False where the rule may have seen more games than are known, as all that are a
    user's own class have."""
    games_validation: tuple[str, ...] = ()
    """Task ids used to tune or choose the rule or any of its ancestors."""
    parents: tuple[Parent, ...] = ()
    meta_steps: NonNegativeInt = 0
    """Of this rule's own meta-training; the parents' are not counted."""
    env_steps: NonNegativeInt = 0
    """Environment steps of this rule's own meta-training."""
    num_parameters: NonNegativeInt = 0
    sha256: str = ""
    """Of `rule.npz`."""
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    source: dict[str, JsonValue] = Field(default_factory=dict)
    """Where an imported rule comes from; of a user's own class, `module_sha256`."""
    agent: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of the agents and rollouts that the rule was meta-trained with."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _follow_kind(cls, data: object) -> object:
        if not isinstance(data, dict) or "config" not in data:
            return data
        config = data["config"]
        kind = config.get("kind") if isinstance(config, dict) else None
        kind = getattr(config, "kind", kind)
        if kind is None:
            return data  # the field's own validation says what is wrong
        if data.get("kind", kind) != kind:
            raise ValueError(f"kind '{data['kind']}' but config.kind '{kind}'")
        data = {**data, "kind": kind}
        if kind == "custom":
            # Whoever wrote the class may have had any game in mind.
            data["seen_is_complete"] = False
        return data

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def parse_manifest(text: str, *, where: str) -> Manifest:
    """Return the manifest in ``text``.

    Args:
      text: of `manifest.json`.
      where: the file, for messages.

    Raises:
      UserError: no JSON, not a manifest, or of a newer format.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{where}: format {data['format']!r} is not known; this version of metarl "
            f"reads {FORMAT}"
        )
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(f"{where}: {field}: {first['msg']}") from None


def new_manifest(
    config: RuleConfig,
    *,
    games_seen: Iterable[str] = (),
    games_validation: Iterable[str] = (),
    meta_steps: int = 0,
    env_steps: int = 0,
    agent: dict[str, JsonValue] | None = None,
) -> Manifest:
    """Return the manifest of a rule made by this code, now."""
    return Manifest(
        config=config,
        games_seen=tuple(sorted(set(games_seen))),
        games_validation=tuple(sorted(set(games_validation))),
        meta_steps=meta_steps,
        env_steps=env_steps,
        agent=agent or {},
        versions=package_versions(),
        commit=git_commit(),
    )


def inherit(manifest: Manifest, parents: Sequence[tuple[str, Manifest]]) -> Manifest:
    """Return ``manifest`` with what its parents saw and were chosen by.

    Args:
      manifest: of a rule that was finetuned, grafted or otherwise made from others.
      parents: name and manifest of each.
    """
    family = [manifest, *(parent for _, parent in parents)]
    return manifest.model_copy(
        update={
            "games_seen": _union(member.games_seen for member in family),
            "games_validation": _union(member.games_validation for member in family),
            "seen_is_complete": all(member.seen_is_complete for member in family),
            "parents": (
                *manifest.parents,
                *(Parent(name=name, sha256=m.sha256) for name, m in parents),
            ),
        }
    )


def status(manifest: Manifest | None, game: str) -> Status:
    """Return whether the rule has seen ``game``, a task id.

    Seen wins over validation. Where it is not known what the rule has seen (no
    manifest, or one that is not complete), any other game is `unknown`.
    """
    if manifest is None:
        return "unknown"
    same = game_identity(game)
    if any(game_identity(seen) == same for seen in manifest.games_seen):
        return "seen"
    if not manifest.seen_is_complete:
        return "unknown"
    if any(game_identity(used) == same for used in manifest.games_validation):
        return "validation"
    return "held_out"


# Task ids that carry an option. The difficulty of a ProcGen game:
_PROCGEN = re.compile(
    r"(Bigfish|Bossfight|Caveflyer|Chaser|Climber|Coinrun|Dodgeball|Fruitbot|Heist"
    r"|Jumper|Leaper|Maze|Miner|Ninja|Plunder|Starpilot)(Easy|Hard|Exploration)-v\d+"
)
# As its authors register it (Cobbe et al. 2020): the difficulty is an argument there,
# and part of the name in some forks.
_PROCGEN_GYM = re.compile(r"procgen-([a-z]+)(-(easy|hard|extreme|memory|exploration))?")

# The size of a board, of whatever game: `FrozenLake8x8`, `Go19x19`.
_BOARD = re.compile(r"-?\d+x\d+")
# MiniGrid's and BabyAI's further arguments: of rooms the size (S) and the rows (R), the
# number of things or rooms (N), a random start or length, a layout's number, and how
# much obstructs a maze.
_MINIGRID = re.compile(
    r"-?[SNR]\d+|-?Random|(?<=DistShift)\d+"
    r"|(?<=ObstructedMaze)-(\dDlh?b?|\dQ|Full)"
)

_VERSION = re.compile(r"-v\d+$")
# By which Gymnasium's variants of Atari games are told apart.
_VARIANT = re.compile(r"(-ram)?(NoFrameskip|Deterministic)?$")


def game_identity(game: str) -> str:
    """Return what makes ``game`` that game, whatever its options, version and library.

    `Pong-v5`, `gym:ALE/Pong-v5` and `gym:PongNoFrameskip-v4` are one game, as are
    `CartPole-v1`, `phys2d/CartPole-v1` and `gym:CartPole-v0`, and `CoinrunHard-v0` and
    `gym:procgen:procgen-coinrun-v0`. All sizes of a board are one game, too:
    `FrozenLake-v1` and `FrozenLake8x8-v1`, `MiniGrid-Empty-8x8-v0` and
    `MiniGrid-Empty-Random-5x5-v0`.
    """
    if match := _PROCGEN.fullmatch(game):
        return f"procgen {match[1]}"
    name = _VERSION.sub("", game)
    if game.startswith("gym:"):
        # A module that registers it may stand before its name.
        name = _VARIANT.sub("", name.rpartition(":")[2])
        if match := _PROCGEN_GYM.fullmatch(name.rpartition("/")[2].lower()):
            return f"procgen {match[1].capitalize()}"
    name = _BOARD.sub("", name.rpartition("/")[2])
    if name.startswith(("MiniGrid-", "BabyAI-")):
        name = _MINIGRID.sub("", name)
    return name


def _union(games: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(sorted({game for some in games for game in some}))
