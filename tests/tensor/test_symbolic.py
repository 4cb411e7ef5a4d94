"""Bound variables as dimensions and offsets: one program runs for every value."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, Variable
from minigrad.errors import BoundsError, ShapeError
from minigrad.programs import programs

rng = np.random.default_rng(0)
K = rng.normal(size=(2, 3, 16, 4)).astype(np.float32)
V = rng.normal(size=(2, 3, 16, 4)).astype(np.float32)
Q = rng.normal(size=(2, 3, 1, 4)).astype(np.float32)


def attention(q, k, v):
    scores = q @ k.swapaxes(-1, -2) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def test_attention_over_a_cache(on_device):
    length = Variable("length", 1, 16)
    k, v = Tensor(K), Tensor(V)
    compiled = 0
    for n in (1, 5, 7, 16):
        bound = length.bind(n)
        out = Tensor(Q).scaled_dot_product_attention(k[:, :, :bound], v[:, :, :bound])
        assert out.shape == (2, 3, 1, 4)
        np.testing.assert_allclose(
            out.numpy(), attention(Q, K[:, :, :n], V[:, :, :n]), rtol=2e-5, atol=1e-6
        )
        compiled = compiled or GlobalCounters.programs_compiled
    assert GlobalCounters.programs_compiled == compiled


def test_a_variable_fills_a_tensor(on_device):
    n = Variable("n", 1, 9)
    made = [Tensor.full((2,), n.bind(value), dtype="float32").tolist() for value in (3, 7)]
    assert made == [[3.0, 3.0], [7.0, 7.0]]
    assert Tensor([1, 2]).full_like(n.bind(5)).tolist() == [5, 5]


OPERATIONS = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.max(1),
    "var": lambda x: x.var(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(1),
    "layernorm": lambda x: x.layernorm(1),
    "matmul": lambda x: x @ x.transpose(),
    "product over": lambda x: x.transpose() @ x,
    "exp": lambda x: (x * 2).exp(),
    "where": lambda x: (x > 0).where(x, 0.5),
    "tril": lambda x: (x.transpose() @ x).tril(),
    "pad": lambda x: x.pad([None, (2, 1)], value=3),
    "whole mean": lambda x: x.mean(),
    "cat": lambda x: x.cat(x * 2, dim=0),
    "flip": lambda x: x.flip(1),
    "cumsum": lambda x: x.cumsum(1),
    "argsort": lambda x: x.argsort(1),
    "sorted": lambda x: x.sort(1, descending=True)[0],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(on_device, name):
    values = rng.normal(size=(5, 12)).astype(np.float32)
    length = Variable("n", 1, 12)
    for n in (3, 12, 1):
        part = Tensor(values)[:, : length.bind(n)]
        plain = Tensor(np.ascontiguousarray(values[:, :n]))
        ours, wanted = OPERATIONS[name](part).numpy(), OPERATIONS[name](plain).numpy()
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_gradients(on_device):
    values = rng.normal(size=(5, 12)).astype(np.float32)
    x = Tensor(values, requires_grad=True)
    part = x[:, : Variable("n", 1, 12).bind(4)]
    (part.softmax(1) * part).sum().backward()
    y = Tensor(values, requires_grad=True)
    (y[:, :4].softmax(1) * y[:, :4]).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-5, atol=1e-6)
    assert (x.grad.numpy()[:, 4:] == 0).all()


@pytest.mark.parametrize("name", ["i0", "i0_", "k0", "r0", "lane0"])
def test_a_name_that_loops_have_is_the_users(name, on_device):
    """Loop variables are named i0, k0 …: x[:, i0] gave the diagonal."""
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    x, place = Tensor(values), Variable(name, 0, 7).bind(3)
    assert x[:, place : place + 1].reshape(8).tolist() == values[:, 3].tolist()
    assert x[place : place + 1].sum().item() == values[3].sum()


def test_arange(on_device):
    n = Variable("n", 0, 9).bind(4)
    assert Tensor.arange(n).tolist() == [0, 1, 2, 3]
    assert Tensor.arange(n, n + 3).tolist() == [4, 5, 6]
    with pytest.raises(ShapeError, match="step"):
        Tensor.arange(0, n, 2)


def test_a_first_symbolic_dimension_takes_others(on_device):
    """A reshape merges a symbolic first dimension with others, and splits it again."""
    x = Tensor(K)[0, 0, : Variable("n", 1, 16).bind(4)]
    flat = x.flatten() * 2
    np.testing.assert_allclose(flat.sum().item(), 2 * K[0, 0, :4].sum(), rtol=1e-5)
    again = flat.reshape(*x.shape)
    assert x.reshape(x.shape[0], -1, 2).numpy().tolist() == K[0, 0, :4].reshape(4, -1, 2).tolist()
    halves = x.rearrange("rows (two half) -> rows half two", two=2).numpy()
    assert halves.tolist() == K[0, 0, :4].reshape(4, 2, -1).swapaxes(1, 2).tolist()
    np.testing.assert_array_equal(x[1:].numpy(), K[0, 0, 1:4])
    np.testing.assert_array_equal(x[:-1].numpy(), K[0, 0, :3])
    np.testing.assert_allclose(again.sum(0).numpy(), 2 * K[0, 0, :4].sum(0), rtol=1e-5)


def test_what_is_behind_the_bound_value_is_not_there(on_device):
    x = Tensor(np.arange(8, dtype=np.float32))[: Variable("n", 1, 8).bind(3)]
    for item in (3, 7, Variable("i", 0, 7).bind(3)):
        with pytest.raises(BoundsError, match=r"out of range .*; expected -3 … 2"):
            x[item]
    with pytest.raises(ShapeError, match="expected a stop up to n = 3, got 5"):
        x[1:5]
    assert (x[2].item(), x[-1].item(), x[1:3].tolist()) == (2, 2, [1, 2])


def test_what_symbolic_dimensions_cannot_do(on_device):
    n = Variable("n", 1, 16).bind(4)
    x = Tensor(K)[0, 0, :n]
    place, image = Tensor([0]), Tensor.ones(1, 2, 16, 16)[:, :, :n]
    with pytest.raises(ShapeError, match="can only move past 1s"):
        x.reshape(-1, x.shape[0])
    for operation in (
        lambda: x.T.flatten(),
        lambda: x.roll(1, 0),
        lambda: x.split(2),
        lambda: x[::2],
        lambda: x[place, place],
        lambda: x.diagonal(),
        lambda: x.pad(((1, 1), (0, 0)), mode="reflect"),
        lambda: x.T.scaled_dot_product_attention(x.T, x.T),
        lambda: image.conv2d(Tensor.ones(2, 2, 3, 3)),
        lambda: Tensor.rand(n),
        lambda: Tensor.scan(lambda carry, row: (carry, row), place, x),
    ):
        with pytest.raises(ShapeError):
            operation()


# einsum's equation, the shapes, and the axis of each operand whose first n elements count
PRODUCTS = {
    "depth of one row": ("mk,kn->mn", (1, 512), (512, 300), 1, 0),
    "depth of columns": ("mk,nk->mn", (1, 2048), (300, 2048), 1, 1),
    "columns of one row": ("mk,kn->mn", (1, 512), (512, 300), None, 1),
    "rows of small groups": ("mkg,kgc->mgc", (40, 32, 2), (32, 2, 1), 0, None),
    "groups": ("gmk,gkc->mgc", (16, 40, 32), (16, 32, 3), 0, 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_a_part(on_device, name):
    equation, *shapes, first, second = PRODUCTS[name]
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    most = x.shape[first] if first is not None else y.shape[second]
    n = Variable("n", 1, most)
    for value in (2, 7, most - 3):
        parts, values = [], []
        for array, axis in ((x, first), (y, second)):
            before = [slice(None)] * (axis or 0)
            cut = (n.bind(value), value) if axis is not None else (None, None)
            parts.append(Tensor(array)[(*before, slice(cut[0]))])
            values.append(array[(*before, slice(cut[1]))])
        total, wanted = Tensor.einsum(equation, *parts), np.einsum(equation, *values)
        along = [axis for axis, extent in enumerate(total.shape) if not isinstance(extent, int)]
        total, wanted = total.sum(along), wanted.sum(tuple(along))
        np.testing.assert_allclose(total.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_long_scan_that_may_be_empty(on_device):
    """From 129 elements on, sums are in blocks; a register was read that an empty one never set."""
    values, length = rng.normal(size=(300, 3)).astype(np.float32), Variable("n", 0, 300)
    for n in (7, 0, 300):
        ours = Tensor(values)[: length.bind(n)].cumsum(0).numpy()
        np.testing.assert_allclose(ours, values[:n].cumsum(0), rtol=1e-4, atol=1e-4)


def test_beside_a_size_that_is_new_in_each_call(on_device):
    """Callers' arrays have room for the largest value: other dimensions vary, as if it was that."""
    programs.forget()
    length = Variable("length", 1, 8)
    for rows, columns, n in ((3, 5, 5), (4, 6, 7), (7, 3, 2), (6, 9, 8), (2, 7, 3)):
        values = rng.normal(size=(rows, columns, 8)).astype(np.float32)
        part = Tensor(values)[:, :, : length.bind(n)]
        for ours, exact in (
            (part[:, 0] * 2, 2 * values[:, 0]), (part + part.flip(1), values + values[:, ::-1]),
        ):  # fmt: skip
            ours = ours.realize()
            np.testing.assert_allclose(ours.numpy(), exact[..., :n], rtol=1e-6)
            np.testing.assert_allclose((ours + 1).numpy(), exact[..., :n] + 1, rtol=1e-6)
