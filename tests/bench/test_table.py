"""The table: aligned, with the ratios that give a figure its meaning."""

from __future__ import annotations

from metarl.bench import table
from metarl.bench.measure import Record


def record(case: str, step: float, **facts: float | str | bool) -> Record:
    return {
        "case": case,
        "step_median_s": step,
        "step_p10_s": step,
        "step_p90_s": step,
        "compile_s": 0.0,
        "env_steps_per_s": 1000.0,
        "peak_rss_bytes": 100 * 2**20,
        **facts,
    }


def words(line: str) -> str:
    return " ".join(line.split())


COMPILED = {
    "compile_s": 8.0,
    "trace_s": 2.0,
    "xla_s": 6.0,
    "warm_cache": False,
    "programs_from_cache": 0,
    "backend": "cpu",
    "device": "cpu",
    "cpus": 2,
    "jax": "0.10.2",
}


def test_comparators_stand_relative_to_the_case_asked_for() -> None:
    records = [
        record("meta-step", 2.0, inner_updates=4, **COMPILED),
        record("agent-update", 0.125, **COMPILED),
        record("meta-step-plain", 3.0, **COMPILED) | {"peak_rss_bytes": 250 * 2**20},
    ]
    lines = table.lines(records, ["meta-step"])
    assert words(lines[0]) == (
        "case step p10 p90 trace compile env steps/s peak RSS time memory"
    )
    assert lines[1].split()[-2:] == ["-", "-"]
    assert words(lines[2]) == (
        "agent-update 125 ms 125 ms 125 ms 2 s 6 s 1,000 100 MiB 0.06x 1.00x"
    )
    assert lines[3].split()[-2:] == ["1.50x", "2.50x"]
    # Four updates of an eighth of a second make half a second.
    assert "meta-step / (4 x agent-update) = 4.00" in lines
    assert "compiled cold: no cache of compiled programs was used" in lines


def test_replayed_trajectories_are_counted() -> None:
    sizes = {
        "agents": 1,
        "parameters": 10,
        "meta_parameters": 2,
        "rollout_length": 5,
        "num_envs": 4,
        "chunk": 1,
        "games": "Catch-v0",
    }
    for trajectories, said in ((4, "T=5 B=4 chunk"), (40, "T=5 B=40 (4 new) chunk")):
        facts = {**sizes, "trajectories": trajectories}
        records = [record("agent-update", 0.1, **facts, **COMPILED)]
        assert said in "\n".join(table.lines(records, ["agent-update"]))


def test_acting_is_compared_with_the_sum_of_its_parts() -> None:
    records = [record("act", 0.003), record("env", 0.0005), record("forward", 0.0015)]
    assert "act / (env + forward) = 1.50" in table.lines(records, ["act"])
    # One of them failed.
    assert not any("forward" in line for line in table.lines(records[:2], ["act"])[2:])


def test_a_train_step_is_compared_with_its_meta_step() -> None:
    records = [record("train-step", 5.0), record("meta-step", 4.0, inner_updates=2)]
    assert "train-step / meta-step = 1.25" in table.lines(records, ["train-step"])


def test_what_came_from_the_cache_and_device_memory_are_told() -> None:
    warm = COMPILED | {"warm_cache": True, "programs_from_cache": 3}
    records = [record("forward", 1e-6, device_memory_bytes=2**21, **warm)]
    lines = table.lines(records, ["forward"])
    assert lines[0].split()[-3:] == ["peak", "RSS", "device"]
    assert lines[1].split()[-2:] == ["2", "MiB"]
    assert any(line.endswith("compiled ones: 3") for line in lines)


def test_durations_have_three_digits_and_a_unit() -> None:
    shown = [table.seconds(x) for x in (0.0, 12.34567, 0.0123456, 7.6543e-5)]
    assert shown == ["0", "12.3 s", "12.3 ms", "76.5 us"]
