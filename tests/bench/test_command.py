"""`metarl bench` as a program: its lines, its processes, its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

from metarl import experiment as experiments
from metarl.bench import command
from metarl.bench.run import CaseFailed
from metarl.config import BenchOptions
from metarl.errors import UserError

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-m", "metarl", "bench"]
KEYS = [
    "case",
    "step_median_s",
    "step_p10_s",
    "step_p90_s",
    "compile_s",
    "env_steps_per_s",
    "peak_rss_bytes",
]


def bench(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *tiny_run.OVERRIDES, "bench.repeats=3", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the processes by one that records what is measured."""
    names: list[str] = []

    def measure_apart(name: str, config: object) -> dict[str, object]:
        names.append(name)
        if name == "meta-step-plain":
            raise CaseFailed(f"{name}: its process was killed")
        return dict.fromkeys(KEYS, 1.0) | {"case": name, "inner_updates": 2}

    monkeypatch.setattr(command, "measure_apart", measure_apart)
    return names


# --- As a program -----------------------------------------------------------------


def test_json_is_one_flat_object_per_case_and_line() -> None:
    done = bench("act", "--json", "families.catch.environment.num_envs=3")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["case"] for record in records] == ["act", "env", "forward"]
    for record in records:
        assert list(record)[:7] == KEYS
        assert all(not isinstance(value, dict | list) for value in record.values())
        low, median, high = (record[f"step_{k}_s"] for k in ("p10", "median", "p90"))
        assert 0 < low <= median <= high
        # Six environments of two agents: what is said of the family counts.
        assert record["env_steps_per_s"] == pytest.approx(6 / median)
        assert (record["agents"], record["num_envs"]) == (2, 3)
        assert record["repeats"] == 3
        assert 50e6 < record["peak_rss_bytes"] < 2e9
        assert "device_memory_bytes" not in record  # CPU
    documented = (ROOT / "docs" / "metrics.md").read_text()
    keys = {key for record in records for key in record}
    assert [key for key in keys if f"`{key}`" not in documented] == []
    act, env, forward = records
    assert env["compile_s"] == 0
    assert min(act["compile_s"], forward["trace_s"], forward["xla_s"]) > 0
    assert (forward["warm_cache"], forward["programs_from_cache"]) == (False, 0)
    # Each has a process of its own: stepping alone holds no programs.
    assert env["peak_rss_bytes"] < act["peak_rss_bytes"]


def test_a_warm_cache_gives_a_second_start_its_programs(tmp_path: Path) -> None:
    def start() -> tuple[dict[str, object], set[str]]:
        done = bench(
            *("forward", "update_rule={kind: policy_gradient}"),
            *("--json", "--warm-cache"),
            # Whatever takes less to compile than we keep programs for.
            JAX_COMPILATION_CACHE_DIR=str(tmp_path),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), {path.name for path in tmp_path.glob("*-cache")}

    first, kept = start()
    assert (first["warm_cache"], first["programs_from_cache"]) == (True, 0)
    assert sum(name.startswith("jit_sample") for name in kept) == 1
    second, kept_then = start()
    assert (second["warm_cache"], second["programs_from_cache"]) == (True, 1)
    assert kept_then == kept


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mete-step"], "metarl: bench: unknown case 'mete-step'; did you mean 'meta"),
        (["act", "bench.repeats=0"], "metarl: bench.repeats=0: must be greater than 0"),
        (["env", "forward"], "metarl: bench: one case at a time, not env and forward"),
        (["act", "--jsno"], "metarl: unknown option --jsno; did you mean '--json'?"),
        # Known to the process of the case alone.
        (
            ["meta-step", "update_rule={kind: actor_critic}"],
            "metarl: update_rule.kind=actor_critic: a hand-written rule has no meta-p",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], line: str) -> None:
    done = subprocess.run(
        [*BENCH, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    mistakes = [x for x in done.stderr.splitlines() if x.startswith("metarl:")]
    assert len(mistakes) == 1
    assert mistakes[0].startswith(line)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "metarl: interrupted\n"), (signal.SIGTERM, -15, "")],
)
def test_a_signal_ends_the_process_of_the_case_too_and_leaves_nothing(
    number: int, code: int, said: str, tmp_path: Path
) -> None:
    # A shell's background job, as these tests may be, ignores it, and so would a child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [*BENCH, "env", *tiny_run.OVERRIDES, "bench.seconds=300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        try:
            assert process.stderr is not None
            assert any("timing" in line for line in process.stderr)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            (child,) = children.read_text().split()
            process.send_signal(number)
            # Until both have closed it: the child holds it as well.
            _, errors = process.communicate(timeout=20)
        finally:
            signal.signal(signal.SIGINT, before)
            process.kill()
    assert (process.returncode, errors) == (code, said)
    assert is_gone(child)
    assert os.listdir(tmp_path) == []


