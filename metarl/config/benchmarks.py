"""`metarl bench`: the parts of a run, timed."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from metarl.config.base import Model, Positive
from metarl.config.training import TrainConfig


class BenchOptions(Model):
    """How `metarl bench` measures."""

    rollouts: Literal["synthetic", "environment"] = "synthetic"
    """What updates and meta-gradients are computed from: random experience of the
    right shapes, made on the device, or experience that new agents collected."""
    compare: bool = True
    """Measure what the case is to be compared with too."""
    warm_cache: bool = False
    """Read the measured programs from the cache of compiled programs where it has them,
    as a second start does; else each is compiled anew."""
    seconds: Positive = 10.0
    """How long each case is timed, in 10 calls or more; in 3 or more where 10 would
    take six times as long."""
    repeats: PositiveInt | None = None
    """Time exactly so many calls; None: as `seconds` says."""


class BenchConfig(TrainConfig):
    """`metarl bench`: time the parts of a run of `metarl train`."""

    bench: BenchOptions = BenchOptions()
