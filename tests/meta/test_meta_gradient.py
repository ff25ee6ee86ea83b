"""The meta-gradient against central finite differences, in float64.

Where the definition stops a gradient, the same computation is differenced with the
stopped quantities held at their values at the base point: `Stops` stands in for
`stop_gradient` in metarl's modules and records, or plays back, every call in program
order. Loops are unrolled in Python for it, since it cannot see through a scan or a
vmap; what is compared is the gradient of the production code.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metarl.config import LPGConfig, LPGCriticConfig
from metarl.meta.inner_loop import InnerLoop, StepLog, Unrolled, Window
from metarl.meta.mixed_mode import MixedMode
from metarl.numerics import AdamState
from metarl.rules.disco import Disco
from metarl.rules.lpg import LPG
from metarl.rules.lpg_critic import LPGCritic
from metarl.types import Params

REAL_STOP, REAL_VMAP = jax.lax.stop_gradient, jax.vmap
STEP_SIZES = (2e-5, 1e-5)
NUM_DIRECTIONS = 24
BOUND = 0.15  # of an entry of the update, so that some are clipped

# Tensors through which only a later update sees the rule: the lifetime network gates
# the update after the one that steps it.
LIFETIME_ONLY = ("['lifetime']", "['trajectory']['meta_input']")


def called_by_metarl() -> bool:
    """Tell whether the caller's caller is a module of metarl (JAX stops too)."""
    return sys._getframe(2).f_globals["__name__"].startswith("metarl.")


@dataclasses.dataclass
class Stops:
    """In place of `stop_gradient`: record every call's value, or play it back."""

    held: list[object] | None = None
    hold: jax.Array | bool = False
    seen: list[object] = dataclasses.field(default_factory=list)
    places: Counter[str] = dataclasses.field(default_factory=Counter)

    def __call__(self, x: object) -> object:
        x = REAL_STOP(x)
        if not called_by_metarl():
            return x
        self.seen.append(x)
        code = sys._getframe(1).f_code
        self.places[code.co_qualname.partition(".<locals>")[0]] += 1
        if self.held is None:
            return x
        held = self.held[len(self.seen) - 1]
        return jax.tree.map(lambda a, b: jnp.where(self.hold, a, b), held, x)


def no_stop(x: object) -> object:
    """In place of `stop_gradient`: the identity, for metarl's modules."""
    return x if called_by_metarl() else REAL_STOP(x)


def looped_vmap(function: Callable, in_axes: object = 0) -> Callable:
    """In place of `vmap`: a Python loop, so that `Stops` sees plain values."""
    if not called_by_metarl():
        return REAL_VMAP(function, in_axes)

    def mapped(*args: object) -> object:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        size = next(
            jax.tree.leaves(arg)[0].shape[axis]
            for arg, axis in zip(args, axes, strict=True)
            if axis is not None and jax.tree.leaves(arg)
        )

        def at(arg: object, axis: int | None, index: int) -> object:
            if axis is None:
                return arg
            return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), arg)

        results = [
            function(*(at(a, axis, i) for a, axis in zip(args, axes, strict=True)))
            for i in range(size)
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *results)

    return mapped


class PythonLoop(InnerLoop):
    """An inner loop whose updates are unrolled in Python, and never rematerialised."""

    def unroll(self, meta_params: Params, window: Window) -> tuple[Unrolled, StepLog]:
        agents, values, logs = window.agents, window.values, []
        for n in range(window.keys.shape[0]):
            rollouts = jax.tree.map(lambda x, n=n: x[n], window.rollouts)
            agents, values, (log, _) = self.step(
                meta_params, agents, values, rollouts, window.keys[n]
            )
            logs.append(log)
        return Unrolled(agents, values, None), tiny.stack(logs)


