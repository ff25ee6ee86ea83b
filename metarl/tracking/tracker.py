"""What a run tells: rows to `metrics.jsonl` and, where it can be had, to W&B.

Host code over the other modules here. A run never waits for W&B and never fails because
of it: whatever goes wrong there becomes one warning, and the JSON lines go on.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from metarl.atomic_files import write_file
from metarl.config import TrackingConfig
from metarl.console import say
from metarl.tracking.metrics_file import MetricsFile, Position
from metarl.tracking.names import RunLabels, flat_config
from metarl.tracking.wandb_mode import Mode, wandb_mode

if TYPE_CHECKING:
    import wandb

_STEPS = ("global_step", "meta_step")
_ON_META_STEP = ("meta", "eval")
"""Families of keys whose x-axis is `meta_step`; that of all others is `global_step`."""
_OPEN: set[str] = set()  # ids of the W&B runs of this process that are not finished
_KEPT_OUT = contextvars.ContextVar("_KEPT_OUT", default=False)
_INIT_TIMEOUT_S = 15.0
_FINISH_TIMEOUT_S = 60.0  # what is not uploaded by then stays on disk for `wandb sync`


class Tracker:
    """Writes a run's metrics; use as a context manager."""

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        run_config: Mapping[str, object],
        labels: RunLabels,
        *,
        resume: Position | None = None,
    ) -> None:
        """Open ``run_dir/metrics.jsonl``, and a W&B run unless that is disabled.

        Args:
          run_dir: made where missing.
          config: of the tracking.
          run_config: the resolved configuration, as plain JSON values.
          labels: for W&B.
          resume: None for a run that starts: rows of an earlier start are dropped.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir, self._labels = run_dir, labels
        self._file = MetricsFile(run_dir, resume)
        self._run: wandb.Run | None = None
        self._families: set[str] = set()
        self._start_wandb(config, flat_config(run_config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(exit_code=0 if error is None else 1)

    def log(
        self,
        metrics: Mapping[str, float],
        *,
        global_step: int | None = None,
        meta_step: int | None = None,
    ) -> None:
        """Write one row.

        Args:
          metrics: scalars by key; those that are not finite become null.
          global_step: environment steps so far, summed over environments.
          meta_step: meta-steps so far. At least one of the two.
        """
        given = {"global_step": global_step, "meta_step": meta_step}
        steps = {step: value for step, value in given.items() if value is not None}
        if not steps:
            raise ValueError("log() needs global_step or meta_step")
        if overlap := sorted(set(_STEPS) & set(metrics)):
            raise ValueError(f"'{overlap[0]}' is an argument of log(), not a metric")
        row = self._file.write(steps, metrics)
        with self._guarded("log") as run:
            if run is not None:
                self._define(run, metrics)
                run.log({key: v for key, v in row.items() if v is not None})

    def log_artifact(self, rule_dir: Path) -> None:
        """Store the rule in ``rule_dir`` as a W&B artifact of type "rule".

        It is called by the run and the folder, such as `RUN-rule`.
        """
        with self._guarded("log_artifact") as run:
            if run is None:
                return
            import wandb

            from metarl.rule_files import folder as rule_folder  # imports JAX

            arrays, manifest = rule_folder.read(rule_dir)
            name = f"{self._labels.name}-{rule_dir.name}"
            name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
            artifact = wandb.Artifact(
                name[-128:],
                type="rule",
                metadata=json.loads(manifest) if manifest else None,
            )
            with artifact.new_file(rule_folder.ARRAYS, mode="wb") as file:
                file.write(arrays)
            if manifest:
                with artifact.new_file(rule_folder.MANIFEST, mode="w") as file:
                    file.write(manifest)
            run.log_artifact(artifact)

    def log_video(self, game: str, path: Path, *, global_step: int) -> None:
        """Show the MP4 at ``path`` under ``videos/{game}``."""
        with self._guarded("log_video") as run:
            if run is None:
                return
            import wandb

            key = f"videos/{game}"
            self._define(run, {key: 0.0})
            video = wandb.Video(str(path), format="mp4")
            run.log({key: video, "global_step": global_step})

    def log_table(
        self,
        key: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str | float | bool | None]],
    ) -> None:
        """Show a table under ``key``; in W&B alone.

        Args:
          key: of the table.
          columns: their names.
          rows: as many cells each.
        """
        with self._guarded("log_table") as run:
            if run is None:
                return
            import wandb

            # A column may hold both numbers and nothing, or the words of a setting.
            table = wandb.Table(
                columns=list(columns),
                data=[list(row) for row in rows],
                allow_mixed_types=True,
            )
            run.log({key: table})

    def log_image(self, key: str, path: Path, *, caption: str = "") -> None:
        """Show the picture at ``path`` under ``key``; in W&B alone."""
        with self._guarded("log_image") as run:
            if run is None:
                return
            import wandb

            run.log({key: wandb.Image(str(path), caption=caption)})

    def log_html(self, key: str, path: Path) -> None:
        """Show the page at ``path`` under ``key``; in W&B alone."""
        with self._guarded("log_html") as run:
            if run is None:
                return
            import wandb

            run.log({key: wandb.Html(str(path), inject=False)})

    def close(self, *, exit_code: int = 0) -> None:
        """Finish both; safe to call twice.

        Args:
          exit_code: other than 0 marks the W&B run as failed.
        """
        self._file.close()
        with self._guarded("finish") as run:
            if run is not None:
                _finish(run, exit_code)
        self._run = None

    def _start_wandb(
        self, config: TrackingConfig, run_config: dict[str, object]
    ) -> None:
        """Open the W&B run; offline where online fails; none where that fails too."""
        if _KEPT_OUT.get():
            return
        mode = wandb_mode(config)
        if mode == "disabled":
            return
        if mode == "online":
            with self._guarded("init (online)", then="going on offline"):
                self._run = self._init("online", config, run_config)
        if self._run is None:
            with self._guarded("init (offline)"):
                self._run = self._init("offline", config, run_config)

    def _init(
        self, mode: Mode, config: TrackingConfig, run_config: dict[str, object]
    ) -> wandb.Run:
        import wandb

        if not _OPEN and wandb.run is None:
            # The service of a start that failed would still hold the run's id.
            wandb.teardown()
        settings = {
            "console": "off",  # our own lines stay where they are printed
            "silent": True,
            "disable_git": True,  # the commit is a tag and in versions.json
            "init_timeout": _INIT_TIMEOUT_S,
            "finish_timeout": _FINISH_TIMEOUT_S,
        }
        known = wandb.Settings.model_fields  # an older wandb has not all of them
        run = wandb.init(
            mode=mode,
            dir=str(self._run_dir),
            id=_run_id(self._run_dir),
            resume="allow",
            reinit="create_new",
            project=config.project,
            entity=config.entity,
            name=self._labels.name,
            group=self._labels.group,
            job_type=self._labels.job_type,
            tags=[tag[:64] for tag in self._labels.tags],  # W&B's limit
            config=run_config,
            settings=wandb.Settings(
                **{key: value for key, value in settings.items() if key in known}
            ),
        )
        _OPEN.add(run.id)
        for step in _STEPS:
            run.define_metric(step, hidden=True)
        return run

    def _define(self, run: wandb.Run, metrics: Mapping[str, object]) -> None:
        """Give every family of keys its x-axis when its first key comes."""
        for family in {key.partition("/")[0] for key in metrics} - self._families:
            step = "meta_step" if family in _ON_META_STEP else "global_step"
            run.define_metric(f"{family}/*", step_metric=step)
            self._families.add(family)

    @contextlib.contextmanager
    def _guarded(
        self, action: str, *, then: str = "metrics.jsonl goes on"
    ) -> Iterator[wandb.Run | None]:
        """Turn whatever W&B raises into one warning, and go on without it."""
        try:
            yield self._run
        except Exception as error:  # W&B documents no base class of its errors
            self._run = None
            first = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {first}".rstrip(": ")
            say(f"warning: W&B {action} failed ({reason}); {then}")


@contextlib.contextmanager
def without_wandb() -> Iterator[None]:
    """Let trackers that are made in the block write JSON lines alone.

    Whatever `WANDB_MODE` says: for parts of a run that has a W&B run already.
    """
    token = _KEPT_OUT.set(True)
    try:
        yield
    finally:
        _KEPT_OUT.reset(token)


def _finish(run: wandb.Run, exit_code: int) -> None:
    """Finish ``run``, and end W&B's service process with the last run that is open.

    The service writes an offline run's last rows seconds after the run is finished,
    or when it ends.
    """
    import wandb

    run.finish(exit_code=exit_code)
    _OPEN.discard(run.id)
    if not _OPEN and wandb.run is None:  # nor one of the user's own
        wandb.teardown()


def _run_id(run_dir: Path) -> str:
    """Return the W&B id that this run has had since its first start."""
    path = run_dir / "wandb_id"
    with contextlib.suppress(FileNotFoundError):
        if stored := path.read_text().strip():
            return stored
    run_id = secrets.token_hex(4)
    write_file(path, f"{run_id}\n".encode())
    return run_id
