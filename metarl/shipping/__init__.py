"""A run's rule as a folder to ship: the rule, its model card, curves and configuration.

`record.py` what the run has on record; `curves.py` its figure; `scores.py` what fresh
agents came to; `recipes.py` the commands that give those scores again; `card.py` the
model card; `command.py` writes them all.
"""

from __future__ import annotations

from metarl.shipping.command import ship_rule

__all__ = ["ship_rule"]
