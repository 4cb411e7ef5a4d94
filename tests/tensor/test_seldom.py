"""Rare inputs: numbers of 0 dimensions, bools, unsigned integers, empty arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.errors import DomainError, ShapeError
from minigrad.nn import functional as F

ONE: list[tuple[Callable[[Tensor], Any], Any]] = [
    (lambda x: x.softmax(), 1.0),
    (lambda x: x.log_softmax(), 0.0),
    (lambda x: x.argmax(), 0),
    (lambda x: x.argmin(), 0),
    (lambda x: x.argsort(), 0),
    (lambda x: x.sort(), (3.0, 0)),
    (lambda x: x.topk(1), (3.0, 0)),
    (lambda x: x.kthvalue(1), (3.0, 0)),
    (lambda x: x.mode(), (3.0, 0)),
    (lambda x: x.median(0), 3.0),
    (lambda x: x.median(), 3.0),
    (lambda x: x.quantile(0.5, 0, keepdim=True), 3.0),
    (lambda x: x.cumsum(0), 3.0),
    (lambda x: x.cumprod(0), 3.0),
    (lambda x: x.cummax(0), (3.0, 0)),
    (lambda x: x.cummin(0), (3.0, 0)),
]


@pytest.mark.parametrize("number", range(len(ONE)))
def test_along_no_dimension(number: int) -> None:
    """A 0-d tensor is like a row of one; there is no second dimension."""
    call, expected = ONE[number]
    pairs = [x if isinstance(x, tuple) else (x,) for x in (call(Tensor(3.0)), expected)]
    for part, wanted in zip(*pairs, strict=True):
        assert part.shape == () and part.dtype.is_int == isinstance(wanted, int)
        assert part.item() == wanted


def test_a_number_is_asked_as_a_tensor_is() -> None:
    x = Tensor(3.0)
    assert x.size() == () and x.squeeze(0).shape == x.squeeze(-1).shape == ()


@pytest.mark.parametrize("counts", [[1, 0, 2, 3], [0, 0, 0, 0], [2, 2, 2, 2]])
def test_each_element_is_repeated_as_often_as_a_tensor_says(counts: list[int]) -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    x, times = Tensor(a), Tensor(counts)
    assert x.repeat_interleave(times, 1).tolist() == a.repeat(counts, 1).tolist()
    assert x[0].repeat_interleave(times).tolist() == a[0].repeat(counts).tolist()
    assert x.repeat_interleave(times[:3], dim=0).shape == (sum(counts[:3]), 4)
    leaf = Tensor(a, requires_grad=True)
    assert leaf.repeat_interleave(times, 1).sum().gradient(leaf)[0].tolist() == [counts] * 3


def test_along_a_dimension_that_is_none() -> None:
    for call in (Tensor.softmax, Tensor.log_softmax, Tensor.cumsum, Tensor.cummax, Tensor.argmax):
        with pytest.raises(ShapeError, match=f"{call.__name__}.*1"):
            call(Tensor(3.0), 1)
    assert [part.shape for part in Tensor(3.0).topk(0)] == [(0,), (0,)]
    assert [part.shape for part in Tensor([[3.0]]).topk(0)] == [(1, 0), (1, 0)]
    with pytest.raises(ShapeError, match="flatten: axis 1"):
        Tensor(3.0).flatten(1)


def test_gradient_along_no_dimension() -> None:
    x = Tensor(3.0, requires_grad=True)
    (x.softmax() * 2 + x.log_softmax() + x.cumsum(0) * 5).backward()
    assert x.grad is not None and x.grad.item() == 5.0
    assert math.isnan(Tensor(math.inf).softmax().item())


def test_of_bools() -> None:
    x, y = Tensor([True, True, False]), Tensor([True, True, True])
    assert (x // y).tolist() == [1, 1, 0] and (x % y).tolist() == [0, 0, 0]
    assert x.relu().tolist() == [1, 1, 0] and (x**y).tolist() == [1, 1, 0]
    assert y.copysign(-1).tolist() == [-1.0, -1.0, -1.0]


def test_of_unsigned() -> None:
    x, y = (np.array(values, np.uint8) for values in ([7, 200, 3], [2, 3, 5]))
    assert Tensor(x).div(Tensor(y), rounding_mode="trunc").tolist() == (x // y).tolist()
    assert (Tensor(x) ** Tensor(y)).tolist() == (x**y).tolist()


def test_powers_by_floats_are_floats() -> None:
    for exponent in (1.0, 2.0, 3.0):
        found = Tensor([2, 3]) ** exponent
        assert found.dtype.is_float and found.tolist() == [2.0**exponent, 3.0**exponent]


def test_casts_to_the_same_dtype() -> None:
    x = Tensor([1, 2])
    assert x.bitcast("int32") is x
    assert x.int() is x.cast("int32") is x.to("int32") is x.to(x.dtype) is x.to(x) is x
    assert x.to(x.device, dtype="int32") is x.type_as(x) is x


def test_numbers_of_bfloat16() -> None:
    """Small constants are concatenated, and one number read, without a kernel."""
    ones = Tensor.ones(2, dtype="bfloat16").cat(Tensor.full((1,), -2.5, dtype="bfloat16"))
    assert ones.realize().tolist() == [1.0, 1.0, -2.5]
    assert ones[2].item() == -2.5


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_numbers_beside_arrays_are_weakly_typed(dtype: Any) -> None:
    """As with tensors."""
    mask, array = Tensor([True, False]), np.array([1, 2], dtype)
    for made, values in ((mask.where(array, 3), [1, 3]), (mask.where(3, array), [3, 2])):
        assert made.dtype is Tensor(array).dtype and made.tolist() == values


def test_a_histogram_of_equal_numbers() -> None:
    """The range is from 1 below the number to 1 above, as in PyTorch."""
    assert Tensor([2.0, 2.0]).histc(4).tolist() == [0, 0, 2, 0]
    assert Tensor([2.0, 2.0]).histc(1).tolist() == [2]
    assert Tensor.zeros(2, 0).histc(2).tolist() == Tensor.zeros(0).histc(2, 1, 1).tolist() == [0, 0]


def test_integers_uniform_around_zero() -> None:
    Tensor.manual_seed(3)
    written = Tensor.zeros(4000, dtype="int32").contiguous().uniform_(-2, 2)
    for drawn in (Tensor.uniform(4000, low=-2, high=2, dtype="int32"), written):
        found = drawn.numpy()
        assert all(850 < (found == number).sum() < 1150 for number in (-2, -1, 0, 1))


@pytest.mark.parametrize("write", [
    lambda x, v: x.masked_fill(Tensor([False, True]), v),
    lambda x, v: x.index_fill(0, Tensor([1]), v),
    lambda x, v: x.scatter(0, Tensor([1]), v),
    lambda x, v: x[:1].pad((0, 1), value=v),
    lambda x, v: x.index_put((Tensor([1]),), v),
    lambda x, v: x.index_put((Tensor([1]),), v, accumulate=True),
    lambda x, v: x.clone().fill_(v),
])  # fmt: skip
def test_a_number_that_is_written_is_rounded_once(write: Callable[..., Tensor]) -> None:
    """A float is converted to integers directly, not through float32."""
    for dtype, value in (("int64", 16777217.0), ("uint64", 1e19), ("int32", -123456789.0)):
        x = Tensor([0, 0], dtype=dtype)
        assert write(x, value)[1].item() == int(value)


def test_numbers_in_the_place_of_none_are_not_replaced_again() -> None:
    x = Tensor([math.nan, math.inf, -math.inf, 2.0])
    assert x.nan_to_num(math.inf, 5.0, 6.0).tolist() == [math.inf, 5.0, 6.0, 2.0]
    assert x.nan_to_num(-math.inf, -math.inf, 6.0).tolist() == [-math.inf, -math.inf, 6.0, 2.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_before_the_point(dtype: str) -> None:
    """A thousand is not a sum of rounded thousandths."""
    x = Tensor([1000.0, 3000.0, 123456.0, 7000.0, -2500.0], dtype=dtype)
    assert x.round(decimals=-3).tolist() == [1000.0, 3000.0, 123000.0, 7000.0, -2000.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_squares_of_half_floats_do_not_overflow(dtype: str) -> None:
    x, tiny = Tensor([[300.0, 400.0]], dtype=dtype), Tensor([3e-5, 4e-5], dtype=dtype)
    near: dict[str, Any] = {"rel": 2.0**-7}
    assert x.norm().item() == 500.0 and x.norm(3).item() == pytest.approx(449.8, **near)
    assert tiny.norm().item() == pytest.approx(5e-5, **near)
    assert x.normalize().tolist()[0] == pytest.approx([0.6, 0.8], **near)
    assert x.cosine_similarity(x).item() == pytest.approx(1.0, **near)
    assert x.cdist(Tensor.zeros(1, 2, dtype=dtype)).item() == 500.0
    assert x.pairwise_distance(Tensor.zeros(1, 2, dtype=dtype)).item() == 500.0
    assert Tensor([0.0, 0.0], dtype=dtype).normalize(axis=0).tolist() == [0.0, 0.0]
    wave = Tensor([200.0, -200.0] * 50, dtype=dtype)
    assert wave.cov(correction=0).item() == pytest.approx(40000, **near)


def test_a_mean_over_more_targets_than_a_half_float_counts() -> None:
    logs = Tensor.full((70_000, 2), -0.5, dtype="float16")
    assert logs.nll_loss(Tensor.zeros(70_000, dtype="int32")).item() == 0.5


@pytest.mark.parametrize("p", [math.inf, -math.inf, -1])
def test_of_no_elements_none_is_the_largest(p: float) -> None:
    """As in PyTorch and numpy: extremes raise, though a sum of nothing is 0."""
    assert Tensor.zeros(0).norm(1).item() == Tensor.zeros(0).norm().item() == 0
    with pytest.raises(ShapeError, match=r"norm\(.*\): expected at least one element"):
        Tensor.zeros(2, 0).norm(p, 1)
    assert Tensor.zeros(2, 0).norm(p, 0).shape == (0,)


def test_ramps_of_large_numbers() -> None:
    """The number of elements is exact, and integers made from floats are computed in float64."""
    assert Tensor.arange(0, 2**53 + 1, 2**53).tolist() == [0, 2**53]
    assert Tensor.arange(2**62 + 1, 0, -(2**61)).tolist() == [2**62 + 1, 2**61 + 1, 1]
    assert Tensor.arange(2.0**24, 2.0**24 + 3, dtype="int64").tolist() == [
        2**24, 2**24 + 1, 2**24 + 2
    ]  # fmt: skip


def test_counts_do_not_wrap() -> None:
    ones = Tensor([1, 1, 1])
    assert ones.bincount(Tensor([200, 200, 100], dtype="uint8")).tolist() == [0, 500]
    assert ones.bincount(Tensor([True, True, True])).tolist() == [0, 3]
    assert Tensor.ones(300, dtype="uint8").histc(2, 0, 3).tolist() == [300, 0]
    assert Tensor([True, False, True]).histc(2, 0, 1).tolist() == [1, 2]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_histogram_between_bounds_that_are_none(value: float) -> None:
    for dtype in ("float16", "float32", "float64"):
        x = Tensor([1.0, value], dtype=dtype)
        assert x.histc(2, 0, 2).tolist() == [0, 1]
        with pytest.raises(DomainError, match=r"histc: .* is not finite"):
            x.histc(2).tolist()


def test_triangles_whose_diagonal_is_far_away() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    for far in (2**31 - 1, 2**40):
        assert x.tril(far).tolist() == x.triu(-far).tolist() == x.tolist()
        assert not x.tril(-far).any().item() and not x.triu(far).any().item()


def test_what_is_added_is_multiplied_in_the_dtype_of_the_sum() -> None:
    """As in PyTorch: bytes added to floats are converted before they are multiplied."""
    x, byte = Tensor([1.0]), Tensor([100], dtype="uint8")
    assert x.add(byte, alpha=3).tolist() == [301.0] and x.sub(byte, alpha=3).tolist() == [-299.0]
    assert Tensor([1]).add(byte, alpha=3).tolist() == [301]
    assert x.addcmul(byte, byte, value=2).tolist() == [20001.0]
    assert Tensor([1]).addcmul(byte, byte).tolist() == [10001]
    third = Tensor([3.0], dtype="bfloat16")
    assert x.addcdiv(x.bfloat16(), third).item() == pytest.approx(4 / 3, rel=1e-6)
    assert Tensor([10], dtype="uint8").lerp(Tensor([5], dtype="uint8"), 0.5).tolist() == [7.5]


@pytest.mark.parametrize("weight", [1.0, 1, Tensor([1.0])])
def test_the_end_of_an_interpolation_is_exact(weight: object) -> None:
    """Although the difference to a large start is rounded to a multiple of 8."""
    assert Tensor([1e8]).lerp(Tensor([1.0]), weight).tolist() == [1.0]
    assert Tensor([1.0]).lerp(Tensor([1e8]), 1 - weight).tolist() == [1.0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"one weight per element, got shapes \(2,\) and \(3,\)"):
        Tensor([1, 1]).bincount(Tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ShapeError, match=r"pad_to\(2,\): expected sizes ≥ \(3,\); use shrink_to"):
        Tensor([1, 2, 3]).pad_to(2)
    with pytest.raises(ShapeError, match=r"unflatten\(0, \(2, 5\)\): expected a product of 2"):
        Tensor.zeros(2, 0).unflatten(0, (2, 5))


def test_more_differences_than_anybody_waits_for() -> None:
    assert Tensor([1, 4, 9]).diff(2**40).shape == (0,)


def test_distances_of_bytes_do_not_wrap() -> None:
    low, high = Tensor([[0, 3]], dtype="uint8"), Tensor([[200, 1]], dtype="uint8")
    assert low.mse_loss(high).item() == 20002 and F.l1_loss(low, high).item() == 101
    assert F.huber_loss(low, high, "none").tolist() == [[199.5, 1.5]]
    assert F.margin_ranking_loss(low, high, Tensor([[1, -1]])).item() == 101
    assert low.cdist(high, 1).tolist() == [[202]]
    assert low.pairwise_distance(high, 1, 0.0).tolist() == [202]
    loss = low.binary_crossentropy_logits(Tensor([[0.0, 0.0]]))
    assert loss.item() == pytest.approx(1.8709, rel=1e-4)
    row = Tensor([[100]], dtype="uint8")
    assert Tensor([[0.5]]).addmm(row, row).tolist() == [[10000.5]]


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_comparisons_of_uint64_with_signed_integers_are_exact(dtype: str) -> None:
    """As in numpy: in float32, 2²⁴ + 1 would equal 2²⁴, and 2⁶³ − 1 would equal 2⁶³."""
    large = [2**24, 2**24 + 1, 2**63 - 1] if dtype != "int8" else [127]
    x = np.array([-1, 0, 5, -128, *large[: 2 if dtype == "int32" else 3]], dtype)
    y = np.array([0, 5, 2**24, 2**24 + 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)[:, None]
    for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        for a, b in ((x, y), (y, x)):
            expected = [[compare(int(p), int(q)) for p, q in zip(*row, strict=True)]
                        for row in zip(*np.broadcast_arrays(a, b), strict=True)]  # fmt: skip
            assert compare(Tensor(a), Tensor(b)).tolist() == expected
    assert not Tensor([2**24 + 1], dtype="uint64").equal(Tensor([2**24], dtype="int64"))


def test_powers_of_matrices_with_infinities() -> None:
    """The first power is the matrix itself: a product with the identity has 0 · inf, a NaN."""
    x = Tensor([[math.inf, 0.0], [0.0, 1.0]])
    assert x.matrix_power(1).tolist() == [[math.inf, 0], [0, 1]]
    assert x.matrix_power(2).isnan().tolist() == [[False, True], [True, False]]
    x.matrix_power(1).fill_(3)
    assert x[1, 1].item() == 1


def test_a_loss_has_the_digits_of_the_probabilities() -> None:
    logits, wanted = Tensor([[0.0, 3.0]], dtype="float16"), Tensor([[0.3, 0.7]])
    assert logits.cross_entropy(wanted).dtype.name == "float32"
    assert logits.cross_entropy(wanted.half()).dtype.name == "float16"


def test_an_empty_range_is_an_empty_index() -> None:
    assert Tensor([[1, 2]])[:, range(0)].shape == (1, 0)


def test_a_number_of_numpy_is_scattered_as_one_of_python() -> None:
    ones = Tensor([1.0, 1.0])
    for number in (5, 5.0, np.float32(5), np.int64(5)):
        assert ones.scatter(0, Tensor([1]), number).tolist() == [1.0, 5.0]
        assert ones.scatter(0, Tensor([1, 1]), number, reduce="add").tolist() == [1.0, 11.0]


@pytest.mark.parametrize("divisor", [0.0, -0.0, 2.0, float("nan")])
def test_a_rounded_quotient_has_no_slope(divisor: float) -> None:
    x, y = Tensor([0.5, -3.0, 0.0]), Tensor([divisor] * 3)
    for quotient in (x // y, x.div(y, rounding_mode="floor")):
        assert [grad.tolist() for grad in quotient.sum().gradient(x, y)] == [[0.0] * 3] * 2
