from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from contract.rule_cases import make_case, measure

from metarl.evaluation.cells import plan
from metarl.evaluation.runner import BatchRun
from metarl.rule_files import load_rule

RULE = load_rule("random").rule
TINY = [
    "environment.suite=catch_5x5",
    "environment.num_envs=4",
    "rollout_length=6",
    "agent.network.torso.hidden=[8]",
    "env_steps=300",
]


def test_actions_are_uniform_whatever_the_network_says():
    outputs = {"logits": jnp.tile(jnp.array([9.0, 0.0, -9.0]), (4000, 1))}
    clock = make_case(RULE).experience.clock
    actions, logits = RULE.act(outputs, clock, jax.random.key(0))
    np.testing.assert_array_equal(logits, np.zeros((4000, 3)))
    frequencies = np.bincount(actions, minlength=3) / 4000
    np.testing.assert_allclose(frequencies, 1 / 3, atol=0.03)


def test_the_loss_is_zero_and_so_is_its_gradient():
    result = measure(RULE, make_case(RULE))
    assert not np.any(result["loss"])
    assert not np.any(result["gradient"]["logits"])


def test_an_agent_stays_as_it_was_born():
    (cell,) = plan(["random"], overrides=[*TINY, "seeds=[1]"])
    run = BatchRun([cell])
    before = jax.device_get(run.agents_of(0).params)
    run.run(lambda *_: None, lambda *_: None)
    after = run.agents_of(0)
    assert int(after.agent_updates) == run.runs[0].agent_updates > 10
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(after.params))
    # Catch on 5 x 5 pays 1 or -1: a random paddle misses more than it catches.
    assert -1 < run.runs[0].result.mean_return < 0
