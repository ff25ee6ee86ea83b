"""How far peers agree, of every cell and at every row: read, stored, never felt."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stored_cells import cell, rows_of, store

from metarl.agents.agreement import agreement_of
from metarl.evaluation import results, results_tables
from metarl.evaluation.agreement import UpdatedPeers
from metarl.evaluation.agreement_records import AgreementRow
from metarl.evaluation.cell_records import (
    AgentRecords,
    CurveRow,
    PeerRecord,
)
from metarl.evaluation.cells import plan
from metarl.evaluation.runner import BatchRun
from metarl.rule_files import load_rule

NOTHING = AgreementRow(0, 0, None, None)


def pair_run() -> BatchRun:
    given = [
        "environment.suite=catch_5x5",
        "environment.num_envs=4",
        "rollout_length=6",
        "replay.capacity=24",
        "replay.ratio=2",
        "agent.network.torso.hidden=[8]",
        "env_steps=300",
        "curve_points=6",
        "group_size=2",
        "seeds=[1]",
    ]
    return BatchRun(plan([load_rule("policy_gradient")], overrides=given))


def test_agents_are_the_same_bits_with_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = {}
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(UpdatedPeers, "row", lambda *_, **__: NOTHING)
        batch = runs[name] = pair_run()
        batch.run(lambda *_: None, lambda *_: None)
    one, other = runs["with"].runs[0], runs["without"].runs[0]
    assert other.agreement[0] is NOTHING
    tiny.assert_same_bits(
        *(jax.device_get(batch.peers_of(batch.runs[0])) for batch in runs.values())
    )
    assert one.curve == other.curve
    assert one.peers == other.peers
    # A row of the curve has one from the first update on: it waits for 2 rollouts.
    steps = [row.env_steps for row in one.curve]
    assert one.curve[0].agent_updates == 1
    assert [row.env_steps for row in one.agreement] == steps
    for row in one.agreement:
        assert row.peers_present == 2
        assert 0 <= row.greedy_agreement <= 1
        assert 0 < row.js_divergence < np.log(2)
    assert len({row.js_divergence for row in one.agreement}) > 3


def test_each_cell_of_a_chunk_has_its_own() -> None:
    agent = tiny.agent_for(tiny.Scaled())
    keys = jax.random.split(jax.random.key(3), (2, 2))
    observations = jnp.zeros((1, tiny.OBSERVATION))
    init = jax.vmap(jax.vmap(lambda k: agent.init(k, observations)))
    states = jax.jit(init, compiler_options=tiny.QUICK)(keys)
    rollouts = tiny.rollouts(5, 2, 2)
    # The parameters of the second cell's first peer are not finite.
    params = jax.tree.map(lambda x: x.at[1, 0].set(jnp.nan), states.params)
    states = dataclasses.replace(states, params=params)
    peers = UpdatedPeers(agent, [states], [rollouts], chunk=2)
    found = [peers.row(index, env_steps=60) for index in (0, 1)]
    one = jax.jit(agreement_of, static_argnums=0, compiler_options=tiny.QUICK)
    alone = one(agent, *jax.tree.map(lambda x: x[0], (states, rollouts)))
    assert found[0].greedy_agreement == pytest.approx(float(alone.greedy))
    assert found[0].js_divergence == pytest.approx(float(alone.divergence), rel=1e-5)
    assert (found[0].env_steps, found[0].peers_present) == (60, 2)
    assert found[1] == AgreementRow(60, 1, None, None)


def test_what_is_stored_comes_back_and_is_a_part_of_the_curve(tmp_path) -> None:
    pair, alone = cell("Catch-v0", 1, "group_size=2"), cell("Catch-v0", 1)
    rows = (AgreementRow(50, 1, None, None), AgreementRow(100, 2, 0.75, 0.125))
    peer = PeerRecord(0.5, (CurveRow(50, 2, 1, None), CurveRow(100, 4, 1, 0.5)))
    store(tmp_path, pair, agents=AgentRecords((peer, peer), (), rows))
    store(tmp_path, alone)
    assert results.read_cell(tmp_path, pair).agreement == rows
    assert results.read_cell(tmp_path, alone).agreement == ()
    results_tables.merge_cells(tmp_path)
    found = [
        (row["group_size"], row["peer"], row["greedy_agreement"], row["js_divergence"])
        for row in rows_of(tmp_path / "curves.csv")
    ]
    assert found[:4] == [
        ("1", "", "", ""),
        ("1", "", "", ""),
        ("2", "", "", ""),
        ("2", "", "0.75", "0.125"),
    ]
    assert [row[1:] for row in found[4:]] == [(k, "", "") for k in "1122"]
