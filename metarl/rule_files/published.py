"""Disco103 as published: import its weights, and export a rule in that format.

A host module. What the rule has seen is history, kept here as a list of its own: it
does not change when this package's suites do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from metarl.atomic_files import write_file
from metarl.config import DiscoConfig
from metarl.errors import UserError
from metarl.rule_files import folder as rule_folder
from metarl.rule_files.loading import (
    check_params,
    flatten_params,
    load_rule,
    save_rule,
)
from metarl.rule_files.manifest import new_manifest
from metarl.rules import make_rule
from metarl.rules.disco_names import from_published, to_published

_ATARI_57 = """
    Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider
    Berzerk Bowling Boxing Breakout Centipede ChopperCommand CrazyClimber Defender
    DemonAttack DoubleDunk Enduro FishingDerby Freeway Frostbite Gopher Gravitar Hero
    IceHockey Jamesbond Kangaroo Krull KungFuMaster MontezumaRevenge MsPacman
    NameThisGame Phoenix Pitfall Pong PrivateEye Qbert Riverraid RoadRunner Robotank
    Seaquest Skiing Solaris SpaceInvaders StarGunner Surround Tennis TimePilot
    Tutankham UpNDown Venture VideoPinball WizardOfWor YarsRevenge Zaxxon
"""
_PROCGEN_16 = """
    Bigfish Bossfight Caveflyer Chaser Climber Coinrun Dodgeball Fruitbot Heist Jumper
    Leaper Maze Miner Ninja Plunder Starpilot
"""
_DMLAB_30 = """
    rooms_collect_good_objects_train rooms_exploit_deferred_effects_train
    rooms_select_nonmatching_object rooms_watermaze rooms_keys_doors_puzzle
    language_select_described_object language_select_located_object
    language_execute_random_task language_answer_quantitative_question
    lasertag_one_opponent_small lasertag_three_opponents_small
    lasertag_one_opponent_large lasertag_three_opponents_large
    natlab_fixed_large_map natlab_varying_map_regrowth natlab_varying_map_randomized
    skymaze_irreversible_path_hard skymaze_irreversible_path_varied
    psychlab_arbitrary_visuomotor_mapping psychlab_continuous_recognition
    psychlab_sequential_comparison psychlab_visual_search
    explore_object_locations_small explore_object_locations_large
    explore_obstructed_goals_small explore_obstructed_goals_large
    explore_goal_locations_small explore_goal_locations_large
    explore_object_rewards_few explore_object_rewards_many
"""

SEEN_BY_DISCO103: tuple[str, ...] = (
    *(f"{game}-v5" for game in _ATARI_57.split()),
    *(f"{game}Hard-v0" for game in _PROCGEN_16.split()),
    *_DMLAB_30.split(),
)
"""The 103 environments of Oh et al. (2025), Methods: EnvPool's task ids for Atari and
ProcGen (of which any difficulty counts as the game), DeepMind Lab's level names."""

_DISCO103 = "11987130994ddf7b7a7726f24ee68af9f4900788ffc22501d976754400c53f02"
"""Hash of the published arrays, by `_content`; a re-compressed file has it too."""


def import_rule(npz: Path | str, out_dir: Path | str) -> Path:
    """Write published Disco weights as a rule and return its folder.

    Weights that are not Disco103's own, to the bit, may have been trained on from
    there, so that nothing is held out for them.

    Raises:
      UserError: not such weights, or ``out_dir`` holds another rule.
    """
    npz, out_dir = Path(npz), Path(out_dir)
    if not npz.is_file():
        raise UserError(f"weights '{npz}' are not a file")
    data = npz.read_bytes()
    arrays = rule_folder.unpack(data, where=npz)
    config = DiscoConfig()
    flat = flatten_params(from_published(arrays))
    params = check_params(make_rule(config), flat, str(npz))
    is_disco103 = _content(arrays) == _DISCO103
    manifest = new_manifest(config, games_seen=SEEN_BY_DISCO103).model_copy(
        update={
            "seen_is_complete": is_disco103,
            "source": {
                "name": "Disco103" if is_disco103 else "weights in Disco's format",
                "reference": "Oh et al. 2025, doi 10.1038/s41586-025-09761-x",
                "file": npz.name,
                "file_sha256": rule_folder.sha256(data),
            },
        }
    )
    rule_folder.refuse_another(out_dir, rule_folder.pack(flat))
    save_rule(out_dir, params, manifest)
    return out_dir


def export_rule(rule: str | Path, out: Path | str) -> Path:
    """Write a Disco rule's weights under their published names and return the file.

    Args:
      rule: anything that `load_rule` takes.
      out: the npz file.

    Raises:
      UserError: a rule of another kind, which has no published format; or the file
        exists.
    """
    loaded = load_rule(rule)
    if not isinstance(loaded.manifest.config, DiscoConfig):
        raise UserError(
            f"rule '{rule}' is of kind '{loaded.manifest.kind}'; only 'disco' has a "
            "published format"
        )
    out = Path(out)
    if out.suffix != ".npz":
        raise UserError(f"output '{out}' must end in .npz")
    if out.exists():
        raise UserError(f"output '{out}' exists; name a new file")
    arrays = to_published(jax.device_get(loaded.meta_params))
    write_file(out, rule_folder.pack(arrays))
    return out


def _content(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of names, dtypes, shapes and values, whatever the file."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
