"""Data in and out of tensors."""

from __future__ import annotations

import array
import copy
import pickle
import re
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest
from child import said
from devices import shares_memory

from minigrad import Context, GlobalCounters, Tensor, Variable, dtypes, jit, nn
from minigrad.device import Zeros
from minigrad.dtype import ALL, convert
from minigrad.errors import DTypeError, RangeError, ShapeError
from minigrad.tensor import hostdata


def numpy_dtype(dtype):
    return np.dtype(ml_dtypes.bfloat16 if dtype is dtypes.bfloat16 else dtype.name)


@pytest.mark.parametrize(
    ("data", "shape", "dtype"),
    [
        (3, (), dtypes.int32),
        (2.5, (), dtypes.float32),
        (True, (), dtypes.bool),
        ([1, 2], (2,), dtypes.int32),
        ([1, 2.5], (2,), dtypes.float32),
        ([], (0,), dtypes.float32),
        ([[True, False]], (1, 2), dtypes.bool),
        ([True, 2], (2,), dtypes.int32),
        ([[[1], [2]]], (1, 2, 1), dtypes.int32),
        ([[], []], (2, 0), dtypes.float32),
        ([2**40], (1,), dtypes.int64),
        ([2**63], (1,), dtypes.uint64),
        (range(3), (3,), dtypes.int32),
        (b"ab", (2,), dtypes.uint8),
        (array.array("d", [1, 2]), (2,), dtypes.float64),
        (memoryview(array.array("h", [1, 2])), (2,), dtypes.int16),
        (np.float64(2), (), dtypes.float64),
        (np.int8(2), (), dtypes.int8),
    ],
)
def test_python_data(on_device, data, shape, dtype):
    tensor = Tensor(data)
    assert tensor.shape == shape
    assert tensor.dtype is dtype
    assert tensor.device == on_device
    np.testing.assert_array_equal(
        tensor.numpy().ravel().tolist(),
        np.array(data).ravel().tolist() if not isinstance(data, bytes) else list(data),
    )


@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 0, 3)])
def test_numpy_round_trip(device, dtype, shape):
    rng = np.random.default_rng(1)
    values = (rng.normal(size=shape) * 50).astype(np.float32)
    values = np.array(np.abs(values) if dtype.kind in "bu" else values).astype(numpy_dtype(dtype))
    tensor = Tensor(values, device=device)
    assert tensor.dtype is dtype
    assert tensor.shape == shape
    out = tensor.numpy()
    assert out.dtype == values.dtype
    np.testing.assert_array_equal(out, values)
    assert tensor.tolist() == values.tolist()
    np.testing.assert_array_equal(np.asarray(tensor), values)
    again = Tensor(tensor.tolist(), dtype=dtype, device=device)
    np.testing.assert_array_equal(again.numpy().reshape(shape), values)


def test_numpy_views_and_byte_order(on_device):
    x = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(Tensor(x.T[::2, ::-1]).numpy(), x.T[::2, ::-1])
    np.testing.assert_array_equal(Tensor(x.astype(">i4")).numpy(), x)


