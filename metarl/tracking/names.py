"""What runs and their metrics are called, in W&B and in `docs/metrics.md`.

A leaf; pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class RunLabels:
    """What a run is called in W&B.

    Attributes:
      name: of the run, like the run directory's.
      group: what several seeds share; the experiment's name.
      tags: the commit, and whatever runs are searched by.
      job_type: "train" or "evaluate".
    """

    name: str
    group: str
    tags: tuple[str, ...] = ()
    job_type: str = "train"


def logged_name(metric: str) -> str:
    """Return the documented key of a metric that an agent's update reports."""
    if metric == "learning_rate":
        return "charts/learning_rate"
    if metric.startswith("rule_entropy"):
        return f"meta/{metric}"
    loss = {"loss": "total_loss", "pi_loss": "policy_loss"}.get(metric, metric)
    return f"losses/{loss}"


def flat_config(run_config: Mapping[str, object]) -> dict[str, object]:
    """Return ``run_config`` with `env_id`, `exp_name` and `seed` at the top.

    Tools that compare runs across projects filter on these three. `env_id` is the
    game, the games joined by "+", or the suite.
    """
    config = dict(run_config)
    environment = config.get("environment")
    if "env_id" not in config and isinstance(environment, Mapping):
        games = environment.get("games") or ()
        config["env_id"] = "+".join(games) or environment.get("suite")
    seeds = config.get("seeds")
    if "seed" not in config and isinstance(seeds, Sequence):
        config["seed"] = seeds[0] if len(seeds) == 1 else None
    config.setdefault("exp_name", None)
    return config
