"""`metarl quickstart`: the main job in its smallest form, end to end.

Meta-trains a rule on a few Atari games, trains fresh agents with it on one of them and
on a game that it has never seen, and says what to do next. Host code, above `train`
and `evaluation`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from metarl import config_loader, train
from metarl.config import TrainConfig
from metarl.console import format_duration, say
from metarl.errors import UserError
from metarl.evaluation import evaluate, summary_table

CONFIG = Path("configs/quickstart.yaml")
HELD_OUT = "Qbert-v5"
"""Of Atari-5, and its episodes are short."""
SEEN = "Breakout-v5"
ENV_STEPS = 8_000
"""Of each evaluated agent: enough for episodes to end, not for much learning."""


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of the quickstart.

    Raises:
      UserError: it is not here, or an override does not fit.
    """
    if not CONFIG.is_file():
        raise UserError(f"quickstart: {CONFIG} is not here; run it from the clone")
    return config_loader.load(TrainConfig, [CONFIG], overrides)


def main(config: TrainConfig) -> int:
    """Run all of it; return the exit code."""
    started = time.monotonic()
    say(f"1/2 meta-training for {config.meta_steps} meta-steps")
    folder = train.new_run(config)
    if code := train.go_on(config, folder):
        return code
    games = ", ".join((SEEN, HELD_OUT))
    say(f"\n2/2 training fresh agents with the rule, and with actor_critic, on {games}")
    results_dir = folder.path / "results"
    rows = evaluate(
        [folder.path, "actor_critic"],
        overrides=[
            f"environment.games=[{SEEN}, {HELD_OUT}]",
            f"environment.atari.frame_size={config.environment.atari.frame_size}",
            "seeds=[1]",
            f"env_steps={ENV_STEPS}",
            "curve_points=4",
            f"results_dir={results_dir}",
            "tracking.wandb=disabled",
        ],
    )
    say("")
    for line in summary_table(rows):
        say(line)
    say(
        f"\ndone in {format_duration(time.monotonic() - started)}; a demonstration: "
        "so few steps neither discover a rule nor train an agent"
    )
    say(f"results: {results_dir}/results.csv and curves.csv; metrics: {folder.path}")
    say(
        "next (with .venv/bin/ in front, or the environment activated):\n"
        "  metarl train configs/catch.yaml\n"
        "  metarl evaluate actor_critic --suite catch\n"
        f"  metarl train --resume {folder.path} meta_steps=200"
    )
    return 0
