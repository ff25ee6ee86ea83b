"""Whether a rule has seen a game: as its manifest says, and as is learned later."""

from __future__ import annotations

import pytest
from stored_cells import cell, store

from metarl.evaluation import results
from metarl.evaluation.amendments import update_statuses
from metarl.evaluation.cell_records import make_result


def test_status_comes_from_the_manifest():
    seen = {"games_seen": ("Pong-v5",), "games_validation": ("Boxing-v5",)}

    def status(game: str, **manifest) -> str:
        return make_result(
            cell(game, **manifest), env_steps=1, episodes=0, last_returns=[]
        ).status

    assert status("Pong-v5", **seen) == "seen"
    assert status("Boxing-v5", **seen) == "validation"
    assert status("Catch-v0", **seen) == "held_out"
    assert status("Catch-v0", **seen, seen_is_complete=False) == "unknown"
    assert status("Pong-v5") == "held_out"


def test_stored_statuses_are_updated_for_the_very_same_rule_alone(tmp_path):
    store(tmp_path, cell("Pong-v5", sha256="abc"))
    store(tmp_path, cell("Catch-v0", sha256="abc"))
    knows = {"games_validation": ("Pong-v5",)}
    other = cell("Pong-v5", sha256="def", **knows).rule
    assert update_statuses(tmp_path, [other]) == []
    now = cell("Catch-v0", sha256="abc", **knows).rule
    name = "actor_critic__Pong-v5__seed1"
    # Somebody else's file, before it in the alphabet, keeps no cell from that.
    (tmp_path / "cells" / "A.json").write_text("{")
    assert update_statuses(tmp_path, [now]) == [(name, "held_out", "validation")]
    (tmp_path / "cells" / "A.json").unlink()
    assert update_statuses(tmp_path, [now]) == []
    statuses = {r.result.game: r.result.status for r in results.read_cells(tmp_path)}
    assert statuses == {"Catch-v0": "held_out", "Pong-v5": "validation"}


KNOWLEDGE = {
    "held_out": {},
    "validation": {"games_validation": ("Pong-v5",)},
    "unknown": {"seen_is_complete": False, "games_validation": ("Pong-v5",)},
    "seen": {"games_seen": ("Pong-v5",)},
}


@pytest.mark.parametrize("stored", KNOWLEDGE)
@pytest.mark.parametrize("now", KNOWLEDGE)
def test_a_stored_status_moves_towards_less_trust_alone(tmp_path, stored, now):
    store(tmp_path, cell("Pong-v5", sha256="abc", **KNOWLEDGE[stored]))
    rule = cell("Pong-v5", sha256="abc", **KNOWLEDGE[now]).rule
    assert rule.status("Pong-v5") == now
    changed = update_statuses(tmp_path, [rule])
    (record,) = results.read_cells(tmp_path)
    order = list(KNOWLEDGE)
    if order.index(now) > order.index(stored):
        assert changed == [("actor_critic__Pong-v5__seed1", stored, now)]
        assert record.result.status == now
    else:
        assert changed == []
        assert record.result.status == stored
