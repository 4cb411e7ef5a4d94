"""Layers, losses and gradients on batches of several sizes: from the third size on, no compiling.

The first size compiles a special program, the second a general one, which runs all others.
"""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor
from minigrad.graph.node import topological
from minigrad.programs import programs
from minigrad.tensor.convolution import MOST_ZOOM

SIZES = (32, 48, 5, 100, 13)
ALIKE = 2e-5  # relative to the largest element


class Maker:
    """Arrays of one size, the same on every device."""

    def __init__(self, size: int, device: str) -> None:
        self.size, self.device = size, device
        self.random = np.random.default_rng(size)

    def floats(self, *shape: int) -> Tensor:
        """A leaf of random values."""
        data = self.random.standard_normal(shape).astype(np.float32)
        return Tensor(data, device=self.device, requires_grad=True)

    def integers(self, most: int, *batch: int) -> Tensor:
        """`size` random indices, for each element of the batch."""
        data = self.random.integers(0, most, (*batch, self.size)).astype(np.int32)
        return Tensor(data, device=self.device)


def network(of: Maker) -> list[Tensor]:
    x, weights = of.floats(of.size, 16), [of.floats(16, 24), of.floats(24), of.floats(24, 5)]
    hidden = (x @ weights[0] + weights[1]).relu() @ weights[2]
    loss = hidden.cross_entropy(of.integers(5))
    return [loss, *loss.gradient(x, *weights)]


def convolution(of: Maker) -> list[Tensor]:
    x, filters = of.floats(of.size, 3, 12, 12), of.floats(6, 3, 3, 3)
    y = x.conv2d(filters, padding=1).relu().max_pool2d((2, 2))
    return [y, *(y * y).mean().gradient(x, filters)]


def normalized(of: Maker) -> list[Tensor]:
    x, scale = of.floats(of.size, 24), of.floats(24)
    y = (x.layernorm() * scale).gelu()
    mean = x.mean(0, keepdim=True)
    z = (x - mean) * ((x - mean).square().mean(0, keepdim=True) + 1e-5).rsqrt()
    return [y, z, *((y * y).mean() + (z * z * z).sum()).gradient(x, scale)]


def rows(of: Maker) -> list[Tensor]:
    x = of.floats(of.size, 33)
    y = x.softmax(-1)
    loss = (y * x).sum() + x.log_softmax(1).logsumexp(1).sum()
    return [y, x.argmax(1), x.max(1), *loss.gradient(x)]


def embedding(of: Maker) -> list[Tensor]:
    table = of.floats(50, 16)
    y = table[of.integers(50)]
    return [y, *(y * y).sum().gradient(table)]


def attention(of: Maker) -> list[Tensor]:
    q, k, v = (of.floats(of.size, 2, 10, 8) for _ in range(3))
    y = Tensor.scaled_dot_product_attention(q, k, v, is_causal=True)
    return [y, *(y * y).sum().gradient(q, k, v)]


def sequence(of: Maker) -> list[Tensor]:
    """Self-attention over `size` positions."""
    x, w = of.floats(1, of.size, 16), of.floats(16, 48)
    heads = (x @ w).reshape(1, of.size, 3, 2, 8).permute(2, 0, 3, 1, 4)
    y = Tensor.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    y = y.permute(0, 2, 1, 3).reshape(1, of.size, 16)
    return [y, *(y * y).mean().gradient(x, w)]


def products(of: Maker) -> list[Tensor]:
    x, w = of.floats(of.size, 120), of.floats(120, 72)
    return [(x @ w).tanh(), x.sum(0), x.T @ x, (x @ w).sum(0), x.std(0), x[1:] - x[:-1]]


def texts(of: Maker) -> list[Tensor]:
    """A language model on a batch of 3 texts of `size` tokens."""
    table, places = of.floats(50, 16), of.floats(300, 16)
    weights = [of.floats(16, 48), of.floats(16, 40), of.floats(40, 50)]
    x = table[of.integers(50, 3)] + places[: of.size]
    heads = (x.layernorm() @ weights[0]).reshape(3, of.size, 3, 2, 8).permute(2, 0, 3, 1, 4)
    y = Tensor.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    x = x + y.permute(0, 2, 1, 3).reshape(3, of.size, 16)
    logits = (x.reshape(-1, 16) @ weights[1]).gelu() @ weights[2]
    loss = logits.cross_entropy(of.integers(50, 3).reshape(-1))
    return [loss, logits.reshape(3, of.size, 50), *loss.gradient(table, places, *weights)]


