"""What README.md says can be typed, and the files that it and docs/ name are there."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from metarl import cli, commands, config_loader
from metarl.bench import command as bench
from metarl.bench import plan
from metarl.config import EvaluationConfig, ReportConfig, TrainConfig
from metarl.envs.tasks import resolve_environment
from metarl.evaluation import jobs

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "checkpoints" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
UPDATES = "seed, updates, length = 1, 200, 16"


def typed_commands(page: Path) -> list[str]:
    """Every `metarl ...` in a block or between backticks, without what precedes it."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(metarl [^`]+)`", text)
    lines = [re.sub(r"\s+#.*", "", line) for line in lines]
    found = (re.search(r"(?:^|[ /])(metarl .*)", line) for line in lines)
    # Capitals and dots stand for what a user has.
    typed = [match[1] for match in found if match]
    any_of = re.compile(r" \.\.\.| (?:RULE|CONFIG)\.\.\.")
    return [line for line in typed if not any_of.search(line)]


def words_of(command: str) -> list[str]:
    return shlex.split(command)[1:]


COMMANDS = typed_commands(README)
OF_DOCS = [
    command
    for page in ("discovery", "evaluation", "report", "results", "training")
    for command in typed_commands(ROOT / "docs" / f"{page}.md")
    if command.startswith(("metarl train ", "metarl evaluate ", "metarl report "))
]


def test_the_readme_shows_every_command() -> None:
    shown = {words_of(command)[0] for command in COMMANDS}
    assert shown == {"train", "evaluate", "report", "rules", "bench", "games", "config"}
    of_rules = {w[1] for w in map(words_of, COMMANDS) if w[0] == "rules"}
    assert of_rules == {"import", "list", "show", "export", "verify", "ship"}


@pytest.mark.parametrize("command", [*COMMANDS, *OF_DOCS])
def test_every_command_is_one_with_settings_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [
        word.replace("CONFIG", "configs/catch.yaml").replace(
            "$SLURM_ARRAY_TASK_ID", "7"
        )
        for word in words_of(command)
    ]
    args = cli.parse(words)
    if args.run is commands.train:
        # A run's own configuration lies under the overrides of a resumed one.
        files = args.files or [ROOT / "configs" / "catch.yaml"]
        config = config_loader.load(TrainConfig, files, args.overrides)
        assert resolve_environment(config.environment, same_shapes=False)
    elif args.run is commands.evaluate:
        suite = [f"environment.suite={args.suite}"] if args.suite else []
        overrides = [*suite, *args.overrides]
        if args.jobs is not None:
            assert jobs.parse_jobs(args.jobs)
        files = [Path(word) for word in args.rules if word.endswith(".yaml")]
        evaluation = config_loader.load(EvaluationConfig, files, overrides)
        assert resolve_environment(evaluation.environment, same_shapes=False)
    elif args.run is commands.bench:
        asked, files = bench.split(args.words)
        assert plan.sequence(asked, compare=True, agents=2)
        assert bench.load_config(files, args.overrides)
    elif args.run is commands.report:
        assert config_loader.load(ReportConfig, [], args.overrides)
    elif args.run in (commands.games, commands.config):
        assert cli.main(words) == cli.EXIT_DONE
    else:
        assert args.run.__name__ == f"rules_{words[1]}"


def mentions(page: Path) -> set[str]:
    """Links, and paths between backticks that begin with one of our folders."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    folders = r"(?:metarl|configs|docs|tests|requirements)/"
    paths = re.findall(rf"`({folders}[\w./*-]*)(?:::\w+)?`", text)
    near = {(page.parent / link).resolve().relative_to(ROOT) for link in links}
    return {str(path) for path in near} | set(paths)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    # NAME stands for whatever is added.
    names = [name.replace("NAME", "*") for name in sorted(mentions(page))]
    missing = [name for name in names if not any(ROOT.glob(name))]
    assert missing == []


def test_mentions_are_found() -> None:
    assert {"docs/metrics.md", "LICENSE", "metarl/cli.py"} <= mentions(README)
    assert "metarl/config/rules.py" in mentions(ROOT / "CONTRIBUTING.md")


def test_make_has_the_targets_that_pages_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: {target}"


def test_the_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three updates; `tests/test_readme_example.py` makes 200."""
    monkeypatch.chdir(tmp_path)
    network, loop = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert UPDATES in loop
    assert len(loop.split("rule = ")[1].splitlines()) == 10
    code = network + loop.replace(UPDATES, "seed, updates, length = 1, 3, 4")
    names: dict[str, object] = {}
    exec(compile(code, README, "exec"), names)
    assert names["state"].agent_updates == 3
    assert os.listdir() == ["agent.npz"]
