"""The judge itself: what it must not let pass. Needs no reference folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from metarl.errors import UserError
from metarl.golden.judge import WHOLE, Finding, Tolerances, compare

ARRAYS = """part,key,error,scale
a,call*/out/pi,0.001,2
a,call*/out/rho,0,100
a,call*/out/grad_agent_loss/q,0.01,1
d_metagrad_disco103,out/meta_grad/*,0.01,1
e_metagrad3_disco103,out/meta_grad/*,0.01,1
f_vjp,out/vjp_targets/meta_params/*,0.01,1
f_vjp,out/vjp_state/meta_params/*,0.01,1
"""
TENSORS = """part,tensor,noise_rel_l2,tolerance_rel_l2
e_metagrad3_disco103,lstm/linear/w,1e-5,0.0002
f_vjp_targets,lstm/linear/w,1e-5,0.0002
f_vjp_state,lstm/linear/w,1e-5,0.002
"""
A = "a_metanet_T4_B3_A3_seed7"
D = "d_metagrad_disco103_seed7"
E = "e_metagrad3_disco103_seed7"
F = "f_vjp_T4_B3_A3_seed7"
PI = np.linspace(-2, 2, 12).reshape(4, 3)


@pytest.fixture
def limits(tmp_path: Path) -> Tolerances:
    return read(tmp_path)


def read(folder: Path, arrays: str = ARRAYS, tensors: str = TENSORS) -> Tolerances:
    (folder / "tolerances.csv").write_text(arrays)
    (folder / "tensor_tolerances.csv").write_text(tensors)
    return Tolerances.read(folder)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def test_equal_arrays_agree_without_error(limits: Tolerances) -> None:
    finding = only(compare(A, {"call0/out/pi": PI}, {"call0/out/pi": PI}, limits))
    assert finding == Finding(A, "call*/out/pi", "call0/out/pi", 0.0)
    assert finding.agrees


@pytest.mark.parametrize(("error", "agrees"), [(0.0099, True), (0.0101, False)])
def test_ten_times_the_noise_floor_is_allowed(
    limits: Tolerances, error: float, agrees: bool
) -> None:
    ours = PI.copy()
    ours[2, 1] -= error
    finding = only(compare(A, {"call2/out/pi": PI}, {"call2/out/pi": ours}, limits))
    assert finding.multiple == pytest.approx(error / 0.01)
    assert finding.agrees is agrees


def test_the_floor_is_at_least_two_ulps_of_the_largest_magnitude(
    limits: Tolerances,
) -> None:
    _, allowed = limits.of_array(A, "call11/out/rho")
    assert allowed == pytest.approx(10 * 2.4e-7 * 100)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("whose", ["golden", "ours"])
def test_what_is_not_finite_fails(limits: Tolerances, value: float, whose: str) -> None:
    arrays = {"golden": PI.copy(), "ours": PI.copy()}
    arrays[whose][0, 0] = value
    golden, ours = ({"call0/out/pi": arrays[name]} for name in ("golden", "ours"))
    finding = only(compare(A, golden, ours, limits))
    assert not finding.agrees
    assert "not finite" in finding.note


def test_equal_infinities_fail(limits: Tolerances) -> None:
    arrays = {"call0/out/pi": np.full(3, np.inf)}
    assert not only(compare(A, arrays, arrays, limits)).agrees


def test_a_missing_array_fails(limits: Tolerances) -> None:
    finding = only(compare(A, {"call0/out/pi": PI}, {}, limits))
    assert not finding.agrees
    assert finding.note == "this build computes no such array"


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 4, 3)])
def test_another_shape_fails_even_where_numpy_would_broadcast(
    limits: Tolerances, shape: tuple[int, ...]
) -> None:
    ours = {"call0/out/pi": PI.reshape(shape)}
    assert not only(compare(A, {"call0/out/pi": PI}, ours, limits)).agrees


