"""Parity with the published rule: this build against stored arrays of the reference."""

from metarl.golden.parity import verify

__all__ = ["verify"]
