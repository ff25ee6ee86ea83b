"""Sections that several commands have: tracking, and where XLA runs."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from metarl.config.base import Model


class TrackingConfig(Model):
    """Weights & Biases, and how often a line is written."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when logged in, else offline. `WANDB_MODE` wins."""
    project: str = "metarl"
    entity: str | None = None
    log_every: PositiveInt = 1
    """Meta-steps between rows of metrics."""


class RuntimeConfig(Model):
    """Where and how XLA runs."""

    platform: Literal["auto", "cpu", "gpu"] = "auto"
    compilation_cache: bool = True
    """Keep compiled programs in ~/.cache/metarl, so that a second start is fast."""


class ReportConfig(Model):
    """`metarl report`: the page is written by the command's own options."""

    tracking: TrackingConfig = TrackingConfig(wandb="disabled")
    """W&B gets tables and figures where this or `WANDB_MODE` says so."""