def frozen_loss(
    loop: InnerLoop, window: Window, meta_params: Params, patch: pytest.MonkeyPatch
) -> tuple[Callable[[Params], jax.Array], Counter[str]]:
    """Return the loss with every stopped value held as it is at ``meta_params``.

    Also returns how often each function stopped one.
    """
    python_loop = PythonLoop(
        loop.agent, loop.value_function, loop.weights, remat=loop.remat
    )

    places: list[Counter[str]] = []

    def run(
        meta_params: Params, held: list[object] | None, hold: jax.Array | bool
    ) -> tuple[jax.Array, list[object]]:
        stops = Stops(held, hold)
        places.append(stops.places)
        with patch.context() as patched:
            patched.setattr(jax.lax, "stop_gradient", stops)
            patched.setattr(jax, "vmap", looped_vmap)
            loss, _ = python_loop.loss(meta_params, window)
        return loss, stops.seen

    shapes = jax.eval_shape(lambda p: run(p, None, False)[1], meta_params)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    compiled = jax.jit(run, compiler_options=tiny.QUICK)
    loss, held = compiled(meta_params, empty, False)
    again, _ = compiled(meta_params, held, True)
    assert float(again) == pytest.approx(float(loss), abs=1e-15)
    return lambda p: compiled(p, held, True)[0], places[-1]


def directions(grads: Params) -> Iterator[tuple[str, Params]]:
    """Yield directions of length 1: random ones of the whole tree, one per tensor.

    A tensor's is random but for leaning towards the gradient, so that its derivative
    is not small by chance.
    """
    rng = np.random.default_rng(0)
    with_paths, structure = jax.tree_util.tree_flatten_with_path(grads)
    leaves = [np.asarray(x) for _, x in with_paths]

    def unit(parts: list[np.ndarray]) -> list[np.ndarray]:
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in parts))
        return [x / norm if norm > 0 else x for x in parts]

    for index in range(NUM_DIRECTIONS):
        parts = unit([rng.normal(size=x.shape) for x in leaves])
        yield f"whole tree {index}", jax.tree.unflatten(structure, parts)
    for index, (path, _) in enumerate(with_paths):
        parts = [np.zeros(x.shape) for x in leaves]
        lean, random = (
            unit([leaves[index]]),
            unit([rng.normal(size=parts[index].shape)]),
        )
        towards = 1 if np.sum(lean[0] * random[0]) >= 0 else -1
        parts[index] = lean[0] + towards * random[0]
        name = jax.tree_util.keystr(path)
        yield name, jax.tree.unflatten(structure, unit(parts))


def check_against_differences(
    loss: Callable[[Params], jax.Array], meta_params: Params, grads: Params
) -> dict[str, float]:
    """Assert that ``grads`` are the differences of ``loss``; return the derivatives."""
    derivatives = {}
    for name, direction in directions(grads):
        products = jax.tree.map(lambda g, d: float(jnp.sum(g * d)), grads, direction)
        derivative = sum(jax.tree.leaves(products))

        def along(h: float, direction: Params = direction) -> float:
            moved = jax.tree.map(lambda p, d: p + h * d, meta_params, direction)
            return float(loss(moved))

        coarse, fine = ((along(h) - along(-h)) / (2 * h) for h in STEP_SIZES)
        allowed = max(1e-6 * abs(derivative), 1e-10)
        assert abs(coarse - fine) <= allowed, f"{name}: a pair straddles a kink"
        assert abs(fine - derivative) <= allowed, (name, fine, derivative)
        derivatives[name] = derivative
    return derivatives


def small(derivatives: dict[str, float], bound: float = 1e-4) -> set[str]:
    """Return the tensors whose derivative is too small to be checked well."""
    return {
        name
        for name, derivative in derivatives.items()
        if name.startswith("[") and abs(derivative) < bound
    }


def compiled_gradient(
    loop: InnerLoop,
) -> Callable[[Params, Window], tuple[Params, Params]]:
    """Return the meta-gradient as a function, and the parameters after the updates."""

    def loss(meta_params: Params, window: Window) -> tuple[jax.Array, Params]:
        value, (agents, _, _) = loop.loss(meta_params, window)
        return value, agents.params

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=tiny.QUICK)


def strong_params(seed: int) -> Params:
    """Return meta-parameters whose every tensor matters to the outer loss."""
    params = tiny.disco_params(seed)
    params["lifetime"] = jax.tree.map(lambda x: 2.5 * x, params["lifetime"])
    for name in ("gate", "meta_input", "policy_target", "y_target", "z_target"):
        params["trajectory"][name] = jax.tree.map(
            lambda x: 2.5 * x, params["trajectory"][name]
        )
    return params


