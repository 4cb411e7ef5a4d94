"""What the whole process shares cannot be modified."""

from __future__ import annotations

import copy
import pickle

import pytest

from minigrad import dtypes
from minigrad.dtype import ALL, DType
from minigrad.graph.node import Op
from minigrad.schedule.expr import Leaf
from minigrad.settings import DEFAULTS


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_a_dtype_cannot_be_changed(dtype: DType) -> None:
    before = [getattr(dtype, name) for name in DType.__slots__]
    assert not hasattr(dtype, "__dict__") and not hasattr(dtype, "__setstate__")
    for name in (*DType.__slots__, "another", "__class__"):
        with pytest.raises(AttributeError, match=r"^cannot change "):
            setattr(dtype, name, 1)
        with pytest.raises(AttributeError, match=r"^cannot change "):
            delattr(dtype, name)
    dtype.__init__()  # calling it again does nothing
    assert [getattr(dtype, name) for name in DType.__slots__] == before


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_a_copy_of_a_dtype_is_the_dtype(dtype: DType) -> None:
    for same in (copy.copy(dtype), copy.deepcopy(dtype), pickle.loads(pickle.dumps(dtype))):
        assert same is dtype


def test_the_table_of_dtypes_cannot_be_changed() -> None:
    for name in ("float32", "default_float", "another"):
        with pytest.raises(AttributeError, match=rf"^cannot set dtypes\.{name}"):
            setattr(dtypes, name, dtypes.int8)
    with pytest.raises(AttributeError, match=r"^cannot set "):
        del dtypes.float32


def test_operations_and_settings_cannot_be_changed() -> None:
    for name in ("_value_", "_name_", "another"):
        with pytest.raises(AttributeError, match=r"^cannot change "):
            setattr(Op.ADD, name, "mul")
    for kind in (Op, Leaf):
        with pytest.raises(AttributeError, match=r"^cannot change "):
            setattr(kind, next(iter(kind)).name, None)
    assert Op.ADD.value == "add" and Op("add") is Op.ADD
    assert pickle.loads(pickle.dumps(Op.ADD)) is Op.ADD and copy.deepcopy(Leaf.LOAD) is Leaf.LOAD
    with pytest.raises(TypeError):
        DEFAULTS["DEBUG"] = 1
