"""`python -m metarl`: the same as the command `metarl`."""

from __future__ import annotations

import sys

from metarl.cli import main

if __name__ == "__main__":
    sys.exit(main())
