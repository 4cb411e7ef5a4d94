"""The adjoint of WINDOW against enumeration, of values and of products; and its kernels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minigrad import Context, Tensor
from minigrad.errors import ShapeError
from minigrad.graph import build
from minigrad.graph.node import Op, topological
from minigrad.graph.shapes import numel
from minigrad.graph.windows import cropped, overlap_add

CASES = [
    (n, k, s, d)
    for n, k, s, d in itertools.product((5, 8, 9), (1, 2, 3), (1, 2, 3), (1, 2))
    if d * (k - 1) < n
] + [(n, k, s, 1) for n in (5, 6) for k in (5,) for s in (1, 2, 7)]  # also a single window


def added(g, windows, shape):
    result = np.zeros(shape)
    for index in np.ndindex(*g.shape):
        place = list(index[: len(shape)])
        for (axis, _, step, dilation), j in zip(windows, index[len(shape) :], strict=True):
            place[axis] = place[axis] * step + j * dilation
        result[tuple(place)] += g[index]
    return result


def test_a_single_window_is_no_sum():
    """Else a transposed convolution of one pixel would take 16 times the products, with zeros."""
    a, b = Tensor.empty(2, 1, 1, 40).node, Tensor.empty(1, 1, 4, 40).node
    wide = [build.expand(x, (2, 1, 4, 40)) for x in (a, b)]
    g = build.reshape(build.reduce(Op.SUM, wide[0] * wide[1], [3]), (2, 1, 4))
    order = topological([overlap_add(g, ((1, 4, 1, 1),), (2, 4))])
    assert not [node for node in order if node.op in (Op.PAD, Op.WINDOW)]
    (total,) = [node for node in order if node.op is Op.SUM]
    assert numel(total.src[0].shape) == 2 * 4 * 40


@pytest.mark.parametrize("product", [False, True], ids=["values", "sums of products"])
def test_overlap_add(product, reference):
    generator = np.random.default_rng(0)
    with Context(DEVICE=reference):
        for n, k, s, d in CASES:
            windows = ((1, k, s, d),)
            shape = build.window(Tensor.empty(2, n).node, windows).shape
            if product:
                a = generator.standard_normal((2, shape[1], 1, 4))
                b = generator.standard_normal((1, 1, k, 4))
                g, values = (Tensor(a) * Tensor(b)).sum(-1), (a * b).sum(-1)
            else:
                values = generator.standard_normal(shape)
                g = Tensor(values)
            found = Tensor._of(overlap_add(g.node, windows, (2, n))).numpy()
            np.testing.assert_allclose(
                found, added(values, windows, (2, n)), atol=1e-12, err_msg=f"{n, k, s, d}"
            )


@pytest.mark.parametrize("constant", [0, 1], ids=["the second varies", "the first varies"])
def test_a_factor_that_does_not_vary_along_windows(constant, reference):
    """The zeros between strided, dilated windows must come from the other factor."""
    generator = np.random.default_rng(0)
    with Context(DEVICE=reference):
        for n, k, s, d in CASES:
            windows = ((1, k, s, d),)
            count = build.window(Tensor.empty(2, n).node, windows).shape[1]
            factors = [generator.standard_normal((2, count, k)) for _ in range(2)]
            factors[constant] = factors[constant][:, :1]
            first, second = (Tensor(factor) for factor in factors)
            found = Tensor._of(overlap_add((first * second).node, windows, (2, n))).numpy()
            wanted = added(factors[0] * factors[1], windows, (2, n))
            np.testing.assert_allclose(found, wanted, atol=1e-12, err_msg=f"{n, k, s, d}")


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_a_convolution_is_one_sum_for_each_remainder(stride):
    """No array of windows: the sums over outputs and over positions are one SUM, without zeros."""
    x, w = Tensor.rand(2, 3, 9, 9).realize(), Tensor.rand(5, 3, 3, 3).realize()
    y = x.conv2d(w, stride=stride, padding=1)
    seed = Tensor.rand(*y.shape).realize()
    (grad,) = y.gradient(x, gradient=seed)
    sums = [node for node in topological([grad.node]) if node.op is Op.SUM]
    assert len(sums) == stride * stride
    assert grad.shape == x.shape


@pytest.mark.parametrize("kernel", [3, 4])
def test_how_many_images_there_are_decides_nothing(kernel):
    """Batches of other sizes are graphs of one structure, which have one program."""
    w = Tensor.rand(5, 3, kernel, kernel).realize()

    def ops(count):
        x = Tensor.empty(count, 3, 9, 9).requires_grad_()
        y = x.conv2d(w, stride=2, padding=1)
        (grad,) = y.gradient(x, gradient=Tensor.empty(*y.shape))
        return [node.op for node in topological([grad.node])]

    assert ops(1) == ops(5000)


@pytest.mark.parametrize("outputs", [(5, 5, 5), (5, 4, 3)], ids=["same shape", "others"])
def test_the_gradient_of_several_convolutions_is_a_sum_each(outputs):
    """As for the branches of a block that read one image: none has an array of windows."""
    x = Tensor.rand(2, 3, 9, 9).realize()
    weights = [Tensor.rand(n, 3, 3, 3).realize() for n in outputs]
    ys = [x.conv2d(w, padding=1) for w in weights]
    seeds = [Tensor.rand(*y.shape).realize() for y in ys]
    (grad,) = sum((y * s).sum() for y, s in zip(ys, seeds, strict=True)).gradient(x)
    sums = [node for node in topological([grad.node]) if node.op is Op.SUM]
    assert [sum_.src[0].op for sum_ in sums] == [Op.MUL] * len(outputs)
    assert grad.shape == x.shape
    alone = [y.gradient(x, gradient=s)[0] for y, s in zip(ys, seeds, strict=True)]
    np.testing.assert_allclose(grad.numpy(), sum(alone).numpy(), rtol=1e-5)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 1), (2, 0), (3, 1), (1, 3)])
def test_cropped(start, end, reference):
    """A cropped sum of overlapping windows is built directly; every step and every crop."""
    generator = np.random.default_rng(1)
    with Context(DEVICE=reference):
        for n, k, s, d in CASES:
            windows = ((1, k, s, d),)
            count = build.window(Tensor.empty(2, n).node, windows).shape[1]
            a = generator.standard_normal((2, count, 1, 3))
            b = generator.standard_normal((1, 1, k, 3))
            g, values = (Tensor(a) * Tensor(b)).sum(-1), (a * b).sum(-1)
            whole = overlap_add(g.node, windows, (2, n))
            part = cropped(whole, [(0, 2), (start, n - end)])
            expected = added(values, windows, (2, n))[:, start : n - end]
            np.testing.assert_allclose(
                Tensor._of(part).numpy(), expected, atol=1e-12, err_msg=f"{n, k, s, d}"
            )


def test_the_gradient_of_what_is_padded_with_a_value_is_cropped():
    """No sum is made of positions in the padding."""
    x = Tensor.rand(2, 9, 9).realize()
    y = x.max_pool2d(3, stride=1, padding=1)
    (grad,) = y.gradient(x, gradient=Tensor.rand(*y.shape).realize())
    sums = [node for node in topological([grad.node]) if node.op is Op.SUM]
    assert all(sum_.shape[:3] == (2, 9, 9) for sum_ in sums)


@pytest.mark.parametrize(
    "window", [(0, 4, 1, 1), (0, 2, 1, 3), (1, 1, 1, 1), (0, 0, 1, 1), (0, 1, 0, 1)]
)
def test_windows_that_do_not_fit(window):
    with pytest.raises(ShapeError, match="window"):
        build.window(Tensor.empty(3).node, [window])
