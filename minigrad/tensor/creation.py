"""Tensors made of nothing but a shape and a rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

from minigrad.device import Device
from minigrad.dtype import DType, DTypeLike, check_holds, dtype_of, dtype_or, dtypes
from minigrad.errors import DTypeError, ShapeError, expect, misfit
from minigrad.graph import bounds, build
from minigrad.graph.node import Node, Shape
from minigrad.graph.symbolic import Affine, Integer, low
from minigrad.tensor.broadcasting import Scalar, as_python, check_choice
from minigrad.tensor.methods import Methods
from minigrad.tensor.movement import sequence, tensors_in


def _numeric(name: str, given: DTypeLike, default: DType) -> DType:
    """The dtype of `arange` or `linspace`; DTypeError for bool."""
    dtype = dtype_or(given, default)
    if dtype.is_bool:
        raise DTypeError(f"{name}(dtype=bool): expected a number dtype; use .bool() afterwards")
    return dtype


def _check_numbers(name: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, (bool, int, float, Affine)):
            raise misfit(name, "Python numbers", f"{value!r}, of type {type(value).__name__}",
                         error=TypeError)  # fmt: skip
        if name == "arange" and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"arange: expected finite numbers, got {value}")


def checked_shape(name: str, given: tuple[Any, ...]) -> Shape:
    """A shape given as f(2, 3) or f((2, 3)); ShapeError unless its extents are ints ≥ 0."""
    shape = sequence(given)
    for extent in shape:
        if not isinstance(extent, (int, Affine)) or isinstance(extent, bool) or low(extent) < 0:
            example = {"normal": "mean=0, std=1", "randint": "low=0, high=9",
                       "uniform": "low=0, high=1"}  # fmt: skip
            raise ShapeError(
                f"{name}({', '.join(map(str, shape))}): expected sizes that are ints ≥ 0, as "
                f"{name}(2, 3) or {name}((2, 3)); pass other arguments by name, as "
                f"{example.get(name, 'dtype=dtypes.float32')}"
            )
    return shape


class Creation(Methods):
    """Constructors, which take dtype=, device= and requires_grad=; grids, one-hot rows, triangles.

    Results are lazy, and constants for `backward` unless requires_grad=True.
    """

    __slots__ = ()

    @classmethod
    def _made(cls, node: Node, requires_grad: bool | None, drawn: bool = False) -> Self:
        result = cls._of(node)
        result.made = drawn
        if requires_grad is not None:
            result.requires_grad = requires_grad
        return result

    @classmethod
    def full(
        cls, shape: Sequence[Integer] | Integer, fill_value: Scalar, *,
        dtype: DTypeLike = None, device: str | None = None,
        requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """A tensor filled with fill_value, which decides the dtype unless dtype is given.

        >>> Tensor.full((2,), 7).tolist()
        [7, 7]
        """
        extents = checked_shape("full", (*shape,) if isinstance(shape, Iterable) else (shape,))
        _check_numbers("full", fill_value)
        where = Device.canonical(device)
        if isinstance(fill_value, Affine):
            number = cls._of(build.variable(fill_value, where))
            filled = number.cast(dtype_or(dtype, dtypes.default_int))._broadcast_to(extents)
            return cls._made(filled.node, requires_grad)
        wanted = dtype_or(dtype, dtype_of("full", [fill_value]))
        check_holds("full", wanted, fill_value)
        return cls._made(build.const(fill_value, wanted, extents, where), requires_grad)

    @classmethod
    def zeros(cls, *shape: Any, dtype: DTypeLike = None, **options: Any) -> Self:
        """Zeros, float32 unless dtype is given.

        >>> Tensor.zeros(2).tolist()
        [0.0, 0.0]
        """
        return cls.full(checked_shape("zeros", shape), 0.0, dtype=dtype, **options)

    @classmethod
    def ones(cls, *shape: Any, dtype: DTypeLike = None, **options: Any) -> Self:
        """Ones, float32 unless dtype is given.

        >>> Tensor.ones(2).tolist()
        [1.0, 1.0]
        """
        return cls.full(checked_shape("ones", shape), 1.0, dtype=dtype, **options)

    empty = zeros

    def full_like(self, fill_value: Scalar, **options: Any) -> Self:
        """A tensor filled with fill_value; shape, dtype and device of self unless given.

        >>> Tensor([1, 2]).full_like(7).tolist()
        [7, 7]
        """
        return self.new_full(self.shape, fill_value, **options)

    def new_full(
        self, size: Any, fill_value: Scalar, *, dtype: DTypeLike = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """A tensor filled with fill_value; dtype and device of self unless given.

        >>> Tensor([1]).new_full((2,), 7).tolist()
        [7, 7]
        """
        where = self.device if device is None else device
        return self.full(size, fill_value, dtype=dtype_or(dtype, self.dtype), device=where,
                         requires_grad=requires_grad)  # fmt: skip

    def zeros_like(self, **options: Any) -> Self:
        """Zeros; shape, dtype and device of self.

        >>> Tensor([1, 2]).zeros_like().tolist()
        [0, 0]
        """
        return self.full_like(0, **options)

    empty_like = zeros_like

    def ones_like(self, **options: Any) -> Self:
        """Ones; shape, dtype and device of self.

        >>> Tensor([1, 2]).ones_like().tolist()
        [1, 1]
        """
        return self.full_like(1, **options)

    @classmethod
    def arange(
        cls, start: Any, stop: Any = None, step: Scalar = 1, *, dtype: DTypeLike = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """start, start + step, …, before stop; a single argument is the stop.

        Ints give int32, or int64 if they do not fit; floats give float32.

        >>> Tensor.arange(1, 7, 2).tolist()
        [1, 3, 5]
        """
        begin, end = (0, as_python(start)) if stop is None else (as_python(start), as_python(stop))
        step = as_python(step)
        _check_numbers("arange", begin, end, step)
        where = Device.canonical(device)
        expect(step != 0, "arange(step=0)", "a step that is not 0", error=ValueError)
        if isinstance(begin, Affine) or isinstance(end, Affine):
            if step != 1 or not isinstance(begin, (int, Affine)):
                raise ShapeError(f"arange({begin}, {end}, {step}): symbolic bounds need step 1")
            ramp = cls._of(build.iota(end - begin, where))
            first = cls.full((), begin, device=where)  # type: ignore[arg-type]
            ramp = ramp if begin == 0 else ramp + first
            wanted = dtype_or(dtype, dtypes.default_int)
            return cls._made(ramp.cast(wanted).node, requires_grad)
        floats = any(isinstance(x, float) for x in (begin, end, step))
        steps = math.ceil((end - begin) / step) if floats else -((begin - end) // step)
        count = max(steps, 0)
        ends = [begin, begin + max(count - 1, 0) * step]
        default = dtypes.default_float if floats else dtype_of("arange", ends)
        wanted = _numeric("arange", dtype, default)
        check_holds("arange", wanted, *ends)
        ints = wanted.is_int and not floats
        exact = dtypes.float64 if wanted.is_int else dtypes.float32
        wide = wanted if ints or wanted is dtypes.float64 else exact
        number = dtypes.int32 if count <= dtypes.int32.maximum else dtypes.int64
        ramp = cls._of(build.iota(count, where, wanted if ints else number)).cast(wide)
        # consts of that dtype: in an unsigned one a step of −1 wraps, and the sums wrap back
        if step != 1:
            ramp = ramp * cls._of(build.const(step, wide, (), where))
        if begin != 0:
            ramp = ramp + cls._of(build.const(begin, wide, (), where))
        return cls._made(ramp.cast(wanted).node, requires_grad)

    @classmethod
    def linspace(
        cls, start: Scalar, stop: Scalar, steps: int, *, dtype: DTypeLike = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> Self:  # fmt: skip
        """`steps` numbers from start to stop, both included; float32 unless dtype is given.

        For an integer dtype, float64 numbers are truncated.

        >>> Tensor.linspace(0, 1, 3).tolist()
        [0.0, 0.5, 1.0]
        """
        _check_numbers("linspace", start, stop)
        expect(steps >= 0, "linspace", "an int ≥ 0", error=ValueError, steps=steps)
        wanted = _numeric("linspace", dtype, dtypes.default_float)
        check_holds("linspace", wanted, start, stop)
        wide = dtypes.float64 if wanted.is_int or wanted is dtypes.float64 else dtypes.float32
        ramp = cls.arange(steps, device=device)
        values = ramp.cast(wide) * ((stop - start) / max(steps - 1, 1)) + start
        exact = (ramp >= max(steps - 1, 1)).where(stop, values)  # no rounding at the end
        return cls._made(exact.cast(wanted).node, requires_grad)

    @classmethod
    def eye(cls, n: int, m: int | None = None, *, dtype: DTypeLike = None,
            device: str | None = None, requires_grad: bool | None = None) -> Self:  # fmt: skip
        """The identity matrix (n × n, or n × m), float32 unless dtype is given.

        >>> Tensor.eye(2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        checked_shape("eye", (n, n if m is None else m))
        rows = cls.arange(n, device=device)
        same = rows.unsqueeze(1).eq(cls.arange(n if m is None else m, device=device))
        return cls._made(same.cast(dtype_or(dtype, dtypes.default_float)).node, requires_grad)

    def meshgrid(self, *others: Any, indexing: str = "ij") -> tuple[Any, ...]:
        """Coordinate matrices of 1-d tensors; indexing "ij" (default) or "xy".

        >>> [grid.tolist() for grid in Tensor([1, 2]).meshgrid(Tensor([3, 4]))]
        [[[1, 1], [2, 2]], [[3, 4], [3, 4]]]
        """
        vectors = tensors_in("meshgrid", (self, *others))
        expect(all(vector.ndim <= 1 for vector in vectors), "meshgrid", "vectors", *vectors)
        check_choice("meshgrid", ("ij", "xy"), indexing=indexing)
        places = list(range(len(vectors)))
        if indexing == "xy":
            places[:2] = places[:2][::-1]
        shape = tuple(vectors[place].numel() for place in places)
        ones = [1] * len(vectors)
        grids = zip(vectors, places, strict=True)
        return tuple(v.reshape(*ones[:at], -1, *ones[at + 1 :]).expand(shape) for v, at in grids)

    def _checked(self, extent: Integer, *given: Any, **options: Any) -> Self:
        """self, checked when it runs: elements must be indices in 0 … extent − 1 (`bounds.check`).
        """
        return self._new(bounds.check(self.raw, extent, *given, **options))

    def _within(self, *given: Any) -> Self:
        """self, checked when it runs: elements must be in an interval (`bounds.check_values`)."""
        return self._new(bounds.check_values(self.node, *given))

    def one_hot(self, num_classes: int = -1) -> Self:
        """One-hot rows, int32: 1 at the class of each element, in a new last dimension.

        num_classes=−1 takes the largest element + 1, which is computed at once. BoundsError if an
        element is not in 0 … num_classes − 1.

        >>> Tensor([0, 2]).one_hot(3).tolist()
        [[1, 0, 0], [0, 0, 1]]
        """
        if num_classes == -1 and not self.dtype.is_float:
            num_classes = int(self.max().item()) + 1
        expect(not self.dtype.is_float and low(num_classes) >= 0,
               f"one_hot({num_classes})", "integers and num_classes ≥ 0",
               self.dtype.name, error=DTypeError)  # fmt: skip
        classes = self.arange(num_classes, device=self.raw.device)
        chosen = self if self.dtype.is_bool else self._checked(num_classes, "one_hot", "classes")
        return chosen.unsqueeze(-1).eq(classes).cast(dtypes.default_int)

    def _triangle(self, diagonal: int) -> Self:
        """True where column − row ≤ diagonal, for the last two dimensions."""
        expect(self.ndim >= 2, "tril/triu", "at least 2 dimensions", self)
        rows = self.arange(self.shape[-2], device=self.raw.device).unsqueeze(1)
        return self.arange(self.shape[-1], device=self.raw.device) - rows <= diagonal

    def tril(self, diagonal: int = 0) -> Self:
        """Lower triangles: zeros above a diagonal of the last two dimensions.

        >>> Tensor.ones(2, 2).tril().tolist()
        [[1.0, 0.0], [1.0, 1.0]]
        """
        return self.masked_fill(~self._triangle(diagonal), 0)

    def triu(self, diagonal: int = 0) -> Self:
        """Upper triangles: zeros below a diagonal of the last two dimensions.

        >>> Tensor.ones(2, 2).triu().tolist()
        [[1.0, 1.0], [0.0, 1.0]]
        """
        return self.masked_fill(self._triangle(diagonal - 1), 0)
