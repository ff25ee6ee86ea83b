"""Rule files: a rule as a folder that anyone can load without the run it came from.

`manifest.py` what is said of a rule; `folder.py` the two files on disk; `finding.py`
which rule a name means; `loading.py` rules in and out; `published.py` DiscoRL's format;
`listing.py` what is printed.
"""

from __future__ import annotations

from metarl.provenance import git_commit, package_versions
from metarl.rule_files.finding import BUILT_IN, find_rule, shipped_rules
from metarl.rule_files.listing import list_rules, show_rule
from metarl.rule_files.loading import (
    MODULE_SHA256,
    LoadedRule,
    load_rule,
    save_rule,
)
from metarl.rule_files.manifest import (
    Manifest,
    Parent,
    Status,
    game_identity,
    inherit,
    new_manifest,
    status,
)
from metarl.rule_files.published import SEEN_BY_DISCO103, export_rule, import_rule

__all__ = [
    "BUILT_IN",
    "MODULE_SHA256",
    "SEEN_BY_DISCO103",
    "LoadedRule",
    "Manifest",
    "Parent",
    "Status",
    "export_rule",
    "find_rule",
    "game_identity",
    "git_commit",
    "import_rule",
    "inherit",
    "list_rules",
    "load_rule",
    "new_manifest",
    "package_versions",
    "save_rule",
    "shipped_rules",
    "show_rule",
    "status",
]
