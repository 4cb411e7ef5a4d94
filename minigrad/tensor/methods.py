"""What the families of `Tensor`'s methods use of one another, for type checkers.

`Tensor` is one class made of families (elementwise.py, reduce.py, …) that do not inherit from one
another. Each is a `class Family(Methods)`: at run time a plain mixin, for type checkers one that
has `Core` and what is declared here. A method that only its own family calls is not here.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

T = TypeVar("T")


class Method:
    """A method that returns a tensor of the same kind, for type checkers."""

    @overload
    def __get__(self, tensor: None, kind: Any) -> Callable[..., Any]: ...
    @overload
    def __get__(self, tensor: T, kind: Any) -> Callable[..., T]: ...
    def __get__(self, tensor: Any, kind: Any) -> Any:
        return self


if TYPE_CHECKING:
    from typing import Self

    from minigrad.dtype import DType
    from minigrad.graph.node import Node
    from minigrad.tensor.broadcasting import Scalar
    from minigrad.tensor.core import Core

    class _Declared(Core):
        def _any(self, *given: Any, **options: Any) -> Self: ...

    class _Casts(_Declared):
        float = int = bool = _Declared._any

    class Methods(_Casts):  # not in _Casts: here `int` is the builtin
        """Names only; the families have the signatures."""

        def _operator(self, other: Any) -> Self: ...

        __add__ = __sub__ = __rsub__ = __mul__ = __truediv__ = __rtruediv__ = __pow__ = _operator
        __floordiv__ = __mod__ = __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = _operator
        __lt__ = __le__ = __gt__ = __ge__ = __getitem__ = _operator
        __neg__ = __invert__ = _Declared._any

        # values.py, casts.py
        def _bytes(self) -> bytearray: ...
        def _known_shape(self) -> tuple[int, ...]: ...
        def item(self) -> Scalar: ...
        @property
        def sharding(self) -> str: ...

        cast = bitcast = _Declared._any

        # elementwise.py, functions.py
        def _pair(self, name: str, other: Any, reverse: bool) -> list[Node]: ...
        def _two(self, name: str, other: Any) -> tuple[Self, Self]: ...

        _two_floats = _two
        _operand = _filling = _as_float = _binary = floor_divide = mod = _Declared._any
        _with_derivative = mul = eq = ne = maximum = minimum = where = _Declared._any
        masked_fill = clip = isnan = isfinite = abs = square = sqrt = rsqrt = _Declared._any
        reciprocal = exp = log = cos = floor = _in_place = _Declared._any

        # movement.py, joining.py
        reshape = flatten = unsqueeze = expand = _broadcast_to = permute = _Declared._any
        transpose = shrink = pad = _part = diagonal = cat = stack = _Declared._any
        repeat_interleave = _Declared._any

        # reduce.py
        def _float_dtype(self) -> DType: ...

        sum = max = min = any = mean = softmax = _top = _count = _mirrored = _wide = _Declared._any
        cumsum = argsort = searchsorted = _Declared._any

        # creation.py, random.py, indexing.py, scattering.py
        @classmethod
        def _made(cls, *given: Any, **options: Any) -> Self: ...
        @classmethod
        def zeros(cls, *shape: Any, **options: Any) -> Self: ...
        @classmethod
        def arange(cls, *given: Any, **options: Any) -> Self: ...

        _checked = _within = dropout = _wrapped = _wide_index = _at = _Declared._any
        _last_written = nonzero = _Declared._any

else:
    Methods = object