def case(
    *, updates: int, peers: int, remat: bool = True, seed: int = 1, bound: float = 1.0
) -> tuple[InnerLoop, Window]:
    """Return a Disco inner loop with agents in the middle of their lives."""
    agent = tiny.agent_for(Disco(tiny.DISCO), learning_rate=0.2, max_abs_update=bound)
    loop = tiny.inner_loop_for(agent, remat=remat)
    window = tiny.window_for(loop, seed, updates=updates, peers=peers)
    return loop, dataclasses.replace(window, agents=tiny.warm(window.agents, seed))


# What stands in for peers who are absent, in the targets and in the loss, once for all.
STAND_INS = ["fill", "fill"]


def expected_stops(*, updates: int, peers: int) -> Counter[str]:
    """Return where the definition stops a gradient, and how often.

    Differences with stopped values held cannot see a stop too many or too few.
    """
    agent_tensors, value_tensors = 2 * 6, 2 * 2
    per_update = Counter(
        {
            "Disco.targets": 1,  # the next policy
            "Disco.value_estimates": 3,  # own, target's and behaviour's outputs
            "Disco.regularizers": 1,  # the target network's policy
            "_Inputs.of": 3,  # policies as features
            # The largest logit, which cancels: of q twice, y and z twice and y's target
            # as inputs; in five losses; and in one regulariser.
            "_less_largest": 2 + 4 + 1 + 5 + 1,
            "adam_direction": agent_tensors + value_tensors,
            "ValueFunction.advantages": 2,  # the policy, and the values
            "ValueFunction.update": 1,  # the value target
        }
    )
    outer = Counter({"ValueFunction.advantages": 2})
    counts = Counter(
        {
            place: peers * (updates * per_update[place] + outer[place])
            for place in per_update
        }
    )
    return counts + Counter(STAND_INS * updates)


def test_the_meta_gradient_is_the_difference_with_stops_held(
    x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, window = case(updates=3, peers=2, bound=BOUND)
    meta_params = strong_params(0)
    transitions = window.rollouts.transitions
    assert jnp.any(transitions.is_terminal)
    assert jnp.any(transitions.cut)
    assert jnp.any(~transitions.valid)
    gradient = compiled_gradient(loop)
    grads, after = gradient(meta_params, window)
    # Some entries are clipped in every update, and most are not.
    moves = jax.tree.map(lambda a, b: jnp.abs(a - b), window.agents.params, after)
    largest = 3 * loop.agent.optimizer.learning_rate * BOUND
    moves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moves)])
    assert 0.01 < np.mean(moves > (1 - 1e-9) * largest) < 0.5

    loss, places = frozen_loss(loop, window, meta_params, monkeypatch)
    assert places == expected_stops(updates=3, peers=2)
    derivatives = check_against_differences(loss, meta_params, grads)
    assert small(derivatives) == set()

    # What stands in a transition that does not exist reaches nothing, to the bit.
    for seed in range(2):
        poisoned, _ = gradient(meta_params, tiny.poison(window, seed))
        tiny.assert_same_bits(grads, poisoned)

    # Recomputing each update in the backward pass changes nothing but rounding.
    kept, _ = compiled_gradient(dataclasses.replace(loop, remat=False))(
        meta_params, window
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15),
        grads,
        kept,
    )

    # Mixed mode is the same gradient, and lets as little through.
    mixed_mode = jax.jit(MixedMode(loop).of_group, compiler_options=tiny.QUICK)
    mixed, *_ = mixed_mode(meta_params, window)
    check_against_differences(loss, meta_params, mixed)
    poisoned, *_ = mixed_mode(meta_params, tiny.poison(window, 0))
    tiny.assert_same_bits(mixed, poisoned)


SMALL_LSTM = {"prediction_size": 5, "lstm": 4, "embedding_hidden": 3}