def test_a_list_of_tensors_that_want_gradients(on_device):
    w = Tensor(2.0, requires_grad=True)
    for data in ([w, Tensor(1.0)], (w * 3, 1.0), [1.0, w], [[w * 3, -1.0], [0.0, 1.0]]):
        with pytest.warns(UserWarning, match=r"without gradients; use Tensor\.stack") as seen:
            Tensor(data)
        assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match=r"without gradients; use Tensor\.stack") as seen:
        Tensor.ones(2).maximum([1.0, w])
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tensor([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]
        with Tensor.no_grad():
            assert Tensor([w * 3, 1.0]).tolist() == [6, 1]


def test_functions_of_numpy_on_tensors_that_want_gradients(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)
    lost = {"exp": lambda: np.exp(w * 1), "multiply": lambda: np.multiply([1.0, 2.0], w)}
    for name, function in lost.items():
        with pytest.warns(UserWarning, match=rf"np\.{name}.* without gradients; use .*x\.{name}\("):
            assert type(function()) is np.ndarray
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isnan(w).any()
        assert (np.ones(2) * w).is_floating_point()
        assert np.asarray(w).tolist() == np.sqrt(w.detach().square()).tolist() == [1, 2]
        with Tensor.no_grad():
            assert isinstance(np.exp(w.sum()), np.float32)


def test_copies_both_ways(on_device):
    x = np.ones(3, np.float32)
    tensor = Tensor(x)
    x[0] = 5
    out = tensor.numpy()
    out[1] = 7
    assert tensor.tolist() == [1, 1, 1]


def test_dtype_argument(on_device):
    assert Tensor([1.7, -1.7], dtype=dtypes.int8).tolist() == [1, -1]
    assert Tensor(np.array([300, -1]), dtype="uint8").tolist() == [44, 255]
    assert Tensor([1e39], dtype=dtypes.float32).tolist() == [float("inf")]
    assert Tensor([1e-3], dtype="bfloat16").dtype is dtypes.bfloat16


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([[1], [2, 3]], ShapeError),
        ([1, [2]], ShapeError),
        ("text", DTypeError),
        (None, DTypeError),
        (np.array(1j), DTypeError),
        (np.array(["a"]), DTypeError),
        ([1 << 70], RangeError),
        ([object()], DTypeError),
        (np.ma.array([1, 2], mask=[False, True]), DTypeError),
    ],
)
def test_bad_data(on_device, data, error):
    with pytest.raises(error, match=r"Tensor\("):
        Tensor(data)


