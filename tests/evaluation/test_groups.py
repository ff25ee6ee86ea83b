"""Groups of peers in an evaluation: seeds, scores, files, what stays as it was."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl.config import (
    ActorCriticConfig,
    DeepMutualLearningConfig,
    PolicyGradientConfig,
)
from metarl.envs.pool import Episodes
from metarl.errors import UserError
from metarl.evaluation import command, evaluate, memory, results
from metarl.evaluation.cell_records import (
    CurveRow,
    PeerRecord,
    make_result,
)
from metarl.evaluation.cell_run import CellRun
from metarl.evaluation.cells import plan, require_an_update
from metarl.evaluation.jobs import Jobs
from metarl.evaluation.mixing import require_one_of_a_name
from metarl.evaluation.recording import Recording
from metarl.evaluation.runner import BatchRun
from metarl.evaluation.summary import summary
from metarl.evaluation.videos import video_name
from metarl.rule_files import LoadedRule, new_manifest
from metarl.rules import make_rule
from metarl.rules.policy_gradient import PolicyGradient

TINY = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=300",
    "curve_points=3",
]
REPLAY = ["replay.capacity=24", "replay.ratio=2"]
PAIR = "group_size=2"


def small_rule() -> LoadedRule:
    config = ActorCriticConfig(num_bins=5, max_abs_value=2.0)
    return LoadedRule(make_rule(config), {}, new_manifest(config), "small")


def cells_of(*overrides: str):
    return plan([small_rule()], overrides=[*TINY, "seeds=[1]", *overrides])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finished(*returns: float) -> Episodes:
    return Episodes(np.array(returns, np.float64), np.full(len(returns), 4))


def test_a_rule_for_peers_warns_where_there_are_none(capsys):
    base = ActorCriticConfig(num_bins=5, max_abs_value=2.0)
    config = DeepMutualLearningConfig(base=base)
    mutual = LoadedRule(make_rule(config), {}, new_manifest(config), "pulled")
    for size, lines in ((1, 1), (2, 0)):
        given = [*TINY, "seeds=[1, 2]", f"group_size={size}"]
        command._plan([small_rule(), mutual], [], given, Jobs())
        said = capsys.readouterr().err
        assert said.count("\n") == lines
        assert ("warning: pulled is for peers" in said) == (lines == 1)


# --- Scores -----------------------------------------------------------------------


def test_a_group_scores_the_mean_of_its_peers_and_counts_all_their_steps():
    given = ["env_steps=20", "curve_points=2", "final_score.episodes=2", PAIR]
    run = CellRun(cells_of(*given)[0])
    # The mean is over peers, not over episodes.
    run.record(
        env_steps=10,
        agent_updates=1,
        episodes=[finished(1.0, 1.0, 1.0), finished(4.0)],
    )
    assert run.curve == [CurveRow(10, 1, 4, 2.5)]
    run.record(env_steps=10, agent_updates=2, episodes=[finished(3.0), finished()])
    assert run.curve[1] == CurveRow(20, 2, 1, 3.0)
    assert run.peers == [
        PeerRecord(2.0, (CurveRow(10, 1, 3, 1.0), CurveRow(20, 2, 1, 3.0))),
        PeerRecord(4.0, (CurveRow(10, 1, 1, 4.0), CurveRow(20, 2, 0, None))),
    ]
    result = run.result
    assert (result.mean_return, result.best_return, result.worst_return) == (3, 4, 2)
    assert (result.group_size, result.env_steps, result.episodes) == (2, 20, 5)
    assert result.scored_episodes == 3


def test_a_group_with_a_peer_without_a_return_has_none():
    run = CellRun(cells_of("env_steps=10", "curve_points=1", PAIR)[0])
    run.record(env_steps=10, agent_updates=1, episodes=[finished(1.0), finished()])
    result = run.result
    assert (result.mean_return, result.scored_episodes) == (None, 0)
    assert (result.best_return, result.worst_return) == (1.0, 1.0)
    run = CellRun(cells_of("env_steps=10", "curve_points=1", PAIR)[0])
    odd = [finished(1.0), finished(np.nan)]
    run.record(env_steps=10, agent_updates=1, episodes=odd)
    assert (run.result.mean_return, run.curve[0].mean_return) == (None, None)


def test_a_single_agent_is_the_best_and_the_worst_of_its_group():
    run = CellRun(cells_of("env_steps=10", "curve_points=1")[0])
    run.record(env_steps=10, agent_updates=1, episodes=[finished(1.0, 2.0)])
    result = run.result
    assert (result.mean_return, result.best_return, result.worst_return) == (1.5,) * 3
    assert run.peers == []


# --- Names and settings -----------------------------------------------------------


def test_cells_of_another_group_size_have_another_name(tmp_path):
    (one,), (two,) = cells_of(), cells_of(PAIR)
    assert one.name == "small__Catch-v0__seed1"
    assert two.name == "small__Catch-v0__group2__seed1"
    assert one.identity()["group_size"] == 1
    assert {**two.identity(), "group_size": 1} == one.identity()
    assert one.base_seed == two.base_seed
    done = make_result(one, env_steps=300, episodes=1, last_returns=[1.0])
    results.write_cell(tmp_path, one, done, [], {})
    assert not results.is_finished(tmp_path, two)
    # One folder may hold both, but not two budgets of either.
    require_one_of_a_name(tmp_path, [two])
    with pytest.raises(UserError, match="env_steps = 300, not 400"):
        require_one_of_a_name(tmp_path, cells_of("env_steps=400", "seeds=[2]"))
    require_one_of_a_name(tmp_path, cells_of("env_steps=400", PAIR))


def test_a_file_from_before_there_were_groups_goes_on_to_count(tmp_path):
    (one,) = cells_of()
    done = make_result(one, env_steps=300, episodes=1, last_returns=[1.0])
    results.write_cell(tmp_path, one, done, [], {})
    path = results.cell_path(tmp_path, one)
    tree = json.loads(path.read_text())
    assert "peers" not in tree
    for name in ("best_return", "worst_return"):
        del tree["result"][name]
    path.write_text(json.dumps(tree))
    assert results.is_finished(tmp_path, one)
    (record,) = results.read_cells(tmp_path)
    assert (record.result.best_return, record.peers) == (1.0, ())


def test_a_budget_must_reach_every_peers_first_update():
    given = [*REPLAY, "env_steps=60"]  # 8 trajectories of 6 steps
    require_an_update(cells_of(*given)[0])
    with pytest.raises(UserError, match=r"waits for \(96: .* of each of 2 peers\)"):
        require_an_update(cells_of(*given, PAIR)[0])
    with pytest.raises(UserError, match="group_size"):
        cells_of("group_size=0")


def test_memory_is_that_of_all_peers():
    one, two = (
        memory.estimate(cells_of(*REPLAY, x)[0]) for x in ("group_size=1", PAIR)
    )
    assert two.cell_bytes == 2 * one.cell_bytes
    assert two.update_bytes == 2 * one.update_bytes


def test_a_video_names_its_group_and_peer():
    (one,), (two,) = cells_of(), cells_of(PAIR)
    recording = Recording(3.0, 10, 10, is_cut=False)
    names = [video_name(cell, "final", recording) for cell in (one, two)]
    assert names == [
        "Catch-v0__small__seed1__final__return3.mp4",
        "Catch-v0__small__group2__seed1__peer1__final__return3.mp4",
    ]
    assert "peer" not in video_name(two, "random", recording)


# --- Learning ---------------------------------------------------------------------


@pytest.mark.parametrize("replay", [[], REPLAY])
def test_a_peer_that_nobody_teaches_is_the_agent_of_its_seeds(replay):
    """The first peer of two is the single agent, and the second is another one."""
    alone, pair = (BatchRun(cells_of(*replay, x)) for x in ("group_size=1", PAIR))
    for batch in (alone, pair):
        batch._actor.start()
        for _ in range(4):
            batch._record(batch._iterate(), lambda *_: None, lambda *_: None)
        batch._actor.close()
    assert pair._updates == alone._updates > 2
    assert pair.num_parameters == alone.num_parameters
    single, first, second = (
        jax.device_get(x.params)
        for x in (alone.agents_of(0), pair.agents_of(0), pair.agents_of(0, peer=1))
    )
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.any(a != b)
        if a.ndim == 2:  # weights; biases are born alike
            assert np.abs(a - b).max() > 1e-2
    episodes = [batch.runs[0].episodes for batch in (alone, pair)]
    assert episodes[1] > 1.5 * episodes[0]
    # Its age counts everybody's steps.
    both = int(pair.agents_of(0).env_steps)
    assert both == pair.runs[0].env_steps > 1.5 * alone.runs[0].env_steps


def test_groups_are_trained_stored_and_skipped(tmp_path, monkeypatch):
    def run(*overrides: str):
        given = [*TINY, "seeds=[1, 2]", f"results_dir={tmp_path}", *overrides]
        return evaluate([small_rule()], overrides=given)

    singles, pairs = run(), run(PAIR)
    assert [row.group_size for row in (*singles, *pairs)] == [1, 1, 2, 2]
    for row in pairs:
        assert row.env_steps < 300 + 2 * 24
        assert row.worst_return <= row.mean_return <= row.best_return
        assert row.mean_return == (row.worst_return + row.best_return) / 2
    assert len(list((tmp_path / "cells").iterdir())) == 4
    records = results.read_cells(tmp_path)
    assert [len(record.peers) for record in records] == [0, 0, 2, 2]
    for record in records[2:]:
        steps = [row.env_steps for row in record.curve]
        for peer in record.peers:
            assert [row.env_steps for row in peer.curve] == steps
        episodes = sum(row.episodes for p in record.peers for row in p.curve)
        assert episodes == record.result.episodes
        assert record.peers[0] != record.peers[1]
    points = rows_of(tmp_path / "curves.csv")
    assert len(points) == 2 * 3 + 2 * 3 * 3
    assert {row["peer"] for row in points if row["group_size"] == "1"} == {""}
    assert {row["peer"] for row in points if row["group_size"] == "2"} == {"", "1", "2"}
    name = "small__Catch-v0__group2__seed1"
    tracked = (tmp_path / "tracking" / name / "metrics.jsonl").read_text()
    last = json.loads(tracked.splitlines()[-1])
    of_peers = [last[f"peers/{k}/episodic_return"] for k in (1, 2)]
    assert last["charts/episodic_return"] == pytest.approx(np.mean(of_peers))
    agreed = records[2].agreement
    assert [x.env_steps for x in agreed] == [x.env_steps for x in records[2].curve]
    for name in ("greedy_agreement", "js_divergence"):
        assert last[f"peers/{name}"] == getattr(agreed[-1], name)
    assert [len(record.agreement) for record in records] == [0, 0, 3, 3]
    assert [row[2] for row in summary([*singles, *pairs])[1:]] == [
        "small",
        "small (groups of 2)",
    ]

    def never(self: BatchRun, *_: object, **__: object) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(BatchRun, "run", never)
    assert run(PAIR) == pairs


def test_peers_that_teach_each_other_learn_beside_each_other(tmp_path):
    given = [*TINY, "seeds=[1]", f"results_dir={tmp_path}", PAIR]
    (result,) = evaluate(["policy_gradient+deep_mutual_learning"], overrides=given)
    assert result.group_size == 2
    (path,) = (tmp_path / "tracking").rglob("metrics.jsonl")
    rows = path.read_text().splitlines()
    assert [json.loads(row)["losses/peers_present"] for row in rows] == [1.0] * 3


class FailingRule(PolicyGradient):
    """Its loss is not finite where an even number of first logits is positive."""

    def loss(self, outputs, peers, targets, transitions):
        loss, metrics = super().loss(outputs, peers, targets, transitions)
        fails = jnp.sum(outputs["logits"][0, 0] > 0) % 2 == 0
        return jnp.where(fails, jnp.nan, loss), metrics


def test_a_peer_that_diverges_is_told_and_stored(tmp_path, capsys):
    config = PolicyGradientConfig()
    rule = LoadedRule(FailingRule(config), {}, new_manifest(config), "small")
    given = [*TINY, "seeds=[1]", f"results_dir={tmp_path}", "group_size=3"]
    evaluate([rule], overrides=given)
    path = tmp_path / "cells" / "small__Catch-v0__group3__seed1.json"
    about = json.loads(path.read_text())["about"]
    failed = about["failed_peers"]
    assert 0 < len(failed) <= 3
    lines = [x for x in capsys.readouterr().out.splitlines() if "warning" in x]
    assert lines == [
        f"warning: small__Catch-v0__group3__seed1: the loss of peer {peer} is not "
        f"finite at {at} env steps; it may learn no more, and the others learn "
        "without it while it is so"
        for peer, at in sorted(failed.items(), key=lambda x: x[1])
    ]
    assert about["diverged_at_env_steps"] == min(failed.values())
