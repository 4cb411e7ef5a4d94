"""`Tensor.scan`: a step that is described once and repeated along the first dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minigrad.device import Device
from minigrad.errors import DTypeError, ScanError, ShapeError, expect, misfit
from minigrad.graph import build
from minigrad.graph.loop import Looped, Step
from minigrad.graph.node import Node, ages, is_symbolic
from minigrad.graph.vmap import given
from minigrad.settings import having
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.modes import modes
from minigrad.tensor.pytree import flatten, rebuild, show


class Scanning(Methods):
    """Loops as parts of the graph."""

    __slots__ = ()

    @classmethod
    def scan(
        cls, f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any = None,
        length: int | None = None, reverse: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """`for x in xs: carry, y = f(carry, x)`; returns the last carry and all y, stacked.

        init, x, y: a tensor, or tensors in tuples, lists and dicts. xs: the x of all steps, with
        the number of steps as a first dimension; or None, with `length` steps. The carry keeps its
        shapes and dtypes; y may be None. reverse: from the last x to the first; y stays in the
        order of xs.

        f is called once, to record a step, and its kernels run for each x: compile time does not
        depend on the length. Anything that does not depend on the carry is computed for all steps
        at once. f may use tensors from outside, and gradients flow to them. It must not draw random
        numbers nor write in place (ScanError): draw them outside, and pass them in xs. A scan
        inside f, or on a mesh, runs its steps one after the other. As jax.lax.scan.

        >>> Tensor.scan(lambda c, x: (c + x, c * x), Tensor(0), Tensor([1, 2, 3]))[1].tolist()
        [0, 2, 9]
        """
        if not callable(f):
            raise TypeError(f"Tensor.scan: expected a function f(carry, x) first, got {f!r}")
        (starts, structure), (arrays, _) = flatten(init), flatten(xs)
        count = _count(arrays, length)
        state = [tensor.node for tensor in starts]
        devices = {tensor.raw.device for tensor in (*starts, *arrays)}
        if modes.describing is not None or not devices.isdisjoint(Device.meshes) or count == 0:
            return _one_by_one(f, init, xs, arrays, count, reverse)
        for tensor in (*starts, *arrays):
            expect(not is_symbolic(tensor.shape), "Tensor.scan", "known sizes", tensor)
        carries = [given(node.dtype, node.shape, node.device) for node in state]
        elements = [given(a.dtype, a.shape[1:], a.raw.device) for a in arrays]
        with having(modes, describing=next(ages)):
            after, out = _called(
                f, rebuild(init, map(cls._of, carries).__next__),
                rebuild(xs, map(cls._of, elements).__next__),
            )  # fmt: skip
        (new, found), (outs, _) = flatten(after), flatten(out)
        if found != structure:
            raise ScanError(
                f"Tensor.scan: the carry is {show(structure)} before a step, but the function "
                f"returned {show(found)}; return the same structure"
            )
        for old, tensor in zip(carries, new, strict=True):
            _check_same(old, tensor)
        step = Step(
            tuple(carries), tuple(elements), tuple(tensor.node for tensor in new),
            tuple(tensor.node for tensor in outs),
        )  # fmt: skip
        made = Looped(step, state, [tensor.node for tensor in arrays], count, reverse)
        return (
            rebuild(after, map(cls._of, made.last).__next__),
            rebuild(out, map(cls._of, made.outs).__next__),
        )


def _count(arrays: Sequence[Core], length: int | None) -> int:
    """The number of steps."""
    if not arrays and length is None:
        raise TypeError("Tensor.scan: expected xs, or length=, the number of steps")
    for array in arrays:
        expect(array.shape, "Tensor.scan: xs", "a dimension of steps", array)
    lengths = {array.shape[0] for array in arrays} | ({length} - {None})
    shown = [*(str(array.shape) for array in arrays), *[f"length={length}"][: length is not None]]
    expect(len(lengths) == 1, "Tensor.scan: xs", "the same first size, the number of steps",
           " and ".join(shown))  # fmt: skip
    (count,) = lengths
    if not isinstance(count, int) or count < 0:
        raise ShapeError(f"Tensor.scan: expected a known number of steps, got {count}")
    return count


def _called(f: Callable[[Any, Any], Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """The carry and y of a step; ScanError for another kind of result."""
    result = f(carry, x)
    if not isinstance(result, tuple) or len(result) != 2:
        raise misfit("Tensor.scan", "the function to return a pair: the carry, and a result of "
                     "this step (or None)", type(result).__name__, error=ScanError)  # fmt: skip
    return result


def _check_same(old: Node, tensor: Core) -> None:
    before, after = (f"{one.dtype.name} {one.shape}" for one in (old, tensor))
    if before != after:
        raise (ShapeError if tensor.shape != old.shape else DTypeError)(
            f"Tensor.scan: the carry is {before} before a step, but {after} after it; pass it to "
            "scan as that, or cast it in the step"
        )


def _one_by_one(
    f: Callable[[Any, Any], Any], carry: Any, xs: Any, arrays: Sequence[Any], count: int,
    reverse: bool,
) -> tuple[Any, Any]:  # fmt: skip
    """The steps as separate operations, for lengths and devices without a loop."""
    outs: list[list[Any]] = []
    out: Any = None
    for number in range(count - 1, -1, -1) if reverse else range(count):
        carry, out = _called(f, carry, rebuild(xs, (array[number] for array in arrays).__next__))
        outs.append(flatten(out)[0])
    if not count:
        shown = [one._new(given(one.dtype, one.shape[1:], one.raw.device)) for one in arrays]
        with having(modes, describing=modes.describing or next(ages)):  # so it may write nothing
            _, out = _called(f, carry, rebuild(xs, iter(shown).__next__))
        none = (e._new(build.const(0, e.dtype, (0, *e.shape), e.raw.device))
                for e in flatten(out)[0])  # fmt: skip
        return carry, rebuild(out, none.__next__)
    pieces = zip(*(outs[::-1] if reverse else outs), strict=True)
    return carry, rebuild(out, (one[0].stack(*one[1:]) for one in pieces).__next__)