def test_a_small_tensor_that_is_zeroed_fails_by_relative_l2_alone(
    limits: Tolerances,
) -> None:
    key = "call0/out/grad_agent_loss/q"
    small = np.full((2, 3), 1e-4)
    largest, relative = compare(A, {key: small}, {key: np.zeros((2, 3))}, limits)
    assert largest.agrees  # 1e-4 is far below the 0.1 that the first rule allows
    assert not relative.agrees
    assert relative.multiple == pytest.approx(1 / 3e-3)
    assert relative.group == "call*/out/grad_agent_loss/q (relative L2)"


def test_a_golden_zero_must_be_met_exactly(limits: Tolerances) -> None:
    key = "call0/out/grad_agent_loss/q"
    golden, ours = np.zeros((2, 3)), np.zeros((2, 3))
    assert all(f.agrees for f in compare(A, {key: golden}, {key: -ours}, limits))
    ours[1, 1] = 1e-30
    largest, relative = compare(A, {key: golden}, {key: ours}, limits)
    assert largest.agrees
    assert not relative.agrees
    assert relative.note == "must be exactly zero"


def gradients(relative_error: float) -> tuple[dict, dict]:
    """Two tensors, of which each entry is off by the same factor."""
    golden = {
        "out/meta_grad/lstm/linear/w": np.linspace(0.1, 0.2, 6),
        "out/meta_grad/lstm/mlp/b": np.linspace(0.1, 0.2, 4),
    }
    return golden, {key: g * (1 + relative_error) for key, g in golden.items()}


@pytest.mark.parametrize(
    ("stem", "error", "failing"),
    [
        (D, 1.4e-3, set()),
        (D, 1.6e-3, {WHOLE}),
        (E, 1.9e-4, set()),
        (E, 2.1e-4, {"out/meta_grad/lstm/linear/w"}),
        (E, 5.1e-4, {"out/meta_grad/lstm/linear/w", WHOLE}),
    ],
)
def test_the_meta_gradient_is_judged_by_tensor_and_whole(
    limits: Tolerances, stem: str, error: float, failing: set[str]
) -> None:
    findings = compare(stem, *gradients(error), limits)
    assert len(findings) == 5
    named = {f.group if f.group == WHOLE else f.key for f in findings if not f.agrees}
    assert named == failing


def test_each_product_of_part_f_has_its_own_limits(limits: Tolerances) -> None:
    for product, tolerance in (("targets", 2e-4), ("state", 2e-3)):
        key = f"out/vjp_{product}/meta_params/lstm/linear/w"
        assert limits.of_tensor(F, key) == tolerance
    other = "out/vjp_state/meta_params/lstm/linear/b"
    assert limits.of_tensor(F, other) == 3e-3
    assert limits.of_tensor(A, "call0/out/pi") is None


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        (A, "call0/out/sigma"),
        (A, "callx/out/pi"),
        (A, "call0/out/pi/more"),
        (D, "call0/out/pi"),
        ("d_metagrad_randometa_seed0", "out/meta_grad/lstm/linear/w"),
    ],
)
def test_an_array_without_tolerance_is_refused(
    limits: Tolerances, stem: str, key: str
) -> None:
    with pytest.raises(UserError, match=f"no row for array '{key}' of {stem}"):
        compare(stem, {key: PI}, {key: PI}, limits)


def test_tables_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tolerances\.csv does not exist"):
        Tolerances.read(tmp_path)
    with pytest.raises(UserError, match="must have a column 'part'"):
        read(tmp_path, arrays="part,key,error,scale\n")
    with pytest.raises(UserError, match="must have a column 'scale'"):
        read(tmp_path, arrays="part,key,error\na,call*/out/pi,0.1\n")
    for text in ("nan", "-1", "", "tight"):
        with pytest.raises(UserError, match=f"error is '{text}' in a row of part 'a'"):
            read(tmp_path, arrays=f"part,key,error,scale\na,call*/out/pi,{text},1\n")
