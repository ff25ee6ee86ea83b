"""Which parameters act for which rollout, and that learning may wait meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from metarl.config import MetaConfig
from metarl.rollout.ahead import MAX_AHEAD, RolloutQueue

LIMIT_S = 60
"""Longer than anything here takes; reached only where something is wrong."""


class Recorder:
    """In the actor's place: a rollout is what it was asked for."""

    def __init__(self) -> None:
        self.begun: list[tuple[Any, int, Any]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.interrupted = False
        self.newest = "nothing acted"
        self._condition = threading.Condition()

    def collect(self, agents: Any, length: int, key: Any) -> tuple[Any, int, Any]:
        with self._condition:
            self.begun.append((agents, length, key))
            self._condition.notify_all()
        assert self.may_go_on.wait(LIMIT_S)
        if self.interrupted:
            raise RuntimeError("interrupted")
        return agents, length, key

    def state(self) -> str:
        return self.newest

    drain_episodes = state

    def interrupt(self) -> None:
        self.interrupted = True
        self.may_go_on.set()

    def wait_until_begun(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.begun) >= count, LIMIT_S)


def queue_of(actor: Recorder, acting: str, *, in_thread: bool = True) -> RolloutQueue:
    """Return a queue of meta-steps with three updates."""
    meta = MetaConfig(acting=acting, inner_updates=3, validation_rollouts=2)
    return RolloutQueue(actor, meta, rollout_length=5, in_thread=in_thread)


def play(actor: Recorder, acting: str, *, in_thread: bool) -> list[Any]:
    """Return the rollouts of a meta-step of three updates, of agents 0 to 3."""
    queue = queue_of(actor, acting, in_thread=in_thread)
    acted = queue.begin(0, "abcd")
    rollouts = []
    for update in (1, 2, 3):
        rollouts.append(acted.take())
        acted.updated(update)
    rollouts.append(acted.take())
    queue.close()
    return rollouts


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("acting", "agents"),
    [("current", [0, 1, 2, 3]), ("lagged", [0, 0, 1, 2]), ("initial", [0, 0, 0, 0])],
)
def test_the_lag_is_fixed(acting: str, agents: list[int], *, in_thread: bool) -> None:
    actor = Recorder()
    expected = list(zip(agents, [5, 5, 5, 10], "abcd", strict=True))
    assert play(actor, acting, in_thread=in_thread) == expected
    assert actor.begun == expected


@pytest.mark.parametrize("acting", ["lagged", "initial"])
def test_acts_while_the_learner_waits(acting: str) -> None:
    actor = Recorder()
    queue = queue_of(actor, acting)
    acted = queue.begin(0, "abcd")
    for update in (1, 2, 3):
        acted.take()
        # The learner: it waits for its device until the next rollout is acted.
        actor.wait_until_begun(update + 1)
        acted.updated(update)
    acted.take()
    queue.close()


def test_without_a_thread_nothing_is_acted_before_it_is_asked_for() -> None:
    actor = Recorder()
    queue = queue_of(actor, "initial", in_thread=False)
    acted = queue.begin(0, "abcd")
    for update in (1, 2, 3):
        assert len(actor.begun) == update - 1
        acted.take()
        acted.updated(update)


def test_no_more_than_two_rollouts_wait() -> None:
    actor = Recorder()
    queue = queue_of(actor, "initial")
    acted = queue.begin(0, "abcd")
    actor.wait_until_begun(MAX_AHEAD)
    assert len(acted._pending) == MAX_AHEAD
    assert len(actor.begun) == MAX_AHEAD
    acted.take()
    actor.wait_until_begun(MAX_AHEAD + 1)
    queue.close()


@pytest.mark.parametrize("acting", ["current", "lagged", "initial"])
def test_the_next_meta_step_begins_while_the_meta_gradient_waits(acting: str) -> None:
    actor = Recorder()
    queue = queue_of(actor, acting)
    acted = queue.begin(0, "abcd")
    for update in (1, 2, 3):
        acted.take()
        acted.updated(update)
    acted.take()
    agents = object()
    actor.newest = "after one meta-step"
    queue.begin_ahead(agents, "efgh", drain=True)
    # The meta-gradient: it waits for its device until somebody has acted.
    actor.wait_until_begun(5)
    assert actor.begun[4] == (agents, 5, "e")
    actor.newest = "after acting ahead"
    assert queue.pool_states() == queue.drain_episodes() == "after one meta-step"
    assert queue.begin(agents, "efgh").take() == (agents, 5, "e")
    queue.close()


def test_closing_breaks_off_and_errors_reach_who_waits() -> None:
    actor = Recorder()
    actor.may_go_on.clear()
    queue = queue_of(actor, "current")
    wait = queue.request(0, 5, "a")
    actor.wait_until_begun(1)
    queue.close()
    with pytest.raises(RuntimeError, match="interrupted"):
        wait()
