"""The folder of one run: its configuration, and whether it may be gone on with.

Host code; a leaf under `train.py`. `checkpoint.py` knows what is in `checkpoints/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarl import config_loader
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.provenance import write_versions
from metarl.rule_files import LoadedRule, load_rule, save_rule
from metarl.rule_files import folder as rule_folder

EXTENDABLE = ("meta_steps", "validation")
"""Keys that a resumed run may change."""

ELSEWHERE = (
    "run_dir",
    "environment.num_threads",
    "population.overlap",
    "checkpoint",
    "runtime.compilation_cache",
    "tracking.wandb",
    "tracking.project",
    "tracking.entity",
)
"""Keys that change no result: they may differ where a run is resumed."""


class RunFolder:
    """Paths of a run, and its stored configuration."""

    def __init__(self, path: Path) -> None:
        """Open the folder of a run.

        Raises:
          UserError: it is none.
        """
        self.path = path
        if not self._config.is_file():
            raise UserError(f"--resume {path}: not a run (it has no config.yaml)")
        if rule_folder.holds_rule(path):
            raise UserError(
                f"--resume {path}: a rule that ships, not a run (discover it anew with "
                f"metarl train {self._config})"
            )

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make the folder of a new run.

        Raises:
          UserError: there is a run in it, or it cannot be made.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{config.exp_name}__{config.seed}__{stamp}"
        path = config.run_dir or Path("runs") / name
        if (path / "config.yaml").exists():
            raise UserError(
                f"run_dir: {path} holds a run; go on with it by --resume {path}, "
                "or name another folder"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {path}: {error.strerror}") from None
        _write(path / "config.yaml", config_loader.dump(config))
        write_versions(path)
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the run while the block goes on.

        Raises:
          UserError: another one is in it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"run_dir: another process is at work in {self.path}"
                ) from None
            yield

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def rule(self) -> Path:
        """Where the newest rule is."""
        return self.path / "rule"

    @property
    def best_rule(self) -> Path:
        """Where the rule is that did best in validation."""
        return self.path / "rule_best"

    @property
    def validations(self) -> Path:
        """Where validations keep their rules, cells and scores."""
        return self.path / "validation"

    @property
    def initial_rule(self) -> Path:
        """Where the rule of meta-step 0 is: random, or a copy of the parent."""
        return self.path / "initial_rule"

    def parent(self, config: TrainConfig) -> LoadedRule | None:
        """Return the rule that meta-training starts from, if one is given.

        The run keeps a copy, so that it can go on where the original is gone.

        Raises:
          UserError: there is none, or it is not of the configured shape.
        """
        if config.initial_rule is None:
            return None
        about = self.path / "parent.json"
        if about.is_file():
            known = json.loads(about.read_text())
            copy = load_rule(self.initial_rule)
            manifest = copy.manifest.model_copy(update={"sha256": known["sha256"]})
            return dataclasses.replace(copy, name=known["name"], manifest=manifest)
        parent = load_parent(config.initial_rule, config)
        save_rule(self.initial_rule, parent.meta_params, parent.manifest)
        known = {"name": parent.name, "sha256": parent.manifest.sha256}
        # Last: where it stands, the copy is whole.
        _write(about, json.dumps(known) + "\n")
        return parent

    def accept_changes(self, config: TrainConfig) -> None:
        """Store ``config`` if it may replace the run's own.

        Raises:
          UserError: a key differs that a resumed run may not change.
        """
        stored = config_loader.load(TrainConfig, [self._config])
        for key, old, new in _differences(
            stored.model_dump(mode="json"), config.model_dump(mode="json")
        ):
            if not any(f"{key}.".startswith(f"{k}.") for k in EXTENDABLE + ELSEWHERE):
                raise UserError(
                    f"{key}: {new} differs from the run's {old}; a resumed run may "
                    f"change {', '.join(EXTENDABLE + ELSEWHERE)} alone"
                )
        if config.meta_steps < stored.meta_steps:
            raise UserError(
                f"meta_steps: {config.meta_steps} is less than the run's "
                f"{stored.meta_steps}; a resumed run can be extended, not shortened"
            )
        _write(self._config, config_loader.dump(config))


def load_parent(path: Path, config: TrainConfig) -> LoadedRule:
    """Return the rule at ``path``, from which ``config`` starts.

    Raises:
      UserError: there is none, or it is not of the configured shape.
    """
    parent = load_rule(path)
    if not parent.manifest.num_parameters:
        raise UserError(
            f"initial_rule={path}: a hand-written rule has no meta-parameters to start "
            "from (allowed: a rule that was discovered; null for random ones)"
        )
    if parent.manifest.config != config.update_rule:
        raise UserError(
            f"initial_rule: {path} has another configuration than update_rule; give "
            f"update_rule the one that `metarl rules show {path}` prints"
        )
    return parent


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def describe_machine() -> dict[str, object]:
    """Return what the bits of a result depend on besides the configuration."""
    import jax

    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        "processor": platform.machine(),
        # XLA on CPU splits its work by these, and so rounds differently.
        "cpus": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted keys at which two JSON values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            found += _differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else key
            )
        return found
    return [] if old == new else [(path, old, new)]