@pytest.mark.parametrize(
    ("rule", "stops"),
    [
        # Nothing that the rule sees is stopped: in each update the largest logit of y,
        # as an input and of its target, which cancels.
        (LPG(LPGConfig(**SMALL_LSTM)), {"_less_largest": 2}),
        # What the critic says, and the policy; and the largest logits of the values
        # and of their loss, which cancel too.
        pytest.param(
            LPGCritic(LPGCriticConfig(**SMALL_LSTM, num_bins=7, max_abs_value=3.0)),
            {"_less_largest": 4, "LPGCritic._judge": 1, "LPGCritic._seen": 1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lpg", "lpg_critic"],
)
def test_lpgs_meta_gradient_is_the_difference_with_stops_held(
    rule: LPG, stops: dict[str, int], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = tiny.inner_loop_for(tiny.agent_for(rule, learning_rate=0.2), remat=False)
    window = tiny.window_for(loop, 1, updates=2, peers=1)
    window = dataclasses.replace(window, agents=tiny.warm(window.agents, 1))
    meta_params = jax.tree.map(lambda x: 2 * x, tiny.rule_params(rule, 0))
    loss, places = frozen_loss(loop, window, meta_params, monkeypatch)
    # Beside the rule's own: the optimisers, and the outer objective.
    agent_layers = 1 + len(rule.spec(tiny.NUM_ACTIONS).heads)
    assert places == {
        **{name: 2 * count for name, count in stops.items()},
        **Counter(STAND_INS * 2),
        "adam_direction": 2 * (2 * agent_layers + 2 * 2),
        "ValueFunction.advantages": 2 * 2 + 2,
        "ValueFunction.update": 2,
    }

    grads, _ = compiled_gradient(loop)(meta_params, window)
    derivatives = check_against_differences(loss, meta_params, grads)
    assert small(derivatives) == set()

    # Mixed mode: the same gradient, and nothing from transitions that do not exist.
    mixed_mode = jax.jit(MixedMode(loop).of_group, compiler_options=tiny.QUICK)
    mixed, _, metrics = mixed_mode(meta_params, window)
    tiny.assert_close(mixed, grads)
    poisoned, *_ = mixed_mode(meta_params, tiny.poison(window, 0))
    tiny.assert_same_bits(mixed, poisoned)

    # The regularisers, each times its own weight.
    weights = {"entropy": -0.05, "y_entropy_loss": 0.04, "l2_pi": 0.05, "l2_y": 0.07}
    expected = sum(weight * metrics[name] for name, weight in weights.items())
    assert float(metrics["reg_loss"]) == pytest.approx(float(expected), rel=1e-12)
    assert not {"squared_mean_pi", "target_kl"} & set(metrics)


def test_one_update_does_not_see_the_lifetime_network(
    x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, window = case(updates=1, peers=1, remat=False, seed=2)
    meta_params = strong_params(5)
    grads, _ = compiled_gradient(loop)(meta_params, window)
    loss, places = frozen_loss(loop, window, meta_params, monkeypatch)
    assert places == expected_stops(updates=1, peers=1)
    derivatives = check_against_differences(loss, meta_params, grads)
    # A new agent's lifetime state is zero, so the gate's weights see nothing either.
    expected = {
        name
        for name in derivatives
        if name.startswith(LIFETIME_ONLY) or name == "['trajectory']['gate']['w']"
    }
    assert small(derivatives) == expected
    assert all(derivatives[name] == 0 for name in expected)


def test_without_any_stop_the_meta_gradient_is_the_plain_difference(
    x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sgd(grads: Params, state: AdamState, **_: float) -> tuple[Params, AdamState]:
        return grads, state

    monkeypatch.setattr("metarl.agents.agent.adam_direction", sgd)
    monkeypatch.setattr("metarl.meta.objective.adam_direction", sgd)
    monkeypatch.setattr(jax.lax, "stop_gradient", no_stop)
    loop, window = case(updates=4, peers=1, remat=False, seed=2, bound=100.0)
    meta_params = strong_params(0)
    grads, _ = compiled_gradient(loop)(meta_params, window)
    loss = jax.jit(lambda p: loop.loss(p, window)[0], compiler_options=tiny.QUICK)
    derivatives = check_against_differences(loss, meta_params, grads)
    assert small(derivatives) == set()
