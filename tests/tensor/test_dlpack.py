"""Sharing memory with numpy and PyTorch through DLPack: CPU tensors share, other devices copy."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from devices import shares_memory

from minigrad import Tensor, dtypes, jit
from minigrad.errors import DTypeError, JitError
from minigrad.settings import Context

NAMES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
         "float16", "float32", "float64")  # fmt: skip


def address(array) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_share_memory_and_keep_dtypes(device, name):
    given = np.arange(6).reshape(2, 3).astype(name)
    tensor = Tensor.from_dlpack(given, device=device)
    assert tensor.dtype.name == name and tensor.shape == (2, 3) and tensor.device == device
    back = np.from_dlpack(tensor)
    assert (address(back) == address(given)) == shares_memory(device)
    assert back.dtype == given.dtype
    np.testing.assert_array_equal(back, given)


def test_writes_are_seen_on_both_sides_of_shared_memory_only(device):
    given = np.zeros((2, 2), np.float32)
    tensor = Tensor.from_dlpack(given, device=device)
    given[0, 1] = 3
    shared = shares_memory(device)
    assert tensor.tolist() == [[0, 3 if shared else 0], [0, 0]]
    tensor.assign(tensor + 1).realize()
    np.testing.assert_array_equal(given, [[1, 4], [1, 1]] if shared else [[0, 3], [0, 0]])
    tensor[1, 0] = 7
    tensor.realize()
    assert tensor[1, 0].item() == 7 and given[1, 0] == (7 if shared else 0)


def test_writes_are_made_at_once_as_the_tensor_may_go_before_somebody_looks(on_device):
    given = np.zeros(3, np.float32)
    tensor, lender = Tensor.from_dlpack(given), Tensor([1.0, 2.0])
    lent = np.from_dlpack(lender)
    tensor += 1
    tensor[1:] = 5
    lender[0] = 4
    del tensor, lender
    shared = shares_memory(on_device)
    assert given.tolist() == ([1, 5, 5] if shared else [0, 0, 0])
    assert lent.tolist() == ([4, 2] if shared else [1, 2])


@pytest.mark.parametrize("write", [lambda x: x.add_(1), lambda x: x.set_data([3.0, 4.0])])
@pytest.mark.parametrize(
    "same", [Tensor, lambda x: x.contiguous(), lambda x: (x * 0).assign(x), lambda x: x + 0]
)
def test_shared_memory_is_that_of_one_tensor(on_device, same, write):
    """Other tensors of equal value do not share it: writes to them are not seen by the host."""
    given = np.array([2.0, 3.0], np.float32)
    tensor, lender = Tensor.from_dlpack(given), Tensor([2.0, 3.0])
    lent = np.from_dlpack(lender)
    for one, array in ((tensor, given), (lender, lent)):
        other = same(one)
        write(other)
        assert other.tolist() == [3, 4] and one.tolist() == array.tolist() == [2, 3]
        again = np.from_dlpack(same(one))
        one -= 1
        shared = shares_memory(on_device)
        assert array.tolist() == ([1, 2] if shared else [2, 3]) and again.tolist() == [2, 3]


@pytest.mark.parametrize("same", [Tensor, lambda x: x.contiguous(), lambda x: x.clone()])
def test_the_host_writes_to_the_tensor_that_is_lent_only(on_device, same):
    lender = Tensor([2.0, 3.0]).clone()
    other, view = same(lender), lender[1:]
    np.from_dlpack(lender)[1] = 5
    shared = shares_memory(on_device)
    assert other.tolist() == [2, 3] and lender.tolist() == [2, 5 if shared else 3]
    assert view.tolist() == [5 if shared else 3]


def test_who_shares_a_leafs_memory_and_is_lent_keeps_its_gradient(on_device):
    leaf = Tensor([2.0, 3.0], requires_grad=True)
    computed = (leaf * leaf).realize()
    same = computed.contiguous()
    np.from_dlpack(computed)
    np.from_dlpack(same)
    assert same.sum().gradient(leaf)[0].tolist() == [4, 6]


def test_what_cannot_be_shared_is_copied_or_refused(device):
    gaps = np.arange(10)[::2]
    fixed = np.arange(3)
    fixed.flags.writeable = False
    raw = np.zeros(13, np.uint8)[1:].view(np.float32)  # not aligned to its elements
    wide = np.broadcast_to(np.arange(3), (2, 3))
    base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    views = (base.transpose(2, 0, 1), base[::-1], base[:, :, ::-1].T, base[:, 1:])
    for given in (gaps, fixed, raw, wide, *views):
        np.testing.assert_array_equal(Tensor.from_dlpack(given, device=device).numpy(), given)
        with pytest.raises(BufferError, match="cannot share an array"):
            Tensor.from_dlpack(given, device=device, copy=False)
    given = np.ones(3)
    copied = Tensor.from_dlpack(given, device=device, copy=True)
    assert address(np.from_dlpack(copied)) != address(given)


def test_without_a_copy_memory_is_shared_or_nothing_is_given(device):
    given = np.ones(3)
    if shares_memory(device):
        tensor = Tensor.from_dlpack(given, device=device, copy=False)
        assert address(np.from_dlpack(tensor, copy=False)) == address(given)
        return
    with pytest.raises(BufferError, match=f"cannot share .* on {device}"):
        Tensor.from_dlpack(given, device=device, copy=False)
    with pytest.raises(BufferError, match=f"a tensor on {device}, which is not the host"):
        Tensor(given, device=device).__dlpack__(copy=False)


def test_the_tensor_and_the_consumer_keep_the_memory_alive(on_device):
    tensor = Tensor.from_dlpack(np.full(1000, 5.0))
    lent = np.from_dlpack(Tensor([1.0, 2.0, 3.0]))
    gc.collect()
    junk = [Tensor([9.0, 9.0, 9.0]).realize() for _ in range(50)]
    assert tensor.sum().item() == 5000 and lent.tolist() == [1, 2, 3] and junk


def test_capsules_that_nobody_consumes_and_capsules_used_twice(on_device):
    capsules = []
    for version in (None, (0, 8), (1, 0)):
        tensor = Tensor([1.0, 2.0]).realize()
        memory = weakref.ref(tensor.raw.arg)
        capsules.append(tensor.__dlpack__(max_version=version))
        unused = Tensor([3.0]).realize()
        gone = weakref.ref(unused.raw.arg)
        unused.__dlpack__(max_version=version)
        del tensor, unused
        gc.collect()
        assert (memory() is not None) == shares_memory(on_device) and gone() is None
    for capsule in capsules:
        assert Tensor.from_dlpack(capsule).tolist() == [1, 2]
        with pytest.raises(BufferError, match="already used"):
            Tensor.from_dlpack(capsule)


def test_views_empty_tensors_and_numbers(on_device):
    base = Tensor([[1, 2], [3, 4]])
    np.testing.assert_array_equal(np.from_dlpack(base.T), [[1, 3], [2, 4]])
    row = base[0]
    np.from_dlpack(row)[0] = 9  # writes to a copy: neither the base nor the view changes
    assert row.tolist() == base[0].tolist() == [1, 2]
    with pytest.raises(BufferError, match="cannot share a view"):
        np.from_dlpack(row, copy=False)
    assert np.from_dlpack(Tensor.zeros(0, 3)).shape == (0, 3)
    assert np.from_dlpack(Tensor(2.5)).item() == 2.5
    assert Tensor.from_dlpack(np.zeros((0, 2), np.int8)).shape == (0, 2)
    assert Tensor.from_dlpack(np.array(4)).item() == 4


def test_any_device_can_be_lent(device):
    tensor = Tensor([[1.0, 2.0]], device=device)
    assert np.from_dlpack(tensor).tolist() == [[1, 2]]
    assert Tensor.from_dlpack(tensor, device=device).tolist() == [[1, 2]]


def test_errors(on_device):
    with pytest.raises(DTypeError, match="got complex64"):
        Tensor.from_dlpack(np.zeros(2, np.complex64))
    with pytest.raises(TypeError, match="an object with __dlpack__"):
        Tensor.from_dlpack([1, 2])
    with pytest.raises(BufferError, match="stream"):
        Tensor([1.0]).__dlpack__(stream=1)
    with pytest.raises(BufferError, match="dl_device"):
        Tensor([1.0]).__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="copied"):
        np.asarray(Tensor([1.0]), copy=False)

    @jit
    def step(x):
        y = (x + 1).realize()
        np.from_dlpack(y)
        return y

    step(Tensor([1.0]))
    with pytest.raises(JitError):
        step(Tensor([1.0]))


def test_guarded_memory_is_lent_too(on_device):
    with Context(GUARD=1):
        assert np.from_dlpack(Tensor([1.0, 2.0]) * 2).tolist() == [2, 4]


def test_pytorch(on_device):
    torch = pytest.importorskip("torch")
    given = torch.ones(4, dtype=torch.bfloat16)
    tensor, part = Tensor.from_dlpack(given), Tensor.from_dlpack(given[None, 1:])
    assert tensor.dtype is dtypes.bfloat16
    shared = shares_memory(on_device)
    assert (torch.from_dlpack(tensor).data_ptr() == given.data_ptr()) == shared
    given[1] = 9
    assert part.tolist() == [[9 if shared else 1, 1, 1]]
    assert torch.from_dlpack(Tensor([1, 2, 3])).tolist() == [1, 2, 3]