def test_scalars_out(on_device):
    x = Tensor([2.5])
    assert x.item() == 2.5
    assert float(x) == 2.5
    assert int(x) == 2
    assert bool(x)
    assert f"{x:.2f}" == "2.50"
    assert [10, 20, 30][Tensor(1)] == 20
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        Tensor([1, 2]).item()
    with pytest.raises(ShapeError, match="any"):
        bool(Tensor([1, 2]))
    with pytest.raises(TypeError, match="0-d"):
        len(Tensor(1))
    assert len(Tensor([[1, 2]])) == 1
    assert [row.tolist() for row in Tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    assert 2 in Tensor([1, 2])


def test_data_is_a_memoryview(on_device):
    view = Tensor([[1.0, 2.0], [3.0, 4.0]]).data()
    assert view.shape == (2, 2)
    assert view[1, 0] == 3.0
    halves = Tensor([[1.0], [2.0]], dtype=dtypes.float16).data()
    assert halves.shape == (2, 1) and halves.tobytes() == np.float16([1, 2]).tobytes()
    assert Tensor.zeros(2, 0).data().shape == (2, 0)
    with pytest.raises(DTypeError, match="bfloat16"):
        Tensor([1.0], dtype=dtypes.bfloat16).data()


def test_repr(on_device):
    """Shows values, computing them if necessary, formatted as numpy does."""
    lazy = Tensor([1.0, 2.0]) + 1
    assert repr(lazy) == f"<Tensor (2,) float32 on {on_device}: [2., 3.]>"
    assert lazy.is_realized()
    matrix = Tensor([[1, 2], [3, 4]])
    assert str(matrix) == f"<Tensor (2, 2) int32 on {on_device}:\n[[1, 2],\n [3, 4]]>"
    assert repr(Tensor(2.5, dtype="bfloat16")).endswith("bfloat16 on " + on_device + ": 2.5>")
    assert repr(Tensor.zeros(0)).endswith(": []>")
    assert ": unreadable, x[…]: index 5 at" in repr(Tensor([1, 2])[Tensor([5])])


def test_repr_of_many(on_device):
    """Shows the outermost elements only, and copies only those to the host."""
    x = Tensor.arange(10**6, device=on_device).reshape(1000, 1000)
    lines = repr(x).splitlines()
    assert len(lines) == 8 and lines[4].strip() == "...,"
    wanted = np.array2string(np.arange(10**6).reshape(1000, 1000), separator=", ")
    assert repr(x).partition("\n")[2].split() == (wanted + ">").split()
    for shape in ((7, 200), (8, 200), (3, 4, 100)):
        y = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8
        wanted = np.array2string(y, separator=", ", threshold=1000, edgeitems=3)
        assert repr(Tensor(y)).partition("\n")[2] == wanted + ">", shape


def test_repr_in_a_notebook(on_device):
    """The repr, with a histogram whose bar heights are counts of values."""
    x = Tensor([0.0] * 10 + [1.0] * 5 + [4.0, float("nan")])
    shown = x._repr_html_()
    heights = [int(height) for height in re.findall(r'<rect [^>]*height="(\d+)"', shown)]
    assert len(heights) == 32 and sum(map(bool, heights)) == 3
    assert (heights[0], heights[8], heights[-1]) == (40, 20, 4)
    assert "0 … 4, mean 0.5625; 1 of them not finite" in shown
    assert f"Tensor (17,) float32 on {on_device}" in shown and "<pre>[ 0.," in shown
    assert "<svg" not in Tensor([2.0, 2.0])._repr_html_() and "[2., 2.]" in repr(Tensor([2.0, 2.0]))
    assert "<svg" in Tensor([1, 2], dtype="bfloat16")._repr_html_()
    assert "of every 4th" in Tensor.arange(1 << 18)._repr_html_()
    many = Tensor([1e308, -1e308, 0.0], dtype="float64")._repr_html_()
    assert many.count('height="40"/>') == 3


def test_repr_while_a_step_is_captured(on_device):
    """It computes nothing: a computation would become part of the step."""
    seen = []

    @jit
    def step(x):
        y = x + 1
        seen.append(repr(y))
        return y * 2

    for _ in range(4):
        result = step(Tensor([1.0]).realize())
    assert result.item() == 4
    assert seen and all(", lazy>" in text for text in seen)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_pickle_and_deepcopy(on_device, clone):
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    (x * x).sum().backward()
    y = clone(x)
    assert y.tolist() == x.tolist() and y.requires_grad
    assert x.grad is not None and y.grad is None  # as PyTorch pickles tensors and copies parameters
    with Tensor.no_grad():
        y += 1
    assert x.tolist() == [[1, 2]]
    assert y.tolist() == [[2, 3]]


def test_a_pickle_from_a_device_that_is_not_here(on_device):
    """It is loaded on the default device."""
    stored = pickle.dumps(Tensor([1.0, 2.0])).replace(on_device.encode(), b"X" * len(on_device))
    clone = pickle.loads(stored)
    assert (clone.device, clone.tolist()) == (on_device, [1.0, 2.0])


def test_zeros_take_memory_when_somebody_looks(on_device):
    used = GlobalCounters.mem_used
    kinds = ("float32", "float16")
    zeros = [Tensor.zeros(300, 1000, dtype=kind, requires_grad=True) for kind in kinds]
    assert all(tensor.is_realized() for tensor in zeros)
    if shares_memory(on_device):
        assert GlobalCounters.mem_used == used
    for tensor in zeros:
        assert not tensor.numpy().any()
        with Tensor.no_grad():
            tensor.assign(tensor + 1).realize()
        assert (tensor.numpy() == 1).all()
    del zeros, tensor  # so that the next ones get memory that is not zero
    for _ in range(3):
        again = Tensor.zeros(300, 1000, requires_grad=True)
        assert not again.detach().numpy().any()
        with Tensor.no_grad():
            again.assign(7.0).realize()
    assert (Tensor.full((2, 3), -0.0, requires_grad=True).numpy().view(np.int32) < 0).all()


def test_zeros_under_guard(on_device):
    with Context(GUARD=1):
        zeros = Tensor.zeros(33, requires_grad=True)
        assert (zeros + 1).tolist() == [1.0] * 33


def test_two_threads_look_at_zeros_for_the_first_time(compiled):
    for _ in range(20):
        memory = Zeros(compiled, dtypes.float32, 1000)
        start, found = threading.Barrier(4), []

        def look(memory=memory, start=start, found=found):
            start.wait()
            found.append(memory.memory)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and len(set(found)) == 1


def test_symbolic_shape_out(on_device):
    length = Variable("length", 1, 10).bind(3)
    x = Tensor(np.arange(40, dtype=np.float32).reshape(4, 10))[:, :length] * 2
    expected = np.arange(40, dtype=np.float32).reshape(4, 10)[:, :3] * 2
    np.testing.assert_array_equal(x.numpy(), expected)
    assert x.tolist() == expected.tolist()


def test_import_is_light():
    code = (
        "import sys, minigrad\n"
        "heavy = {'numpy', 'llvmlite', 'pyopencl', 'ml_dtypes', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    said("-c", code)


SIZES = {
    "sum": lambda x, i: x.sum(i(1)), "mean": lambda x, i: x.mean((i(0), i(1))),
    "reshape": lambda x, i: x.reshape(i(6), i(-1)), "expand": lambda x, i: x[:1].expand(i(2), 3, 4),
    "index": lambda x, i: x[i(1), i(0) : i(2)], "permute": lambda x, i: x.permute(i(2), i(0), i(1)),
    "softmax": lambda x, i: x.softmax(i(1)), "split": lambda x, i: x.split(i(1), i(2))[1],
    "sizes": lambda x, i: x.split([i(1), i(3)], i(2))[1], "chunk": lambda x, i: x.chunk(i(2), 2)[0],
    "topk": lambda x, i: x.topk(i(2))[0], "pad": lambda x, i: x.pad((i(1), i(2))),
    "pairs": lambda x, i: x.pad(((i(1), 0), None, (0, i(2)))), "roll": lambda x, i: x.roll(i(1), 0),
    "repeat": lambda x, i: x.repeat(i(2), 1, 1), "flip": lambda x, i: x.flip(i(0)),
    "interleave": lambda x, i: x.repeat_interleave(i(2), i(1)), "tril": lambda x, i: x.tril(i(1)),
    "cat": lambda x, i: x.cat(x, dim=i(0)), "one_hot": lambda x, i: x.int().one_hot(i(24)),
    "arange": lambda x, i: Tensor.arange(i(1), i(9), i(2)), "eye": lambda x, i: Tensor.eye(i(3)),
    "pool": lambda x, i: x.max_pool2d(i(2), stride=i(1)), "add": lambda x, i: x + i(2),
    "conv": lambda x, i: x.conv2d(Tensor.ones(1, 2, 2, 2), padding=(i(1), i(0)), stride=i(2)),
    "linear": lambda x, i: nn.Linear(i(4), i(2))(x) * 0, "zeros": lambda x, i: Tensor.zeros(i(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_numpys_whole_numbers_are_numbers(name: str) -> None:
    """Sizes, axes and positions that are numpy integers: `table.max() + 1`, `len(a) // n`."""
    x = Tensor(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    plain = SIZES[name](x, int)
    for kind in (np.int64, np.uint8 if "reshape" not in name else np.int32):
        found = SIZES[name](x, kind)
        assert found.dtype is plain.dtype and all(type(n) is int for n in found.shape)
        np.testing.assert_array_equal(found.numpy(), plain.numpy())


def test_whole_numbers_become_bytes_together(monkeypatch):
    """A call for each number was a third of all calls in a server's step."""
    asked = []

    def noted(value, dtype):
        asked.append(value)
        return convert(value, dtype)

    monkeypatch.setattr(hostdata, "convert", noted)
    for name in ("uint8", "int8", "int16", "int32", "int64", "float32", "float64"):
        assert Tensor([[1, 2], [True, 100]], dtype=name).tolist() == [[1, 2], [1, 100]]
    assert asked == []
    assert Tensor([1, 2.9, float("nan"), 1e30, -1e30], dtype="int16").tolist() == [
        1, 2, 0, 2**15 - 1, -(2**15)]  # fmt: skip
    assert Tensor([-1, 2**40], dtype="int64").tolist() == [-1, 2**40]
    assert len(asked) == 5
    with pytest.raises(RangeError, match="300 is out of range for uint8, which holds 0 … 255; use"):
        Tensor([1, 300], dtype="uint8")
