"""How Weights & Biases is used: as the environment and the configuration say.

Host code and a leaf; asks nobody, and imports no W&B.
"""

from __future__ import annotations

import netrc
import os
import urllib.parse
from pathlib import Path
from typing import Literal

from metarl.config import TrackingConfig
from metarl.console import say

Mode = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")


def wandb_mode(config: TrackingConfig) -> Mode:
    """Return how W&B is used: `WANDB_MODE`, else the configuration, never prompting.

    Nobody logged in: offline, also where online was asked for.
    """
    wanted: str = os.environ.get("WANDB_MODE", "").strip().lower()
    wanted = {"dryrun": "offline", "run": "online", "shared": "online"}.get(
        wanted, wanted
    )
    if wanted not in _MODES:
        if wanted:
            say(f"warning: WANDB_MODE '{wanted}' is none of {', '.join(_MODES)}")
        wanted = config.wandb
    if wanted == "disabled":
        return "disabled"
    if wanted == "offline":
        return "offline"
    if is_logged_in():
        return "online"
    if wanted == "online":
        say("warning: nobody is logged in to W&B; this run is tracked offline")
    return "offline"


def is_logged_in() -> bool:
    """Return whether W&B would find credentials, without asking for them."""
    if any(os.environ.get(f"WANDB_{k}") for k in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return True
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urllib.parse.urlsplit(url).hostname or ""
    chosen = os.environ.get("NETRC")
    names = (
        [Path(chosen)] if chosen else [Path.home() / n for n in (".netrc", "_netrc")]
    )
    for path in names:
        try:
            entry = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry is not None:
            return True
    return False