def lines(of: Maker) -> list[Tensor]:
    """Elementwise results, sums and rows where an inner dimension varies."""
    x, w = of.floats(4, of.size, 6), of.floats(6, 10)
    y = (x @ w).relu().sum(1) + x.max(1).sum(1, keepdim=True)
    z = x.softmax(2) * x.mean(1, keepdim=True)
    found = x.gradient(x, gradient=z)
    return [y, z, x.transpose(1, 2), x.sum((0, 1)), *found, *(y * y).sum().gradient(x, w)]


def squares(of: Maker) -> list[Tensor]:
    """Both dimensions of an intermediate matrix vary."""
    x = of.floats(2, of.size, 5)
    scores = x @ x.transpose(1, 2)
    return [scores.softmax(-1) @ x, *(scores * scores).sum().gradient(x)]


def weights(of: Maker) -> list[Tensor]:
    """Attention weights as a result: both of its dimensions vary."""
    x = of.floats(3, of.size, 8)
    unseen = Tensor.ones(of.size, of.size, device=of.device).tril().eq(0)
    found = (x @ x.transpose(1, 2)).masked_fill(unseen, -1e9).softmax(-1)
    return [found, *(found @ x).square().sum().gradient(x)]


def means(of: Maker) -> list[Tensor]:
    """Sums over a varying dimension, of products with fixed and with varying columns."""
    table, w = of.floats(50, 3), of.floats(3, 7)
    x, y = of.floats(of.size, 33, 2), of.floats(of.size, 33, 8)
    means = (table[of.integers(50, 3)] @ w).relu().mean(1)
    outer, rows = Tensor.einsum("nlh,nlk->hk", x, y), Tensor.einsum("nlh,nmh->nlm", x, y[:, :, :2])
    found = (means * means).sum() + (outer * outer).sum() + (rows * rows).mean()
    return [means, outer, rows, *found.gradient(table, w, x, y)]


def contractions(of: Maker) -> list[Tensor]:
    """The varying dimension is the first of one factor, beside one that both have."""
    w, x = of.floats(5, 8, 16), of.floats(of.size, 5, 16, 4)
    found = Tensor.einsum("bmk,ibkn->ibmn", w, x)
    return [found, *found.square().mean().gradient(w, x)]


@pytest.mark.parametrize("compute", [
    network, convolution, normalized, rows, embedding, attention, sequence, products, texts, lines,
    squares, weights, means, contractions,
])  # fmt: skip
def test_other_sizes(compute, compiled: str, reference: str) -> None:
    def values(size: int, device: str) -> list[np.ndarray]:
        return [one.numpy().astype(np.float64) for one in compute(Maker(size, device))]

    expected = [values(size, reference) for size in SIZES]
    # After some sizes that did not come again, methods make nodes without templates; methods that
    # compute the same, as softmax and log_softmax, share nodes then. That is another structure.
    for size in SIZES:
        values(size, compiled)
    programs.forget()
    counts = []
    for size, wanted in zip(SIZES, expected, strict=True):
        for ours, theirs in zip(values(size, compiled), wanted, strict=True):
            scale = np.abs(theirs).max() + 1e-6
            np.testing.assert_allclose(ours / scale, theirs / scale, atol=ALIKE, rtol=0)
        counts.append(GlobalCounters.programs_compiled)
    assert counts[0] < counts[1] == counts[-1]


def test_a_pixel_becomes_an_image_without_a_sum_for_each_element() -> None:
    """Small scale factors write elements as sums of neighbours, large ones gather them."""

    def nodes(size: int) -> int:
        y = Tensor.zeros(1, 2, 1, 1).contiguous().interpolate(size, mode="linear")
        return len(topological([y.node]))

    assert nodes(224) == nodes(112) < nodes(MOST_ZOOM)


def test_bounds_of_several_dimensions_do_not_multiply(compiled: str) -> None:
    """Arrays that differ in all dimensions are not padded to bounds in each of them."""
    programs.forget()
    for shape in ((2, 3, 40, 41), (4, 5, 50, 61), (3, 9, 45, 70)):
        x = Tensor(np.ones(shape, np.float32), device=compiled).realize()
        GlobalCounters.reset()
        held = GlobalCounters.mem_used
        x.clone().realize()
        assert GlobalCounters.mem_peak <= held + 2 * x.nbytes()
