"""Reading parts of a tensor: dtypes of indices, errors, large masks, positions beyond int32."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Context, Tensor, Variable
from minigrad.errors import BoundsError, DTypeError, ShapeError

X = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
ROW, COLUMN = np.array([0, 3, -1]), np.array([[1], [4]])
MASK = X[:, :, 0] % 4 == 0
# Slices, ints, None and … alone, and mixes with arrays of int32, are rows of the operation table.
KEYS = [
    (), [0, 2], ROW, (slice(None), COLUMN), (ROW, COLUMN), (ROW, slice(None), COLUMN), (0, ROW),
    ([], slice(None)), (MASK, None), np.zeros((4, 5, 6), bool), np.int64(2),
    ROW.astype(np.int8), ROW[:2].astype(np.uint8), (ROW[:2].astype(np.uint32), ROW[1:]),
    (ROW[:2].astype(np.uint64), slice(None), ROW[1:]),
    (ROW[:2].astype(np.uint64), ROW[:2].astype(np.uint32)),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: str(key)[:40].replace("\n", ""))
def test_getitem(on_device, key):
    """The index arrays as numpy arrays, and as tensors."""
    parts = key if isinstance(key, tuple) else (key,)
    ours = tuple(Tensor(part) if isinstance(part, np.ndarray) else part for part in parts)
    for form in (key, ours):
        np.testing.assert_array_equal(Tensor(X)[form].numpy(), X[key])


def test_out_of_range(on_device):
    x = Tensor(X)
    for key in (4, -5, (0, 5), ([0, 9],), np.array([-7])):
        with pytest.raises(BoundsError, match="out of range"):
            x[key]
    with pytest.raises(BoundsError, match="too many indices: 4"):
        x[0, 0, 0, 0]
    with pytest.raises(BoundsError, match="mask"):
        x[Tensor([True, False])]
    with pytest.raises(DTypeError, match="float32"):
        x[Tensor([1.0])]
    with pytest.raises(BoundsError):
        x[..., ...]
    assert isinstance(BoundsError("x"), IndexError)


def test_symbolic(on_device):
    position = Variable("p", 0, 3)
    for value in (0, 2, 3):
        at = position.bind(value)
        x = Tensor(X)
        np.testing.assert_array_equal(x[at].numpy(), X[value])
        np.testing.assert_array_equal(x[: at + 1, 1].numpy(), X[: value + 1, 1])
        np.testing.assert_array_equal(x[:, at : at + 2].numpy(), X[:, value : value + 2])
        np.testing.assert_array_equal((x[: at + 1] * 2).sum(0).numpy(), X[: value + 1].sum(0) * 2)
    with pytest.raises(ShapeError, match="step"):
        x[:at:2]


@pytest.mark.parametrize("shape", [(5000,), (9000,), (83, 70), (70, 83, 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_large_masks(on_device, shape, share):
    """Positions are found in chunks; reads, writes and gradients, of elements and of rows."""
    generator = np.random.default_rng(len(shape))
    a = generator.standard_normal(shape, dtype=np.float32)
    m = generator.random(shape[:2]) < share
    x, mask = Tensor(a, requires_grad=True), Tensor(m)
    np.testing.assert_array_equal(mask.nonzero().numpy(), np.argwhere(m))
    np.testing.assert_array_equal(x[mask].numpy(), a[m])
    rows = generator.standard_normal(a[m].shape, dtype=np.float32)
    (x[mask] * Tensor(rows)).sum().backward()
    wanted = np.zeros_like(a)
    wanted[m] = rows
    np.testing.assert_array_equal(x.grad.numpy(), wanted)
    y, v = Tensor(a) * 1.0, Tensor(rows, requires_grad=True)
    y[mask] = v * 2.0
    wanted = a.copy()
    wanted[m] = rows * 2
    np.testing.assert_array_equal(y.numpy(), wanted)
    (y * Tensor(a)).sum().backward()
    np.testing.assert_array_equal(v.grad.numpy(), 2 * a[m])
    y[mask] = Tensor([3.0])
    assert (y.numpy()[m] == 3).all()
    with pytest.raises(ShapeError, match="shape"):
        y[mask] = Tensor.zeros(a[m].shape[0] + 7, *shape[2:])
    with pytest.raises(BoundsError, match="mask at dimension"):
        y[mask.pad([(0, 1)] + [None] * (mask.ndim - 1)).bool()] = v


def test_the_host_reads_one_number_of_a_large_mask(monkeypatch, on_device):
    x = Tensor(np.arange(6000.0, dtype=np.float32)).realize()
    read = Tensor._bytes

    def of_one(tensor):
        assert tensor.numel() == 1
        return read(tensor)

    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "_bytes", of_one)
        found, places = x[x % 3 < 1], (x % 3 < 1).nonzero()
        x[x % 3 < 1] = found * 2
    assert found.shape == (2000,) and places.shape == (2000, 1)
    assert x.numpy()[:7].tolist() == [0, 1, 2, 6, 4, 5, 12]


def test_ones_in_front_of_a_value_do_not_count(on_device):
    """As in numpy and PyTorch: a (1, n) result of a model can be written to a row."""
    x, wanted = Tensor.zeros(3, 2), np.zeros((3, 2), np.float32)
    for key, value in ((0, [[1, 2]]), ((1, 0), [3]), (slice(1, 3), [[[4, 5], [6, 7]]])):
        x[key] = Tensor(value, dtype="float32")
        wanted[key] = np.array(value) if key != (1, 0) else 3
        x[key] = np.array(value)
    assert x.tolist() == wanted.tolist()
    w = Tensor([[8.0, 9.0]], requires_grad=True)
    x[2] = w
    x.sum().backward()
    assert x[2].tolist() == [8, 9] and w.grad.tolist() == [[1, 1]]
    with pytest.raises(ShapeError, match="does not broadcast"):
        x[0] = Tensor.zeros(2, 2)


def test_masks_of_no_elements(on_device):
    empty = Tensor.zeros(2, 0)
    assert empty[Tensor.zeros(2, 0, dtype="bool")].shape == (0,)
    assert empty.nonzero().shape == (0, 2)
    assert Tensor(3).nonzero(size=2).shape == (2, 0)


def test_positions_beyond_int32(compiled):
    """With index arrays, take, and ranges: nothing wraps (and no whole array is ever stored)."""
    with Context(DEVICE=compiled):
        rows, columns = Tensor.arange(65536).reshape(-1, 1), Tensor.arange(65536)
        x = rows.expand(65536, 65536) + columns
        y = (rows * 2).expand(65536, 65536) + columns  # a second read of x would store it: 16 GiB
        found = x[Tensor([65535, 40000, -1]), Tensor([7, 65535, 0])]
        taken = y.take(Tensor([-1, 5]))
        Tensor.realize(found, taken)
        assert (found.tolist(), taken.tolist()) == ([65542, 105535, 65535], [196605, 5])
        assert Tensor.arange(2**33, dtype="float64")[-2:].tolist() == [2**33 - 2, 2**33 - 1]
        assert x.argmax().dtype.name == "int64" and x.argmax(0).dtype.name == "int32"
        for ordered in (lambda: x.flatten().argsort(0), lambda: x.flatten().topk(2)):
            with pytest.raises(ShapeError, match="4294967296 positions"):
                ordered()


@pytest.mark.parametrize("key", [[0], (slice(1),), [True, False, False], (None, [0])], ids=str)
@pytest.mark.parametrize("size", [3, 5000])
def test_leading_extents_of_one_of_a_written_value_are_ignored(key, size):
    """Also with index arrays and masks, as in PyTorch."""
    key = key + [False] * (size - 3) if len(key) == 3 else key
    for value in (Tensor([[[5.0]]]), np.array([[[5.0]]])):
        x = Tensor.zeros(size)
        x[Tensor(key) if isinstance(key, list) else key] = value
        assert x.tolist() == [5.0] + [0.0] * (size - 1)
    with pytest.raises(ShapeError, match="broadcast"):
        Tensor.zeros(size)[[0]] = Tensor([[5.0], [6.0]])
