"""In-place writes: a lazy tensor reads its sources' values at the time it was created."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, Variable, dtypes
from minigrad.errors import DeviceError, DTypeError, ShapeError


def ones(*shape):
    return Tensor(np.ones(shape, np.float32))


def test_write_is_in_place(on_device):
    x = ones(3)
    memory = x.raw.arg
    x.assign(x + 1)
    assert x.tolist() == [2, 2, 2]
    x += 1
    x *= 2
    assert x.tolist() == [6, 6, 6]
    assert x.raw.arg is memory


def test_lazy_reader_sees_the_old_value(on_device):
    x = ones(3)
    before = x * 10
    x += 1
    after = x * 10
    assert x.tolist() == [2, 2, 2]
    assert before.is_realized(), "what reads overwritten memory is computed in the same program"
    assert before.tolist() == [10, 10, 10]
    assert after.tolist() == [20, 20, 20]


def test_several_versions(on_device):
    x = ones(1)
    versions = []
    for step in range(4):
        versions.append(x + 0.5)
        x.assign(x * 2 + step)
    assert [v.item() for v in versions[::-1]] == [12.5, 5.5, 2.5, 1.5]
    assert x.item() == 27


def test_two_writes_that_read_each_other(on_device):
    a, b = Tensor([1.0]), Tensor([10.0])
    a_old = a.raw.arg
    a.assign(b + 1)
    b.assign(a + 1)
    Tensor.realize(a, b)
    assert (a.item(), b.item()) == (11, 12)
    a.assign(b.detach()), b.assign(Tensor([3.0]))
    assert (a.item(), b.item()) == (12, 3)
    assert a.raw.arg is a_old


def test_equal_lazy_tensors_do_not_alias(on_device):
    source = ones(2)
    a, b = source * 2, source * 2
    assert a.raw is b.raw
    a.realize()
    a += 1
    assert a.tolist() == [3, 3]
    assert b.tolist() == [2, 2]
    zeros, others = Tensor.zeros(2), Tensor.zeros(2)
    Tensor.realize(zeros, others)
    zeros += 1
    others += 2
    assert zeros.tolist() == [1, 1]
    assert others.tolist() == [2, 2]


def test_a_replaced_write_never_runs(on_device):
    x = ones(2)
    x.assign(x + 1)
    reader = x * 10
    x.assign(Tensor([7.0, 8.0]))
    assert reader.tolist() == [20, 20]
    assert x.tolist() == [7, 8]


def test_writes_through_lazy_bases(on_device):
    x = Tensor.arange(6).reshape(2, 3)
    x[0] += 1
    x[:, ::2] = 7
    assert x.tolist() == [[7, 2, 7], [7, 4, 7]]


def test_write_casts_and_broadcasts(on_device):
    x = Tensor([[1, 2], [3, 4]])
    x.assign(Tensor([1.9, 2.9]))
    assert x.tolist() == [[1, 2], [1, 2]]
    x[0] = 9.7
    assert x.tolist() == [[9, 9], [1, 2]]
    with pytest.raises(ShapeError, match=r"\(3,\).*\(2, 2\)"):
        x.assign(Tensor([1, 2, 3]))
    with pytest.raises(DTypeError, match="float32"):
        x += 0.5
    with pytest.raises(ShapeError, match="in-place"):
        x[0] += Tensor([[1, 2], [1, 2]])


def test_write_to_another_device(device, other):
    with pytest.raises(DeviceError, match="to"):
        Tensor([1.0], device=device).assign(Tensor([1.0], device=other))


def test_to_copies(device, other):
    x = Tensor([1.0, 2.0], device=device)
    y = (x + 1).to(other)
    assert y.device == other
    assert (y * 2).tolist() == [4, 6]
    x += 5
    assert y.tolist() == [2, 3]
    assert x.to(device) is x
    for z in (x.to(other, dtypes.int32), x.to(device=other, dtype="int32"), x.to(dtype="int32")):
        assert z.dtype is dtypes.int32 and z.tolist() == [6, 7]
    assert x.to(other, "int32").device == other and x.to(dtype="int32").device == device


def test_a_copy_of_what_is_being_written(device, other):
    """Realizing a copy of a tensor with a pending write runs the write too; the copy follows it."""
    x = Tensor([1.0, 2.0], device=device)
    x += 5
    assert (x.to(other) * 2).tolist() == [12, 14] and x.tolist() == [6, 7]
    y = x.to(other) * 2
    x *= 3
    assert y.tolist() == [12, 14] and x.tolist() == [18, 21]
    x += 1
    assert (x.T.to(other) + 1).to(device).tolist() == [20, 23] and x.tolist() == [19, 22]


def test_set_data_runs_no_program(on_device):
    x = Tensor(1.0)
    before = x + 1
    before.realize()
    calls = GlobalCounters.program_calls
    x.set_data(5.0)
    assert GlobalCounters.program_calls == calls
    assert x.item() == 5
    late = x + 1
    x.set_data(6.0)
    assert late.item() == 6
    assert (x + 1).item() == 7
    with pytest.raises(ShapeError, match="expected the tensor's dtype and shape"):
        x.set_data([1.0])


def test_a_number_is_data(on_device):
    """A new learning rate does not need a new program."""
    lr, x = Tensor(0.5), ones(3)
    for rate in (0.1, 0.2, 0.3, 0.4):
        lr.assign(rate)
        x.assign(x - lr)
        x.realize()
        if rate == 0.2:
            compiled = GlobalCounters.programs_compiled
    assert GlobalCounters.programs_compiled == compiled
    np.testing.assert_allclose(x.numpy(), 0, atol=1e-6)


def test_cache_with_symbolic_offset(on_device):
    cache = Tensor(np.zeros((2, 8), np.float32))
    position = Variable("position", 0, 7)
    compiled = 0
    for step in range(8):
        at = position.bind(step)
        cache[:, at : at + 1] = Tensor([[step + 1.0], [-step]])
        total = cache[:, : at + 1].sum(1)
        wanted = [sum(range(1, step + 2)), -sum(range(step + 1))]
        assert total.tolist() == wanted
        if step == 2:
            compiled = GlobalCounters.programs_compiled
    assert GlobalCounters.programs_compiled == compiled
    assert cache[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_deep_graphs(on_device):
    x = Tensor([1.0])
    y = x
    for _ in range(3000):
        y = y + 1 if y is x else y * 1.0 + 0.0
    z = x
    for _ in range(3000):
        z = z.reshape(1, 1).reshape(1)
    assert z.item() == 1
    z += 1
    assert y.raw.op.name == "ADD"


def test_memory_goes_with_the_tensor(on_device):
    from minigrad.tensor import live_tensors

    gc.collect()
    links, lazy = len(live_tensors.by_node), len(live_tensors.lazy_links)
    x = ones(10)
    y = [x + i for i in range(20)]
    y[0].realize()
    del x, y
    gc.collect()
    assert len(live_tensors.by_node) == links
    assert len(live_tensors.lazy_links) == lazy


def test_last_write_wins(on_device):
    rng = np.random.default_rng(3)
    places = rng.integers(0, 20, 300)
    values = rng.normal(size=(300, 2)).astype(np.float32)
    a = np.zeros((20, 2), np.float32)
    a[places] = values
    x = Tensor.zeros(20, 2).contiguous()
    x[Tensor(places)] = Tensor(values)
    np.testing.assert_array_equal(x.numpy(), a)
