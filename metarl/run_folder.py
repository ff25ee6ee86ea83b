"""The folder of one run: its configuration, and whether it may be gone on with.

Host code; a leaf under `train.py`. `checkpoint.py` knows what is in `checkpoints/`.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from metarl import config_loader
from metarl.config import TrainConfig
from metarl.errors import UserError
from metarl.provenance import write_versions

EXTENDABLE = ("meta_steps",)
"""Keys that a resumed run may change."""

ELSEWHERE = ("run_dir", "environment.num_threads", "tracking", "runtime")
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
        # Whole or not at all: a run is what has a configuration.
        unfinished = path / ".config.yaml"
        unfinished.write_text(config_loader.dump(config))
        os.replace(unfinished, path / "config.yaml")
        write_versions(path)
        return cls(path)

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
    def initial_rule(self) -> Path:
        """Where the rule of meta-step 0 is: random, or a copy of the parent."""
        return self.path / "initial_rule"

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
        unfinished = self.path / ".config.yaml"
        unfinished.write_text(config_loader.dump(config))
        os.replace(unfinished, self._config)


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
