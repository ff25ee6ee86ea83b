"""The command line as a program: exit codes, one-line errors, options in any order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import metarl
from metarl import cli, commands
from metarl.config import TrainConfig
from metarl.config_loader import load
from metarl.errors import UserError

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def program(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metarl", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


@pytest.fixture
def recorded(monkeypatch):
    """Replace every command by one that records what it was given."""
    calls = []

    def record(args):
        calls.append(args)
        return 0

    for name in ("train", "evaluate", "config", "games", "rules_list", "rules_export"):
        monkeypatch.setattr(commands, name, record)
    return calls


# --- As a program -----------------------------------------------------------------


def test_config_prints_what_loads_as_the_same(tmp_path):
    done = program("config", QUICKSTART, "seed=3", "--meta.inner_updates=4")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "printed.yaml").write_text(done.stdout)
    expected = load(TrainConfig, [QUICKSTART], ["seed=3", "meta.inner_updates=4"])
    assert load(TrainConfig, [tmp_path / "printed.yaml"]) == expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["config", QUICKSTART, "sed=3"], "metarl: sed=3: unknown key; did you mean"),
        (
            ["config", QUICKSTART, "environment.games=[Pnog-v5]"],
            "metarl: environment.games: unknown game 'Pnog-v5'; did you mean 'Pong",
        ),
        (
            ["train", QUICKSTART, "environment.games=[]"],
            "metarl: environment: one of suite and games is needed",
        ),
        (["train", "--resume", "."], "metarl: --resume .: not a run"),
        (["config", "--sheema"], "metarl: unknown option --sheema; did you mean '--sc"),
        (
            ["evaluate", "random", "--suite", "catch", "environment.suite=pong"],
            "metarl: environment.suite: 'pong' and --suite 'catch' are both given",
        ),
        (["trian"], "metarl: unknown command 'trian'; did you mean 'train'?"),
        ([], "metarl: the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, line, tmp_path):
    done = program(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_games_lists_splits_and_scores():
    done = program("games", "--suite=atari5")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [line[0] for line in lines[1:]] == [
        "BattleZone-v5",
        "DoubleDunk-v5",
        "NameThisGame-v5",
        "Phoenix-v5",
        "Qbert-v5",
    ]
    assert lines[5][1:5] == ["held_out", "6", "163.9", "13,455.0"]


def test_output_into_a_closed_pipe_leaves_no_traceback():
    command = f"{sys.executable} -m metarl games | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split()[0] == "suite"
    assert done.stderr == ""


def test_light_commands_do_not_import_jax():
    code = (
        "import sys; from metarl.cli import main; "
        "code = main(['config', sys.argv[1]]); "
        "sys.exit(code or 10 * ('jax' in sys.modules or 'envpool' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, QUICKSTART],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_version_is_the_packages():
    assert program("--version").stdout == f"metarl {metarl.__version__}\n"


# --- In this process --------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "a.yaml b.yaml seed=3 --meta.remat=false --resume RUN",
        "--resume=RUN seed=3 a.yaml --meta.remat=false b.yaml",
        "seed=3 --meta.remat=false a.yaml --resume RUN b.yaml",
    ],
)
def test_options_files_and_overrides_in_any_order(words, recorded):
    assert cli.main(["train", *words.split()]) == 0
    (args,) = recorded
    assert args.resume == Path("RUN")
    assert args.files == [Path("a.yaml"), Path("b.yaml")]
    assert args.overrides == ["seed=3", "--meta.remat=false"]


def test_the_value_of_an_option_is_no_override(recorded):
    assert cli.main(["train", "--resume", "seed=3", "seed=4"]) == 0
    assert recorded[0].resume == Path("seed=3")
    assert recorded[0].overrides == ["seed=4"]


def test_one_call_does_not_remember_the_overrides_of_another(recorded):
    cli.main(["train", "a.yaml", "seed=4"])
    cli.main(["train", "a.yaml"])
    assert [args.overrides for args in recorded] == [["seed=4"], []]


def test_short_options_take_their_value_in_both_ways(recorded):
    cli.main(["rules", "export", "R", "-o", "F"])
    cli.main(["rules", "export", "-oF", "R"])
    assert [(args.rule, args.output) for args in recorded] == [("R", Path("F"))] * 2


def test_evaluate_tells_rules_from_configurations(monkeypatch, tmp_path):
    calls = []
    module = type(sys)("metarl.evaluation")
    module.main = lambda *given, jobs: calls.append((*given, jobs)) or 0
    monkeypatch.setitem(sys.modules, "metarl.evaluation", module)
    file = tmp_path / "e.yaml"
    file.write_text("rollout_length: 5\n")
    words = ["evaluate", "RUN", "--suite", "catch", str(file), "actor_critic"]
    assert cli.main([*words, "seeds=[4]", "env_steps=2e5"]) == 0
    assert cli.main(["evaluate", "RUN", "--suite", "catch", "--jobs", "2/4"]) == 0
    overrides = ["seeds=[4]", "env_steps=2e5"]
    assert calls == [
        (["RUN", "actor_critic"], "catch", [file], overrides, None),
        (["RUN"], "catch", [], [], "2/4"),
    ]


def test_evaluate_refuses_mistakes_before_it_reads_a_rule(capsys):
    assert cli.main(["evaluate", "no_such_rule", "--suite", "catsh"]) == 2
    line = "metarl: environment.suite: unknown suite 'catsh'; did you mean 'catch'?"
    assert capsys.readouterr().err.startswith(line)
    assert cli.main(["evaluate", "a.yaml", "--suite", "catch"]) == 2
    assert capsys.readouterr().err == "metarl: evaluate: at least one RULE is needed\n"


def test_resuming_starts_from_the_stored_configuration(monkeypatch, tmp_path):
    calls = []
    module = type(sys)("metarl.train")
    module.main = lambda config, *, resume: calls.append((config, resume)) or 75
    monkeypatch.setitem(sys.modules, "metarl.train", module)
    (tmp_path / "config.yaml").write_text("seed: 7\nenvironment: {suite: catch}\n")
    assert cli.main(["train", "--resume", str(tmp_path), "meta_steps=9"]) == 75
    config, resume = calls[0]
    assert resume == tmp_path
    assert (config.seed, config.meta_steps) == (7, 9)


def test_schema_is_json_of_the_asked_command(capsys):
    assert cli.main(["config", "--schema"]) == 0
    assert "meta_steps" in json.loads(capsys.readouterr().out)["properties"]
    assert cli.main(["config", "--schema", "--evaluation"]) == 0
    assert "results_dir" in json.loads(capsys.readouterr().out)["properties"]


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise ValueError("ours")

    monkeypatch.setattr(commands, "games", fail)
    with pytest.raises(ValueError, match="ours"):
        cli.main(["games"])


def test_a_mistake_of_several_lines_is_printed_as_one(monkeypatch, capsys):
    def fail(args):
        raise UserError("one\n  two")

    monkeypatch.setattr(commands, "games", fail)
    assert cli.main(["games"]) == 2
    assert capsys.readouterr().err == "metarl: one two\n"


def test_an_interrupt_is_reported_without_a_traceback(monkeypatch, capsys):
    def interrupt(args):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(commands, "games", interrupt)
    # A shell's background job, as these tests may be, is started to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["games"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "metarl: interrupted\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["evaluate"],
        ["bench"],
        ["games"],
        ["config"],
        ["rules"],
        *(["rules", name] for name in ("list", "show", "import", "export", "verify")),
    ],
    ids=" ".join,
)
def test_help_shows_one_example(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "-h"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count("example: metarl ") == 1


def test_importing_the_package_is_cheap_and_its_names_are_lazy():
    code = "import metarl, sys; sys.exit('jax' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert callable(metarl.load_rule)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = metarl.nothing
