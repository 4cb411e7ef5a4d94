"""Conversions between dtypes."""

from __future__ import annotations

from typing import Self

from minigrad.dtype import DType, dtypes, named
from minigrad.graph import build
from minigrad.tensor.dlpack import Interchange


class Casts(Interchange):
    """Methods called `float`, `int`, `bool`: in a class of their own, where no annotation needs
    the builtins of these names.
    """

    __slots__ = ()

    def cast(self, dtype: DType | str) -> Self:
        """Converted: floats truncate and saturate on their way to integers, NaN gives 0."""
        wanted = named(dtype) if isinstance(dtype, str) else dtype
        return self if wanted is self.dtype else self._new(build.cast(self.node, wanted))

    def bitcast(self, dtype: DType | str) -> Self:
        """The bits read as another dtype of the same size; no gradient flows."""
        wanted = named(dtype) if isinstance(dtype, str) else dtype
        return self if wanted is self.dtype else self._new(build.bitcast(self.node, wanted))

    def half(self) -> Self:
        """float16."""
        return self.cast(dtypes.float16)

    def float(self) -> Self:
        """float32."""
        return self.cast(dtypes.float32)

    def double(self) -> Self:
        """float64."""
        return self.cast(dtypes.float64)

    def bfloat16(self) -> Self:
        """bfloat16."""
        return self.cast(dtypes.bfloat16)

    def int(self) -> Self:
        """int32."""
        return self.cast(dtypes.int32)

    def long(self) -> Self:
        """int64."""
        return self.cast(dtypes.int64)

    def bool(self) -> Self:
        """bool: x ≠ 0."""
        return self.cast(dtypes.bool)
