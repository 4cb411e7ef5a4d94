"""Conversions between dtypes."""

from __future__ import annotations

from typing import Any, Self

from minigrad.dtype import DType, dtypes, resolve
from minigrad.errors import DTypeError, expect, misfit
from minigrad.graph import build
from minigrad.graph.axes import merge_axes, repeat_along, split_axis
from minigrad.graph.node import Node, Op
from minigrad.tensor.broadcasting import broadcast_to
from minigrad.tensor.methods import Method, Methods


def _resized(node: Node, wanted: DType) -> Node:
    """Elements of another size, made of the bits of the last dimension."""
    old, new = node.dtype.unsigned, wanted.unsigned
    wide, narrow = max(old, new, key=lambda d: d.bits), min(old, new, key=lambda d: d.bits)
    count = wide.itemsize // narrow.itemsize
    last = node.shape[-1] if node.ndim else None
    if not isinstance(last, int) or (new is wide and last % count):
        expected = f"a last dimension{f' divisible by {count}' if new is wide else ''}"
        raise misfit(f"bitcast from {node.dtype.name} to {wanted.name}", expected, node)
    bits, axis = build.bitcast(node, old), node.ndim - 1
    if new is narrow:
        bits = repeat_along(split_axis(bits, axis, last, 1), axis + 1, count)
    else:
        bits = split_axis(bits, axis, last // count, count).cast(wide)
    by = broadcast_to(build.iota(count, node.device).cast(wide) * narrow.bits, bits.shape)
    if new is narrow:
        return build.bitcast(merge_axes(bits.operation("shr", by).cast(narrow), axis), wanted)
    whole = build.reduce(Op.SUM, bits.operation("shl", by), (axis + 1,))
    return build.bitcast(split_axis(whole, axis + 1), wanted)


class _To(Method):
    """The method that casts to a dtype."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def __set_name__(self, family: type, name: str) -> None:
        dtype = self.dtype

        def cast(self: Any) -> Any:
            return self.cast(dtype)

        cast.__name__ = name
        cast.__doc__ = f"""{dtype.name}, as `cast`.

        >>> Tensor([1]).{name}().dtype.name
        '{dtype.name}'
        """
        setattr(family, name, cast)


class Casts(Methods):
    """Methods `float`, `int`, `bool`, in their own class: annotations elsewhere need the builtins.
    """

    __slots__ = ()

    def cast(self, dtype: DType | str) -> Self:
        """Converted: floats to integers truncate and saturate, NaN gives 0.

        >>> Tensor([1.7]).cast("int32").tolist()
        [1]
        """
        return self.to(resolve(dtype))

    def bitcast(self, dtype: DType | str) -> Self:
        """A view of the bits as another dtype; no gradient flows.

        A dtype of another size splits or joins elements of the last dimension, lowest bits first
        (PyTorch's view(dtype) on a little-endian machine); such a view cannot be written.

        >>> Tensor([1.0]).bitcast("int32").tolist()
        [1065353216]
        """
        wanted = resolve(dtype)
        if wanted is self.dtype:
            return self
        expect(dtypes.bool not in (wanted, self.dtype), f"bitcast from {self.dtype.name} to "
               f"{wanted.name}", "numbers; use cast", error=DTypeError)  # fmt: skip
        if wanted.itemsize == self.dtype.itemsize:
            return self._view(lambda node: build.bitcast(node, wanted))
        return self._view(lambda node: _resized(node, wanted))

    half, float, double, bfloat16 = map(
        _To, (dtypes.float16, dtypes.float32, dtypes.float64, dtypes.bfloat16)
    )
    long, int, bool, char, short, byte = map(
        _To, (dtypes.int64, dtypes.int32, dtypes.bool, dtypes.int8, dtypes.int16, dtypes.uint8)
    )
