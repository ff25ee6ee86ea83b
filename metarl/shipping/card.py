"""The model card of a rule that ships, in Markdown: what is on record, and no more.

Puts into words what `record.py`, `curves.py` and `scores.py` found; writes no file. No
dates and no folders of this machine: the same run gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metarl.config import CustomConfig
from metarl.console import format_duration
from metarl.report.figures import Figure
from metarl.report.markup import count_of, number
from metarl.report.tables import DataTable, show
from metarl.report.validation_figures import sentences
from metarl.rule_files import Manifest
from metarl.shipping.record import Record
from metarl.shipping.scores import Scores, table

MARK = "<!-- Written by `metarl rules ship`: edit notes.md, and run it again. -->"
"""The first line of every card, by which one written by hand is told apart."""
NO_LIMITS = "The author states no limits."
_KINDS = {
    "disco": "DiscoRL, Oh et al. 2025",
    "lpg": "Learned Policy Gradient, Oh et al. 2020",
    "lpg_critic": "that of Oh et al. 2020, which also sees a critic",
}


def write_card(
    record: Record, figure: Figure, every: Sequence[Scores], notes: str | None
) -> str:
    """Return the card.

    Args:
      record: of the rule.
      figure: of its meta-training.
      every: results of fresh agents.
      notes: what the author says it is not good for, in Markdown; None: nothing.
    """
    parts = [
        MARK,
        f"# {record.name}",
        _summary(record),
        _use(record),
        _facts(record),
        "## Scores of fresh agents",
        *(part for scores in every for part in _scores(scores, record)),
        *([] if every else ["No results were given."]),
        "## What it is not good for",
        NO_LIMITS if notes is None else notes.strip(),
        "## How it was discovered",
        *_discovery(record, figure, every),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(record: Record) -> str:
    kind = record.manifest.kind
    games = ", ".join(task.name for task in dict.fromkeys(record.tasks))
    source = f" ({_KINDS[kind]})" if kind in _KINDS else ""
    how = "finetuned" if record.manifest.parents else "discovered"
    return (
        f"An update rule of kind `{kind}`{source}, {how} on {games} from "
        f"{_origin(record.manifest)}."
    )


def _origin(manifest: Manifest) -> str:
    """Return what the meta-training began with."""
    if manifest.parents:
        return ", ".join(f"{p.name} (sha256 {p.sha256[:12]})" for p in manifest.parents)
    if isinstance(manifest.config, CustomConfig):
        return f"the first meta-parameters of the class {manifest.config.rule}"
    if manifest.source:
        return "weights of another origin"
    return "random meta-parameters"


def _use(record: Record) -> str:
    return (
        "```bash\n"
        f"metarl evaluate {record.name} --suite SUITE\n"
        f"metarl rules show {record.name}\n"
        "```\n\n"
        f'In Python: `rule = metarl.load_rule("{record.name}")`.'
    )


def _facts(record: Record) -> str:
    manifest, config = record.manifest, record.config
    numbers = ", ".join(
        f"{key}={value}"
        for key, value in manifest.config.model_dump(mode="json").items()
        if key != "kind"
    )
    lives = config.population.lifetime_env_steps
    budgets = lives if isinstance(lives, tuple) else (lives,)
    agents = config.population.num_agents or len(record.tasks)
    rows = [
        ("kind", f"`{manifest.kind}`: {numbers}" if numbers else f"`{manifest.kind}`"),
        ("meta-parameters", number(manifest.num_parameters)),
        ("sha256 of `rule.npz`", f"`{manifest.sha256}`"),
        ("which rule of its run", _choice(record)),
        ("games seen", _games(manifest.games_seen, manifest.seen_is_complete)),
        ("games for validation", _games(manifest.games_validation, True)),
        (
            "agents that it learned from",
            f"{number(agents)} at a time, with lives of "
            f"{' or '.join(map(_whole, budgets))} environment steps",
        ),
        ("seed", str(config.seed)),
        ("meta-steps", _whole(manifest.meta_steps)),
        ("environment steps", _whole(manifest.env_steps)),
        ("machine time", _machine_time(record)),
        ("machine", _machine(record)),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        ("commit", _commits([(manifest.commit, record.run.versions.get("modified"))])),
    ]
    return _markdown(("", record.name), rows)


def _choice(record: Record) -> str:
    run, config = record.run, record.config
    done = max((row.get("meta_step") or 0 for row in run.rows), default=0)
    done = max(done, run.manifest.meta_steps if run.manifest else 0)
    at = f"meta-step {_whole(record.manifest.meta_steps)} of {_whole(done)}"
    if record.choice == "best":
        found = run.validations
        count = "its" if found is None else f"its {len(found.points)}"
        said = f"the best by {count} validations ({at})"
    elif record.choice == "newest":
        said = f"the newest ({at}); the run did not validate"
    else:
        said = f"the one that the author named ({at})"
    if done < config.meta_steps:
        said += f"; the run was planned for {_whole(config.meta_steps)} meta-steps"
    return said


def _machine_time(record: Record) -> str:
    time = record.time
    said = f"{format_duration(time.training_s)} of meta-training"
    if time.validation_s:
        said += f" and {format_duration(time.validation_s)} of validations"
    if record.choice != "newest":
        said += ", for the whole run"
    return f"{said}, by `charts/SPS` in the run's metrics, compiling included"


def _machine(record: Record) -> str:
    """Return the hardware, as far as it is known."""
    begun = record.run.versions.get("machine")
    said = []
    if isinstance(begun, Mapping):
        words = [str(begun[k]) for k in ("processor", "cores", "memory") if k in begun]
        said.append(", ".join(words))
    if saved := record.saved_on:
        device = f"JAX on {saved.get('platform')}"
        if saved.get("device") != saved.get("platform"):
            device += f" ({saved.get('device')})"
        cpus = saved.get("cpus")
        said.append(f"{device}, allowed {cpus} of the cores" if cpus else device)
    return "; ".join(said) or "not known"


def _scores(scores: Scores, record: Record) -> list[str]:
    """Return a folder of results: commands, table, and where its numbers are from."""
    about = [cell.about for cell in scores.records]
    seconds = sum(cell.result.wall_s or 0.0 for cell in scores.records)
    commits = _commits([(a.get("commit"), a.get("modified")) for a in about])
    devices = ", ".join(dict.fromkeys(str(a.get("device", "unknown")) for a in about))
    rates = any(cell.result.tuned for cell in scores.records)
    said = [
        "Raw returns of each agent's last episodes, mean over seeds, in brackets 95 % "
        "bootstrap intervals over seeds; [scores.csv](scores.csv) has every agent.",
        f"{count_of(len(about), 'cell')} of commit {commits}, device {devices}; "
        f"{format_duration(seconds)} of machine time.",
    ]
    if rates:
        said.append("Learning rates were chosen on validation games (`tuning`).")
    if scores.without:
        said.append(
            f"No command is known for all cells of {', '.join(scores.without)}: the "
            "rule is not at hand, or settings are of another version."
        )
    parts = [_shell(scores.commands)] if scores.commands else []
    found = table(scores, record)
    return [*parts, _table(found), " ".join(said)]


def _discovery(record: Record, figure: Figure, every: Sequence[Scores]) -> list[str]:
    name, folder = record.name, f"checkpoints/{record.name}"
    results = "".join(f" --results {scores.folder}" for scores in every)
    ship = f"metarl rules ship runs/{name} -o {folder}{results}"
    if record.choice == "named":
        ship = ship.replace(f"runs/{name} ", f"runs/{name}/RULE ")
    validations = record.run.validations
    said = [] if validations is None else [" ".join(sentences(validations))]
    return [
        _shell((f"metarl train {folder}/config.yaml run_dir=runs/{name}",)),
        *said,
        f"![{figure.title}: {figure.alt}](curves.png)",
        f"{figure.caption} [curves.csv](curves.csv) has the numbers, by the keys of "
        "`metrics.jsonl`. Card and figure are made by",
        _shell((ship,)),
    ]


def _games(games: Sequence[str], is_complete: bool) -> str:
    names = ", ".join(games) or "none"
    return names if is_complete else f"{names}; maybe more"


def _commits(found: Sequence[tuple[object, object]]) -> str:
    words = dict.fromkeys(
        f"{str(commit)[:12] if commit else 'unknown'}"
        f"{' with changes that were not committed' if modified else ''}"
        for commit, modified in found
    )
    return ", ".join(words)


def _whole(value: float) -> str:
    return f"{int(value):,}"


def _shell(lines: Sequence[str]) -> str:
    return "\n".join(["```bash", *lines, "```"])


def _table(found: DataTable) -> str:
    return _markdown(
        found.columns, [[show(cell) for cell in row] for row in found.rows]
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; names come from folders and files, and are text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
