"""The convolution equals Haiku's, to the second derivative, and stays small."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metarl.agents import convolution
from metarl.agents.convolution import Conv2D, conv2d, max_pool, resolve_convolution

IMPLEMENTATIONS = ("im2col", "native")
CASES = [
    # batch, height, width, channels, outputs, kernel, stride
    (3, 12, 12, 4, 5, 8, 4),
    (3, 11, 9, 3, 4, 4, 2),  # kernels that do not fit the frame evenly
    (2, 6, 7, 2, 3, 3, 1),
    (2, 7, 8, 2, 3, 3, 2),  # a kernel that is no multiple of the stride
    (2, 5, 6, 2, 3, 1, 2),  # a stride larger than the kernel
    (1, 4, 4, 1, 1, 4, 1),
]


def random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def transformed(module: type, *args: object, **settings: object) -> hk.Transformed:
    return hk.without_apply_rng(
        hk.transform(lambda x: module(*args, name="conv", **settings)(x))
    )


def close(got: object, wanted: object, atol: float = 1e-12) -> None:
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=atol),
        got,
        wanted,
    )


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work off every batch in chunks of one frame."""
    monkeypatch.setattr(convolution, "WHOLE_BATCH_BYTES", 0)
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 10_000)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_haiku_with_its_gradients(implementation, case, padding):
    n, height, width, channels, outputs, kernel, stride = case
    x = random(0, n, height, width, channels)
    theirs = transformed(hk.Conv2D, outputs, kernel, stride=stride, padding=padding)
    ours = transformed(
        Conv2D,
        outputs,
        kernel,
        stride=stride,
        padding=padding,
        implementation=implementation,
    )
    key = jax.random.key(1)
    params = jax.jit(theirs.init)(key, x)
    close(jax.jit(ours.init)(key, x), params)  # names, shapes and initial values
    params["conv"]["b"] = random(2, outputs)

    def results(module: hk.Transformed) -> object:
        def loss(params, x):
            y = module.apply(params, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
            params, x
        )

    close(results(ours), results(theirs))


def curvature(w: jax.Array, x: jax.Array, implementation: str) -> object:
    """Return what a meta-gradient needs: the gradient of a gradient's norm."""

    def loss(w, x):
        y = conv2d(x, w, stride=2, implementation=implementation)
        return jnp.sum(jnp.tanh(y) ** 2)

    def norm(w, x):
        dw, dx = jax.grad(loss, argnums=(0, 1))(w, x)
        return jnp.sum(dw**2) + jnp.sum(jnp.sin(dx))

    reverse = jax.grad(norm, argnums=(0, 1))(w, x)
    forward = jax.jvp(jax.grad(loss), (w, x), (jnp.cos(w), jnp.cos(x)))
    return reverse, forward


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunked", [False, True])
def test_second_derivatives_equal_those_of_the_native_one(chunked, request):
    if chunked:
        request.getfixturevalue("tiny_chunks")
    x, w = random(0, 5, 9, 8, 3), 0.3 * random(1, 4, 4, 3, 4)
    wanted = jax.jit(functools.partial(curvature, implementation="native"))(w, x)
    assert all(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(wanted))
    got = jax.jit(functools.partial(curvature, implementation="im2col"))(w, x)
    close(got, wanted, atol=1e-11)


@pytest.mark.usefixtures("x64")
# 41 kB of patches per frame. 13 frames are filled up to 15.
@pytest.mark.parametrize(("batch", "chunks"), [(1, 1), (6, 2), (13, 3)])
def test_chunks_change_nothing(batch, chunks, monkeypatch):
    x, w = random(0, batch, 12, 12, 4), random(1, 3, 3, 4, 5)

    def run(limit: int) -> tuple[str, object]:
        monkeypatch.setattr(convolution, "WHOLE_BATCH_BYTES", limit)
        monkeypatch.setattr(convolution, "CHUNK_BYTES", 200_000)

        def loss(x, w):
            y = conv2d(x, w, implementation="im2col")
            return jnp.sum(jnp.sin(y)), y

        function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return str(jax.make_jaxpr(function)(x, w)), jax.jit(function)(x, w)

    program, got = run(limit=0)
    assert f"length={chunks}\n" in program
    program, wanted = run(limit=2**30)
    assert "scan" not in program
    close(got, wanted)


@pytest.mark.usefixtures("x64", "tiny_chunks")
def test_agents_side_by_side_equal_one_after_another():
    x, w = random(0, 2, 4, 12, 12, 4), random(1, 2, 3, 3, 4, 5)

    def gradient(x, w):
        return jax.grad(
            lambda w: jnp.sum(jnp.sin(conv2d(x, w, implementation="im2col")))
        )(w)

    one_by_one = jax.jit(lambda x, w: jnp.stack([gradient(x[i], w[i]) for i in (0, 1)]))
    close(jax.jit(jax.vmap(gradient))(x, w), one_by_one(x, w))


def peak_bytes(implementation: str, *, gradient: bool) -> int:
    """Return the memory that a 3 x 3 layer takes for a batch of 256 frames."""
    x = jax.ShapeDtypeStruct((256, 42, 42, 16), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)

    def forward(x, w):
        return conv2d(x, w, implementation=implementation)

    def backward(x, w):
        return jax.grad(lambda *xs: jnp.sum(forward(*xs) ** 2), argnums=(0, 1))(x, w)

    program = jax.jit(backward if gradient else forward).lower(x, w).compile()
    memory = program.memory_analysis()
    return (
        memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        + memory.argument_size_in_bytes
    )


@pytest.mark.parametrize("gradient", [False, True])
def test_a_big_batch_takes_at_most_twice_the_native_memory(gradient):
    im2col, native = (peak_bytes(i, gradient=gradient) for i in IMPLEMENTATIONS)
    # The inputs alone are 28 MB, all their patches 254 MB.
    assert native > 56e6
    assert im2col <= 2 * native


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 9, 8, 3), (2, 6, 7, 2), (1, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_equals_haiku_with_its_gradients(implementation, shape, ties):
    # Few different values, as in the flat background of a game: equal maxima.
    x = random(0, *shape)
    x = jnp.round(x) if ties else x

    def theirs(x):
        return hk.max_pool(x, (3, 3, 1), (2, 2, 1), "SAME")

    def ours(x):
        return max_pool(x, 3, 2, implementation=implementation)

    def results(pool):
        def loss(x):
            y = pool(x)
            return jnp.sum(jnp.sin(y) * jnp.arange(1, y.size + 1).reshape(y.shape)), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(x)

    close(results(ours), results(theirs))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_max_pool_has_second_derivatives(implementation):
    x = random(0, 2, 6, 7, 2)

    def loss(x):
        return jnp.sum(max_pool(x, 3, 2, implementation=implementation) ** 3)

    got = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(x)
    # An element that is the maximum of n windows: d (n 3 x^2)^2 / dx = 36 n^2 x^3.
    count = jax.jit(
        jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, implementation=implementation)))
    )(x)
    assert int(count.sum()) == 2 * 3 * 4 * 2
    close(got, 36 * count**2 * x**3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_max_pool_hides_no_nan(implementation):
    x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
    pooled = max_pool(x, 3, 2, implementation=implementation)
    assert jnp.isnan(pooled[0, 1, 1, 0])
    assert not jnp.isnan(pooled[0, 0, 0, 0])


def test_auto_is_im2col_on_cpu_alone(monkeypatch):
    assert resolve_convolution("auto") == "im2col"
    assert resolve_convolution("native") == "native"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_convolution("auto") == "native"
    assert resolve_convolution("im2col") == "im2col"
