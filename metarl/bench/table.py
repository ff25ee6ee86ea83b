"""What a person sees of the records: a table, and the ratios that matter.

Pure text; must not import jax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metarl.bench.measure import Record
from metarl.bench.plan import CASES

MIB = 2**20
HEAD = (
    "case",
    "step",
    "p10",
    "p90",
    "trace",
    "compile",
    "env steps/s",
    "peak RSS",
    "device",
    "time",
    "memory",
)


def lines(records: Sequence[Record], asked: Sequence[str]) -> list[str]:
    """Return the table, and under it the ratios.

    Args:
      records: of all cases that were measured.
      asked: the cases that the others are beside.
    """
    by_name = {str(record["case"]): record for record in records}
    rows: list[tuple[str, ...]] = [HEAD]
    for record in records:
        rows.append(_row(record, _beside(record, by_name, asked)))
    shown = [i for i in range(len(HEAD)) if any(row[i] != "-" for row in rows[1:])]
    table = _align([[row[i] for i in shown] for row in rows])
    ratios = [line for name in asked for line in _ratios(by_name, name)]
    return [*table, *([""] if ratios else []), *ratios, "", *_notes(by_name)]


def _beside(
    record: Record, by_name: Mapping[str, Record], asked: Sequence[str]
) -> Record | None:
    """Return the record of the asked case that this one is to be compared with."""
    for name in asked:
        if name in by_name and record["case"] in CASES[name].comparators:
            return by_name[name]
    return None


def _row(record: Record, beside: Record | None) -> tuple[str, ...]:
    def relative(key: str) -> str:
        if beside is None:
            return "-"
        return f"{_number(record, key) / _number(beside, key):.2f}x"

    return (
        str(record["case"]),
        *(
            seconds(_number(record, f"step_{key}_s"))
            for key in ("median", "p10", "p90")
        ),
        seconds(_number(record, "trace_s")) if "trace_s" in record else "-",
        _compiling(record),
        f"{_number(record, 'env_steps_per_s'):,.0f}",
        _mebibytes(record, "peak_rss_bytes"),
        _mebibytes(record, "device_memory_bytes"),
        relative("step_median_s"),
        relative("peak_rss_bytes"),
    )


def _compiling(record: Record) -> str:
    key = "xla_s" if "xla_s" in record else "compile_s"
    return seconds(_number(record, key)) if _number(record, key) > 0 else "-"


def _ratios(by_name: Mapping[str, Record], name: str) -> list[str]:
    """Return what a case costs by the measures that are meant for it."""
    step = {other: _number(r, "step_median_s") for other, r in by_name.items()}
    if name == "act" and {"act", "env", "forward"} <= step.keys():
        ratio = step["act"] / (step["env"] + step["forward"])
        return [f"act / (env + forward) = {ratio:.2f}"]
    if name == "meta-step" and {"meta-step", "agent-update"} <= step.keys():
        updates = _number(by_name[name], "inner_updates")
        ratio = step["meta-step"] / (updates * step["agent-update"])
        return [f"meta-step / ({updates:.0f} x agent-update) = {ratio:.2f}"]
    if name == "train-step" and {"train-step", "meta-step"} <= step.keys():
        ratio = step["train-step"] / step["meta-step"]
        return [f"train-step / meta-step = {ratio:.2f}"]
    return []


def _notes(by_name: Mapping[str, Record]) -> list[str]:
    """Return what the figures depend on, and what the columns are."""
    notes = []
    compiled = [record for record in by_name.values() if "warm_cache" in record]
    facts = next((r for r in compiled if "parameters" in r), None)
    if facts is not None:
        notes.append(
            f"agents={facts['agents']} of {_number(facts, 'parameters'):,.0f} "
            f"parameters, rule of {_number(facts, 'meta_parameters'):,.0f}; "
            f"T={facts['rollout_length']} B={_batch(facts)} "
            f"chunk={facts['chunk']} games={facts['games']}"
        )
    if compiled:
        first = compiled[0]
        notes.append(
            f"{first['device']} ({first['backend']}), {first['cpus']} CPU cores, "
            f"jax {first['jax']}"
        )
        hits = sum(int(_number(record, "programs_from_cache")) for record in compiled)
        if not first["warm_cache"]:
            notes.append("compiled cold: no cache of compiled programs was used")
        elif hits:
            notes.append(f"programs read from the cache of compiled ones: {hits}")
        else:
            notes.append(
                "compiled cold: the cache had none of these programs; now it has, so "
                "run this again for a second start"
            )
    notes.append(
        "each case in a process of its own; step: median; compile: without trace where "
        "that stands beside it; time, memory: relative to the case asked for"
    )
    return notes


def _batch(facts: Record) -> str:
    """Return how many trajectories an update learns from, and how many are new."""
    new, whole = facts["num_envs"], facts.get("trajectories")
    return f"{new}" if whole in (None, new) else f"{whole} ({new} new)"


def seconds(value: float) -> str:
    """Return a duration with three digits and its unit."""
    if value == 0:
        return "0"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _mebibytes(record: Record, key: str) -> str:
    return f"{_number(record, key) / MIB:,.0f} MiB" if key in record else "-"


def _number(record: Record, key: str) -> float:
    value = record[key]
    assert isinstance(value, int | float)
    return float(value)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