def is_gone(process: str) -> bool:
    """Return whether a process ends soon, though nobody may have asked how it ended."""
    status = Path(f"/proc/{process}/status")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "State:\tZ" not in status.read_text():
                time.sleep(0.05)  # killed, and not yet scheduled to die
                continue
        return True
    return False


def test_a_case_does_not_outlive_its_parent() -> None:
    config = command.load_config([], [*tiny_run.OVERRIDES, "bench.seconds=300"])
    job = {"case": "env", "config": config.model_dump(mode="json")}
    worker = [sys.executable, "-m", "metarl.bench.worker"]
    with subprocess.Popen(
        worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == 1
        assert process.stdout is not None
        assert process.stdout.read() == ""


# --- In this process --------------------------------------------------------------


def test_a_comparator_that_fails_leaves_the_others(
    measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny_run.OVERRIDES]
    assert command.main(["meta-step"], overrides, as_json=True) == 0
    out, errors = capsys.readouterr()
    shown = [json.loads(line)["case"] for line in out.splitlines()]
    assert shown == ["meta-step", "agent-update", "meta-step-loop"]
    assert "bench: meta-step-plain: its process was killed" in errors
    # Asked for, it is a failure.
    assert command.main(["meta-step-plain"], overrides) == 1


def test_what_was_measured_outlives_a_case_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_apart(name: str, config: object) -> dict[str, object]:
        if name in ("meta-step", "meta-step-plain", "meta-step-loop", "train-step"):
            raise UserError("update_rule.kind=ppo: nothing to train")
        return dict.fromkeys(KEYS, 1.0) | {"case": name}

    monkeypatch.setattr(command, "measure_apart", measure_apart)
    assert command.main([], [*tiny_run.OVERRIDES], as_json=True) == 0
    out, errors = capsys.readouterr()
    shown = [json.loads(line)["case"] for line in out.splitlines()]
    assert shown[-2:] == ["agent-update", "agent-update-loop"]
    assert "bench: train-step left out: update_rule.kind=ppo: nothing" in errors
    with pytest.raises(UserError, match=r"^update_rule\.kind=ppo"):
        command.main(["meta-step"], [*tiny_run.OVERRIDES])


def test_without_words_all_cases_are_measured_on_catch(measured: list[str]) -> None:
    config = command.load_config([], [])
    assert config.environment.suite == "catch_5x5"
    assert command.main([], [*tiny_run.OVERRIDES], as_json=True) == 0
    assert measured[:3] == ["env", "env-pool", "act"]
    assert len(measured) == 10


def test_the_suite_by_default_gives_way_to_games() -> None:
    config = command.load_config([], ["environment.games=[Pong-v5]"])
    assert (config.environment.suite, config.environment.games) == (None, ("Pong-v5",))


def test_the_settings_are_those_of_the_games_family() -> None:
    overrides = [
        *tiny_run.OVERRIDES,
        "families.catch={agent: {optimizer: {learning_rate: 0.5}}, "
        "environment: {num_envs: 3}, population: {rollout_length: 7, chunk: 2}, "
        "meta: {value_function: {discount: 0.5}}}",
        "families.cartpole={environment: {num_envs: 9}}",
    ]
    config = command.load_config([], overrides)
    (stack,) = experiments.assemble(config).stacks
    # What the cases read is what a run would have, and does not change once more.
    assert config.environment == stack.environment
    assert config.population == stack.population
    assert (config.environment.num_envs, config.environment.suite) == (3, "catch_5x5")
    assert (config.population.rollout_length, config.population.chunk) == (7, 2)
    assert config.agent.optimizer.learning_rate == 0.5
    assert config.meta.value_function.discount == 0.5
    assert config.bench == BenchOptions()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["environment.games=[Catch, CartPole]", "families.cartpole.agent={}"],
            "families.cartpole: what is measured has the settings of one family, and "
            "environment has games of catch, cartpole (allowed: those of one)",
        ),
        (
            ["environment.games=[Catch, CartPole]", "families.atari.agent={}"],
            "environment: games that share a program need observations of one shape, "
            "but Catch-v0 and CartPole-v1 have [10, 5] and [4]",
        ),
        (["families.cahtc.agent={}"], "families.cahtc: unknown family; did you mean"),
        (
            ["families.catch.environment.num_envs=0"],
            "families.catch.environment.num_envs=0: must be greater than 0",
        ),
    ],
)
def test_games_of_several_families_are_not_measured_together(
    overrides: list[str], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        command.load_config([], overrides)
    assert str(refused.value).startswith(line)


def test_a_warm_cache_needs_a_cache() -> None:
    assert command.load_config([], [], warm_cache=True).bench.warm_cache
    assert not command.load_config([], []).bench.warm_cache
    with pytest.raises(UserError, match=r"bench\.warm_cache=true: there is no cache"):
        command.load_config([], ["runtime.compilation_cache=false"], warm_cache=True)
