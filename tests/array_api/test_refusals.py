"""Arguments that the standard does not allow raise; and masks without dimensions work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import OTHER

import minigrad.array_api as xp
from minigrad import Tensor
from minigrad.array_api import linalg
from minigrad.errors import DeviceError

Make = Callable[..., Any]


def z(*shape: int) -> Any:
    return xp.zeros(shape)


def ints(*values: Any) -> Any:
    return xp.asarray(list(values))


FLAGS = [True, False, True]
CASES: dict[str, Make] = {
    "vecdot, 3 and 1": lambda: xp.vecdot(z(3), z(1)),
    "vecdot, 1 and 3 in rows": lambda: xp.vecdot(z(2, 1), z(2, 3)),
    "vecdot of numbers": lambda: xp.vecdot(z(), z()),
    "vecdot of flags": lambda: xp.vecdot(xp.asarray(FLAGS), xp.asarray(FLAGS)),
    "vecdot, which axis": lambda: xp.vecdot(z(3), z(3, 3), axis=0),
    "cross, 3 and 1": lambda: linalg.cross(z(2, 3), z(2, 1)),
    "cross of 2": lambda: linalg.cross(z(2, 2), z(2, 2)),
    "cross, which axis": lambda: linalg.cross(z(3), z(3, 3), axis=0),
    "cross of flags": lambda: linalg.cross(xp.asarray(FLAGS), xp.asarray(FLAGS)),
    "take by a matrix": lambda: xp.take(z(3, 4), ints([0, 1]), axis=0),
    "take by a number": lambda: xp.take(z(3, 4), xp.asarray(0), axis=0),
    "take by floats": lambda: xp.take(z(3, 4), z(2), axis=0),
    "take by flags": lambda: xp.take(z(3, 4), xp.asarray(FLAGS), axis=0),
    "take without an axis": lambda: xp.take(z(3, 4), ints(0)),
    "take_along_axis by a vector": lambda: xp.take_along_axis(z(3, 4), ints(0), axis=0),
    "take_along_axis by floats": lambda: xp.take_along_axis(z(3, 4), z(1, 4), axis=0),
    "repeat by 2 for 3": lambda: xp.repeat(z(3), ints(1, 2)),
    "repeat by less than 0": lambda: xp.repeat(z(3), -1),
    "repeat by some less than 0": lambda: xp.repeat(z(3), ints(1, -1, 1)),
    "repeat by a column": lambda: xp.repeat(z(3), ints([1], [1], [1])),
    "repeat by floats": lambda: xp.repeat(z(3), z(3)),
    "repeat by a float": lambda: xp.repeat(z(3), 1.5),
    "repeat by flags": lambda: xp.repeat(z(3), xp.asarray(FLAGS)),
    "tensordot over 3 of 2": lambda: xp.tensordot(z(3, 4), z(3, 4), axes=3),
    "tensordot over −1": lambda: xp.tensordot(z(3, 4), z(3, 4), axes=-1),
    "tensordot, an axis twice": lambda: xp.tensordot(z(3, 3), z(3, 3), axes=((0, 0), (0, 1))),
    "tensordot of flags": lambda: xp.tensordot(xp.asarray(FLAGS), xp.asarray(FLAGS), axes=1),
    "concat of nothing": lambda: xp.concat([]),
    "stack of 3 and 1": lambda: xp.stack([z(3), z(1)]),
    "permute_dims by nothing": lambda: xp.permute_dims(z(3, 4), ()),
    "permute_dims by one of two": lambda: xp.permute_dims(z(3, 4), (0,)),
    "broadcast_to −1": lambda: xp.broadcast_to(z(3), (-1, 3)),
    "broadcast_to less": lambda: xp.broadcast_to(z(3), (1,)),
    "squeeze twice": lambda: xp.squeeze(z(1, 1), (0, 0)),
    "flip twice": lambda: xp.flip(z(3, 4), axis=(0, -2)),
    "sum twice": lambda: xp.sum(z(3, 4), axis=(0, 0)),
    "moveaxis twice": lambda: xp.moveaxis(z(3, 4), (0, 0), (0, 1)),
    "moveaxis of a number": lambda: xp.moveaxis(z(), 0, 0),
    "searchsorted in a matrix": lambda: xp.searchsorted(z(3, 4), z(3)),
    "searchsorted by 2 for 3": lambda: xp.searchsorted(z(3), z(3), sorter=ints(0, 1)),
    "searchsorted by floats": lambda: xp.searchsorted(z(3), z(3), sorter=z(3)),
    "linspace of −1": lambda: xp.linspace(0, 1, -1, endpoint=False),
    "eye of −1": lambda: xp.eye(-1),
    "diff of −1": lambda: xp.diff(z(3), n=-1),
    "meshgrid of a matrix": lambda: xp.meshgrid(z(3, 4), z(3)),
    "tile by a float": lambda: xp.tile(z(3), (1.5,)),  # type: ignore[arg-type]
    "tile by −1": lambda: xp.tile(z(3), (-1,)),
    "outer of a matrix": lambda: linalg.outer(z(3, 4), z(3)),
    "outer of a number": lambda: linalg.outer(z(), z(3)),
    "flip along a float": lambda: xp.flip(z(3), axis=0.0),  # type: ignore[arg-type]
    "squeeze of 3": lambda: xp.squeeze(z(3), axis=0),
    "nonzero of a number": lambda: xp.nonzero(z()),
    "T of a vector": lambda: z(3).T,
    "a stream": lambda: z(3).to_device(z(3).device, stream=1),
    "a float as an index": lambda: [1, 2][z()],
    "iteration over a number": lambda: iter(z()),
    "floats into integers": lambda: ints(1, 2).__setitem__(0, z()),
    "integers that become floats": lambda: ints(1, 2).__iadd__(z(2)),
    "integers that become more": lambda: ints(1, 2).__iadd__(ints([1, 2], [3, 4])),
    "sin of a number": lambda: xp.sin(1.0),  # type: ignore[arg-type]
    "iinfo of floats": lambda: xp.iinfo(xp.float32),
    "finfo of integers": lambda: xp.finfo(xp.int8),
    "finfo of a text": lambda: xp.finfo("float32"),
    "isdtype of an unknown kind": lambda: xp.isdtype(xp.int8, "text"),
    "where between numbers": lambda: xp.where(xp.asarray(FLAGS), 1.0, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name: str, on_device: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        CASES[name]()


# Generated from valid calls, with one argument replaced → why each raises. They gave a result, or
# raised some internal error (an attribute that lists do not have, a captured call).
REFUSED = {
    "xp.sum([1.0])": "sum(x=[1.0]): expected an array; use asarray(…)",
    "xp.sum(z(3), axis='a')": "sum(axis='a'): expected an int or several",
    "xp.sum(z(3), keepdims=1)": "sum(keepdims=1): expected True or False",
    "xp.sum(z(3), axes=0)": "unexpected keyword argument 'axes'",
    "xp.unique_all(Tensor([1.0]))": "(x=…): expected an array, got minigrad.tensor.Tensor",
    "xp.matmul(z(3), 'a')": "expected an array or a number as operand, got str",
    "xp.add(z(3), xp.int32)": "expected an array or a number as operand, got DType",
    "xp.sort(z(3), descending='no')": "sort(descending='no'): expected True or False",
    "xp.linspace(0, 1, 'a')": "linspace(num='a'): expected an int",
    "xp.linspace(0, 1, 2, endpoint=[])": "linspace(endpoint=[]): expected True or False",
    "xp.eye([3])": "eye(n_rows=[3]): expected an int",
    "xp.zeros({3})": "zeros(shape={3}): expected an int or several",
    "xp.zeros(b'a')": "zeros(shape=b'a'): expected an int or several",
    "xp.zeros(3, dtype=0)": "'float32', got 0",
    "xp.asarray([1], dtype='')": "unknown dtype ''",
    "xp.zeros(3, device='')": "unknown device ''",
    "xp.zeros_like(z(3), device=0)": "device: expected a name such as 'CPU', got 0",
    "xp.asarray(z(3), device=xp.int32)": "expected a name such as 'CPU', got",
    "z(3).to_device(Tensor([1]))": "expected a name such as 'CPU', got",
    "xp.asarray([1], copy='no')": "asarray(copy='no'): expected True or False",
    "xp.concat(5)": "concat(arrays=5): expected a list of arrays",
    "xp.stack([z(3), 1])": "expected a list of arrays",
    "xp.meshgrid(z(3), [1])": "meshgrid: expected an array, got list",
    "xp.broadcast_arrays(z(3), None)": "broadcast_arrays: expected an array, got NoneType",
    "xp.broadcast_to(z(3), 3)": "broadcast_to(shape=3): expected several ints, as (2, 3)",
    "xp.reshape(z(4), 'ab')": "reshape(shape='ab'): expected several ints, as (2, 3)",
    "xp.tile(z(4), 2)": "tile(repetitions=2): expected several ints, as (2, 3)",
    "xp.take(z(3), [0])": "take(indices=[0]): expected an array",
    "xp.diff(z(3), prepend=0.0)": "diff(prepend=0.0): expected an array",
    "xp.searchsorted(z(3), z(3), side=None)": "searchsorted(side=None): expected a string",
    "xp.clip(z(3), max=xp.asarray(FLAGS))": "clip: expected one of",
    "xp.where([True], z(1), z(1))": "where(condition=[True]): expected an array",
    "xp.isdtype('float32', 'numeric')": "isdtype('float32'): expected a dtype",
    "xp.isdtype(xp.int8, 3)": "expected a dtype or an array, got 3",
    "xp.can_cast(xp.int8, 3)": "expected a dtype or an array, got 3",
    "linalg.svd(z(2, 2), full_matrices=0)": "svd(full_matrices=0): expected True or False",
    "linalg.pinv(z(2, 2), rtol='a')": "pinv(rtol='a'): expected a number or an array",
    "linalg.matrix_rank(z(2, 2), rtol=z(2))": "shape (2,) does not broadcast to ()",
    "linalg.solve(z(2, 2), z())": "expected equal numbers of rows, got shapes (2, 2) and ()",
    "linalg.solve(z(2, 2), z(2, 2).to_device(OTHER))": "linalg: tensors are on",
}


@pytest.mark.parametrize("call", REFUSED)
def test_a_message_says_what_was_expected(call: str, on_device: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, DeviceError)) as caught:
        eval(call, globals() | {"Tensor": Tensor, "OTHER": OTHER})
    assert REFUSED[call] in str(caught.value)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_a_mask_without_dimensions(flag: bool, shape: tuple[int, ...], on_device: str) -> None:
    given = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    x, mask = xp.asarray(given), xp.asarray(flag)
    found = x[mask]
    assert found.shape == given[np.asarray(flag)].shape
    np.testing.assert_array_equal(np.asarray(found), given[np.asarray(flag)])
    x[mask] = 7.0
    given[np.asarray(flag)] = 7.0
    np.testing.assert_array_equal(np.asarray(x), given)


def test_what_must_go_on_working(on_device: str) -> None:
    """Valid calls that are similar to refused ones."""
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = xp.asarray(given)
    assert xp.expand_dims(x, 0).shape == xp.expand_dims(x, axis=0).shape == (1, 3, 4)
    assert xp.expand_dims(x, -1).shape == (3, 4, 1)
    for counts in ([2, 0, 1], [2]):
        np.testing.assert_array_equal(
            np.asarray(xp.repeat(x, ints(*counts), axis=0)), np.repeat(given, counts, 0)
        )
    assert xp.repeat(x, xp.asarray(2), axis=1).shape == (3, 8)
    assert xp.repeat(z(0), xp.asarray(2)).shape == (0,)
    assert xp.vecdot(x, z(4)).shape == (3,) and xp.vecdot(z(2, 1, 4), x).shape == (2, 3)
    assert linalg.cross(z(2, 3), z(3)).shape == (2, 3)
    np.testing.assert_array_equal(
        np.asarray(xp.take(x, ints(2, 0), axis=0)), given[[2, 0]]
    )
    capsule = x.__dlpack__(stream=None, max_version=(1, 0), dl_device=(1, 0), copy=True)
    np.testing.assert_array_equal(np.asarray(xp.from_dlpack(Lent(capsule))), given)


class Lent:
    """An array of another library, which gives one capsule."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)
