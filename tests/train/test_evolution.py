"""Evolution strategies in a run: who plays, what pairs share, lives, stops."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from metarl import experiment as experiments
from metarl import train
from metarl.bench import parts as bench_parts
from metarl.config import BenchConfig, TrainConfig
from metarl.errors import UserError
from metarl.evolution_training import EvolutionTraining
from metarl.meta_log import MetaLog, announcement
from metarl.meta_training import MetaTraining
from metarl.run_folder import RunFolder
from metarl.tried_rules import TriedRules, unroll_key

UNROLL_STEPS = 4 * 3 * 5
"""That an agent may take in an unroll: 4 environments, 3 rollouts of 5 steps."""


def config(folder: Path, *overrides: str, estimator: str = "es") -> TrainConfig:
    return tiny_run.config(
        folder,
        tiny_run.SCALED,
        # Far enough for actions to differ between the rules of a pair.
        "agent.optimizer.learning_rate=0.3",
        f"meta.estimator={estimator}",
        "meta.evolution={pairs: 3, sigma: 0.5}",
        "population.lifetime_env_steps=100",
        *overrides,
    )


def of_rules(tried: TriedRules, tree: object) -> object:
    """Return a tree ``[2 R G, ...]`` as ``[R, 2, G, ...]``."""
    return jax.tree.map(
        lambda x: np.asarray(x).reshape(*tried.shape, *x.shape[1:]), tree
    )


def tried_rules(given: TrainConfig, pairs: range, born: int = 0) -> TriedRules:
    log = MetaLog(experiments.build(given))
    (stack,) = experiments.build(given).stacks
    return TriedRules(stack, given, pairs, born=born, measure=log.measure)


def equal_rules(tried: TriedRules) -> dict[str, jax.Array]:
    count = int(np.prod(tried.shape))
    return jax.device_put(
        {"gain": np.ones(count, np.float32), "bias": np.zeros(count, np.float32)}
    )


@pytest.mark.parametrize("replay", ["0", "0.5"])
def test_both_rules_of_a_pair_meet_the_same_chance_and_pairs_another(
    replay: str, tmp_path: Path
) -> None:
    given = config(tmp_path, f"population.replay={{share: {replay}, capacity: 9}}")
    tried = tried_rules(given, range(3))
    tried.start()
    newborn = of_rules(tried, tried.population.agents.params)
    # By equal rules, all that differs is chance.
    fitness = [
        tried.unroll(equal_rules(tried), unroll_key(jax.random.key(1), n))
        for n in range(3)
    ]
    agents = of_rules(tried, tried.population.agents.params)
    pools = [tree["seed"] for tree in tried.actor.state()]
    seeds = np.array(pools).reshape(tried.shape)
    for leaves in (jax.tree.leaves(newborn), jax.tree.leaves(agents)):
        for x in leaves:
            np.testing.assert_array_equal(x[:, 0], x[:, 1])
        # The last layer's weights: no two pairs or groups were born with the same.
        largest = max(leaves, key=lambda x: x.size)
        flat = largest[:, 0].reshape(6, -1)
        assert len(np.unique(flat, axis=0)) == 6
    np.testing.assert_array_equal(seeds[:, 0], seeds[:, 1])
    assert len(np.unique(seeds[:, 0])) == 6
    for unrolled in fitness:
        np.testing.assert_array_equal(unrolled[:, 0], unrolled[:, 1])
    assert len(np.unique(fitness)) > 3
    tried.close()


def test_other_meta_steps_are_played_by_other_agents_elsewhere(tmp_path: Path) -> None:
    seen = []
    for born in (0, 1):
        tried = tried_rules(config(tmp_path), range(3), born=born)
        tried.start()
        first = np.concatenate([x["seed"][None] for x in tried.actor.state()])
        seen.append((first, jax.tree.leaves(tried.population.agents.params)[-1]))
        tried.close()
    assert not np.intersect1d(seen[0][0], seen[1][0]).size
    assert not np.intersect1d(seen[0][1], seen[1][1]).size


def test_lives_go_on_to_their_end_and_count_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each life another budget: that of pairs whose is short counts no more then.
    given = config(tmp_path, "population.lifetime_env_steps=[40, 100, 160]")
    tried = tried_rules(given, range(3))
    tried.start()
    budgets = tried._lives.budgets.reshape(tried.shape)
    np.testing.assert_array_equal(budgets[:, 0], budgets[:, 1])
    assert len(np.unique(budgets)) > 1
    told, ages = [], []
    real = TriedRules.unroll

    def noting(self: TriedRules, *given: object) -> np.ndarray:
        fitness = real(self, *given)
        told.append(fitness)
        ages.append(self._ages().reshape(self.shape))
        return fitness

    monkeypatch.setattr(TriedRules, "unroll", noting)
    rules, key = equal_rules(tried), jax.random.key(1)
    mean = tried.live(rules, key, only_last=False)
    unrolls = len(told)
    assert ages[-1].max() >= budgets.max() > ages[-2].min()
    for index in np.ndindex(tried.shape):
        lived = 1 + sum(age[index] < budgets[index] for age in ages)
        of_life = [fitness[index] for fitness in told[:lived]]
        assert mean[index] == pytest.approx(np.mean(of_life))
        assert lived <= unrolls
    assert (
        tried.take_env_steps()
        == of_rules(tried, tried.population.agents.env_steps).sum()
    )
    tried.close()
    again = tried_rules(given, range(3))
    again.start()
    last = again.live(rules, key, only_last=True)
    for index in np.ndindex(tried.shape):
        lived = 1 + sum(age[index] < budgets[index] for age in ages)
        assert last[index] == told[lived - 1][index]
    again.close()


def meta_steps(given: TrainConfig, count: int) -> tuple:
    with MetaTraining(given) as training:
        training.start()
        metrics = [jax.device_get(training.meta_step()) for _ in range(count)]
        assert all(np.all(m["grad_norm"] > 0) for m in metrics)
        return training.meta, metrics, training.env_steps


def same(left: object, right: object) -> None:
    for x, y in zip(*map(jax.tree.leaves, (left, right)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_lives_of_one_unroll_are_the_same_for_both_kinds(tmp_path: Path) -> None:
    short = "population.lifetime_env_steps=[1, 2]"
    plain = meta_steps(config(tmp_path, short), 3)
    same(plain, meta_steps(config(tmp_path, short, estimator="pes"), 3))


def test_how_many_pairs_play_at_once_changes_nothing(tmp_path: Path) -> None:
    together = meta_steps(config(tmp_path), 2)
    # Nor does a thread that acts meanwhile, where it may.
    apart = config(
        tmp_path, "meta.evolution.pairs_at_once=1", "population.overlap=always"
    )
    same(together, meta_steps(apart, 2))


def test_agents_live_on_and_take_their_perturbations_with_them(tmp_path: Path) -> None:
    with MetaTraining(config(tmp_path, estimator="pes")) as training:
        training.start()
        (stack,) = training.stacks
        assert isinstance(stack, EvolutionTraining)
        tried = stack._persistent
        assert tried is not None
        # First lives end in turn, and never one of a pair alone.
        ended, before = [], stack.lives.copy()
        for _ in range(5):
            training.meta_step()
            ages = of_rules(tried, tried.population.agents.agent_updates)[..., 0]
            np.testing.assert_array_equal(ages[:, 0], ages[:, 1])
            born = ages[:, 0] == 0
            sums = np.asarray(stack._sums["gain"])
            np.testing.assert_array_equal(sums == 0, born)
            ended.append(born.sum())
            assert stack.lives.sum() == before.sum() + born.sum()
            before = stack.lives.copy()
        assert 0 < ended[0] < 6
        assert sum(ended) > 6
        # All that was acted is counted, but not what EnvPool resets in.
        assert training.env_steps <= 5 * 12 * UNROLL_STEPS
        assert training.env_steps > 5 * 12 * UNROLL_STEPS * 0.6


@pytest.mark.parametrize("estimator", ["es", "pes"])
def test_a_run_ends_and_resuming_changes_nothing(
    estimator: str, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    replay = "population.replay={share: 0.5, capacity: 9}"
    for folder, steps in ((whole, 4), (stopped, 2)):
        given = config(folder, replay, f"meta_steps={steps}", estimator=estimator)
        assert train.main(given) == 0
    longer = tiny_run.resumed(stopped, "meta_steps=4")
    assert train.main(longer, resume=stopped) == 0
    states = []
    for folder in (whole, stopped):
        with train.TrainingRun(tiny_run.resumed(folder), RunFolder(folder)) as run:
            run.begin()
            training = run.training
            assert training.lives.sum() > 6
            assert float(training.distance) > 0
            (stack,) = training.stacks
            state = [training.meta, training.env_steps, stack.lives]
            if stack._persistent is not None:
                tried = stack._persistent
                state += [stack._sums, tried.population, tried._replays.state()]
            states.append(state)
    same(*states)


@pytest.mark.parametrize("estimator", ["es", "pes"])
def test_nothing_is_compiled_after_the_first_meta_step(
    estimator: str, tmp_path: Path
) -> None:
    compiled: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    with MetaTraining(config(tmp_path, estimator=estimator)) as training:
        training.start()
        training.meta_step()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            with tiny_run.no_unasked_transfers():
                rows = [training.row(training.meta_step()) for _ in range(3)]
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        assert compiled == []
        assert training.lives.sum() > 6
        # What is told of agents is of all that were tried.
        assert rows[-1]["meta/fitness"] == -rows[-1]["meta/loss"]
        assert rows[-1]["charts/episodic_length"] == 4
        assert -1 <= rows[-1]["charts/episodic_return"] <= 1
        told = announcement(training.experiment, training.meta.params)
        assert any("rules tried: 6 for each of the agents" in line for line in told)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["meta.window=sliding"],
            ": window=sliding is for meta-gradients through updates",
        ),
        (["meta.remat=false"], ": remat=false is for meta-gradients"),
        (["meta.value_function.learning_rate=1"], ": value_function is for"),
        (["meta.regularizers.y_entropy=1"], ": regularizers is for"),
        (["meta.optimizer.reset_with_lifetime=true"], "an Adam serves many lifetimes"),
        (["meta.evolution.pairs_at_once=2"], "pairs_at_once=2 does not divide pairs=3"),
        (
            ["meta.estimator=pes", "meta.evolution.fitness=final"],
            "evolution.fitness=final is for estimator=es, not pes",
        ),
        (["meta.estimator=mixed"], "evolution is for estimator=es or pes, not mixed"),
    ],
)
def test_what_has_no_effect_is_refused(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        config(tmp_path, *overrides)
    assert "\n" not in str(error.value)


def test_more_pairs_than_seeds_are_refused(tmp_path: Path) -> None:
    given = config(tmp_path, "meta.evolution.pairs=5000")
    said = r"meta.evolution.pairs=5000: of 2 agents .* \(allowed: 1 to 4096\)"
    with pytest.raises(UserError, match=said):
        experiments.build(given)


def test_benchmarks_of_meta_steps_are_refused(tmp_path: Path) -> None:
    given = BenchConfig.model_validate(config(tmp_path).model_dump())
    with pytest.raises(UserError, match=r"meta\.estimator=es: its meta-steps are not"):
        bench_parts.build(given, meta_trains=True)
