"""Rows of the operation table: movement, joining and splitting, indexing, creation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.graph.symbolic import ceildiv

from .inputs import ALL
from .layouts import Shape
from .operation import Operation
from .plans import FEW_SHAPES, Plan, Plans, axis_of, drawn, elementwise, fixed, shapes

Parameters = dict[str, Any]


def movement(
    name: str,
    call: Callable[..., Any],
    reference: Callable[..., Any],
    edges: Sequence[tuple[Shape, Parameters]],
    draw: Callable[[Any], tuple[Shape, Parameters]] | None = None,
    **more: Any,
) -> Operation:
    """An exact, differentiable operation with one operand, for every dtype."""
    plans = [Plan((shape,), parameters) for shape, parameters in edges]
    if draw is None:
        whole = Plans(tuple(plans), st.sampled_from(plans))
    else:
        drawer = draw

        def draw_plan(choose: Any) -> Plan:
            shape, parameters = drawer(choose)
            return Plan((shape,), parameters)

        whole = drawn(plans, draw_plan)
    fields: dict[str, Any] = {"dtypes": ALL, "domains": ("wide",), "gradient_domains": ("any",),
                              "differentiable": True, **more}  # fmt: skip
    return Operation(name, call, reference, whole, **fields)


def _factor(draw: Any, size: int) -> Shape:
    """A random shape of `size` elements."""
    parts = []
    while size > 1 and draw(st.booleans()):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        parts.append(draw(st.sampled_from(divisors)))
        size //= parts[-1]
    return (*parts, size)


def _reshape(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes())
    size = int(np.prod(shape, dtype=np.int64))
    new = _factor(draw, size)
    if size and draw(st.booleans()):
        hole = draw(st.integers(0, len(new) - 1))
        new = (*new[:hole], -1, *new[hole + 1 :])
    return shape, {"shape": new}


def _permute(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes())
    order = draw(st.permutations(range(len(shape))))
    return shape, {"order": tuple(a - len(shape) if draw(st.booleans()) else a for a in order)}


def _transpose(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1))
    return shape, {"first": axis_of(draw, shape), "second": axis_of(draw, shape)}


def _expand(draw: Any) -> tuple[Shape, Parameters]:
    target = draw(shapes(1))
    kept = draw(st.integers(0, len(target)))
    source = tuple(1 if draw(st.booleans()) else n for n in target[kept:])
    return source, {"shape": tuple(-1 if position >= kept and source[position - kept] == n
                                   and draw(st.booleans()) else n
                                   for position, n in enumerate(target))}  # fmt: skip


def _expand_reference(x: Any, shape: Shape) -> Any:
    lead = len(shape) - x.ndim
    return np.broadcast_to(x, tuple(x.shape[i - lead] if n == -1 else n
                                    for i, n in enumerate(shape)))  # fmt: skip


def _repeat(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(0, 3, st.integers(0, 9)))
    extra = draw(st.integers(0, 1))
    count = len(shape) + extra
    return shape, {"repeats": tuple(draw(st.integers(1, 3)) for _ in range(count))}


def _repeat_interleave(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1, 3))
    return shape, {"repeats": draw(st.integers(1, 3)), "axis": axis_of(draw, shape)}


def _ranges(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1))
    pairs = []
    for n in shape:
        start = draw(st.integers(0, n))
        pairs.append((start, draw(st.integers(start, n))))
    return shape, {"ranges": tuple(pairs)}


def _amounts(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1, 3))
    pairs = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in shape)
    return shape, {"amounts": pairs, "value": draw(st.sampled_from((0, 1)))}


def _flip(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1))
    axes = draw(st.sets(st.integers(0, len(shape) - 1)))
    return shape, {"axes": tuple(sorted(axes))}


def _roll(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1, 3, st.integers(1, 17)))
    return shape, {"shift": draw(st.integers(-20, 20)), "axis": axis_of(draw, shape)}


def _split(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1, 3, st.integers(1, 17)))
    axis = axis_of(draw, shape)
    if draw(st.booleans()):
        return shape, {"sizes": draw(st.integers(1, shape[axis] + 1)), "axis": axis}
    cut = draw(st.integers(0, shape[axis]))
    return shape, {"sizes": (cut, shape[axis] - cut), "axis": axis}


def _split_reference(x: Any, sizes: Any, axis: int) -> tuple[Any, ...]:
    points = list(range(sizes, x.shape[axis], sizes)) if isinstance(sizes, int) else (
        np.cumsum(sizes)[:-1])  # fmt: skip
    return tuple(np.split(x, points, axis))


def _chunk_reference(x: Any, count: int, axis: int) -> tuple[Any, ...]:
    return _split_reference(x, ceildiv(x.shape[axis], count), axis)


def _padded_by_rule(x: Any, amounts: Any, mode: str) -> Any:
    names: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    cut = [(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(x.shape, amounts, strict=True)]
    kept = x[tuple(slice(*pair) for pair in cut)]
    return np.pad(kept, [(max(b, 0), max(a, 0)) for b, a in amounts], mode=names[mode])


def _unfold_reference(x: Any, axis: int, size: int, step: int) -> Any:
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.take(windows, range(0, windows.shape[axis], step), axis)


def _squeeze_axis(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(0, 3))
    axis = draw(st.integers(0, len(shape)))
    return (*shape[:axis], 1, *shape[axis:]), {"axis": axis}


def _axis_to_insert(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(0, 3))
    return shape, {"axis": draw(st.integers(-len(shape) - 1, len(shape)))}


def _flatten_plan(draw: Any) -> tuple[Shape, Parameters]:
    shape = draw(shapes(1))
    start = draw(st.integers(0, len(shape) - 1))
    return shape, {"start": start, "stop": draw(st.integers(start, len(shape) - 1))}


def _flatten_reference(x: Any, start: int = 0, stop: int = -1) -> Any:
    if not x.ndim:
        return x.reshape(1)
    stop %= x.ndim
    size = int(np.prod(x.shape[start : stop + 1], dtype=np.int64))
    return x.reshape(*x.shape[:start], size, *x.shape[stop + 1 :])


_SHAPE_CHANGES: list[tuple[Shape, Parameters]] = [
    ((), {"shape": (1, 1)}), ((0,), {"shape": (3, 0)}), ((17,), {"shape": (1, 17, 1)}),
    ((33, 5), {"shape": (5, 33)}), ((2, 3, 4), {"shape": (-1,)}), ((64,), {"shape": (8, -1)}),
]  # fmt: skip
MOVES = [
    movement("reshape", lambda x, shape: x.reshape(shape), np.reshape, _SHAPE_CHANGES, _reshape),
    movement("reshape by arguments", lambda x, shape: x.reshape(*shape), np.reshape,
             _SHAPE_CHANGES, methods=("reshape",)),
    movement("view", lambda x, shape: x.view(shape), np.reshape, _SHAPE_CHANGES),
    movement("flatten", lambda x, start=0, stop=-1: x.flatten(start, stop), _flatten_reference,
             [((), {}), ((3, 0, 2), {}), ((2, 3, 4), {"start": 1})], _flatten_plan),
    movement("unflatten", lambda x, axis, sizes: x.unflatten(axis, sizes),
             lambda x, axis, sizes: x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :]),
             [((2, 12), {"axis": 1, "sizes": (3, 4)}), ((33,), {"axis": 0, "sizes": (11, 3)})]),
    movement("squeeze", lambda x, axis: x.squeeze(axis), lambda x, axis: np.squeeze(x, axis),
             [((1, 9), {"axis": 0}), ((1,), {"axis": 0}), ((1, 9, 1), {"axis": (0, -1)})],
             _squeeze_axis),
    movement("squeeze all", lambda x: x.squeeze(), np.squeeze,
             [((), {}), ((1, 9, 1), {}), ((1, 1), {}), ((2, 3), {})], methods=("squeeze",)),
    movement("unsqueeze", lambda x, axis: x.unsqueeze(axis), np.expand_dims,
             [((), {"axis": 0}), ((9,), {"axis": -1}), ((0,), {"axis": 1})], _axis_to_insert),
    movement("permute", lambda x, order: x.permute(order),
             lambda x, order: np.transpose(x, order),
             [((), {"order": ()}), ((3, 0, 2), {"order": (2, 0, 1)}),
              ((16, 33), {"order": (1, 0)}), ((2, 3, 4), {"order": (-1, 0, 1)})], _permute),
    movement("transpose", lambda x, first, second: x.transpose(first, second),
             lambda x, first, second: np.swapaxes(x, first, second),
             [((5, 33), {"first": 0, "second": 1}), ((1,), {"first": 0, "second": 0})],
             _transpose),
    movement("T", lambda x: x.T, np.transpose, [((), {}), ((7,), {}), ((15, 17), {}),
                                                ((64, 65), {})]),
    movement("mT", lambda x: x.mT, lambda x: np.swapaxes(x, -1, -2),
             [((15, 17), {}), ((2, 3, 4), {}), ((3, 0, 2), {})]),
    movement("expand", lambda x, shape: x.expand(shape), _expand_reference,
             [((), {"shape": (3,)}), ((1,), {"shape": (33,)}), ((1, 5), {"shape": (4, -1)}),
              ((1,), {"shape": (0,)}), ((3, 1), {"shape": (2, 3, 17)})], _expand),
    movement("repeat", lambda x, repeats: x.repeat(repeats),
             lambda x, repeats: np.tile(x, repeats),
             [((9,), {"repeats": (3,)}), ((2, 3), {"repeats": (2, 1, 4)}),
              ((0,), {"repeats": (2,)})], _repeat),
    movement("repeat_interleave", lambda x, repeats, axis: x.repeat_interleave(repeats, axis),
             np.repeat, [((9,), {"repeats": 2, "axis": 0}), ((3, 4), {"repeats": 3, "axis": None})],
             _repeat_interleave),
    movement("shrink", lambda x, ranges: x.shrink(ranges),
             lambda x, ranges: x[tuple(slice(*pair) for pair in ranges)],
             [((9,), {"ranges": ((1, 8),)}), ((64,), {"ranges": ((64, 64),)}),
              ((5, 33), {"ranges": ((0, 5), (16, 33))})], _ranges),
    movement("pad", lambda x, amounts, value=0: x.pad(amounts, value=value),
             lambda x, amounts, value=0: np.pad(x, amounts, constant_values=value),
             [((0,), {"amounts": ((2, 1),)}), ((7,), {"amounts": ((1, 0),)}),
              ((5, 33), {"amounts": ((0, 1), (2, 0)), "value": 1})], _amounts),
    movement("pad flat", lambda x: x.pad((1, 2, 0, 3)),
             lambda x: np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, 3), (1, 2)]),
             [((2, 3), {}), ((2, 3, 4), {})], methods=("pad",)),
    movement("pad by rule", lambda x, mode, amounts: x.pad(amounts, mode=mode),
             lambda x, mode, amounts: _padded_by_rule(x, amounts, mode),
             [((5, 9), {"mode": mode, "amounts": ((2, 1), (0, 3))})
              for mode in ("reflect", "replicate", "circular")] +
             [((5, 9), {"mode": "circular", "amounts": ((-2, 1), (3, -4))}),
              ((2, 3), {"mode": "replicate", "amounts": ((5, 0), (0, 4))})], methods=("pad",)),
    movement("flip", lambda x, axes: x.flip(axes), lambda x, axes: np.flip(x, axes),
             [((9,), {"axes": (0,)}), ((3, 0, 2), {"axes": (0, 2)}), ((5, 33), {"axes": (-1,)})],
             _flip),
    movement("roll", lambda x, shift, axis: x.roll(shift, axis), np.roll,
             [((9,), {"shift": 2, "axis": 0}), ((5, 33), {"shift": -7, "axis": 1}),
              ((3, 4), {"shift": (1, -2), "axis": (0, 1)}), ((3, 4), {"shift": 5, "axis": None}),
              ((4, 5), {"shift": (-2, 1, 4), "axis": (1, 0, -1)})],
             _roll),
    movement("split", lambda x, sizes, axis: x.split(sizes, axis), _split_reference,
             [((9,), {"sizes": 4, "axis": 0}), ((5, 33), {"sizes": (16, 17), "axis": 1})],
             _split, result=(lambda d: d,) * 40),
    movement("chunk", lambda x, count, axis: x.chunk(count, axis), _chunk_reference,
             [((9,), {"count": 2, "axis": 0}), ((5, 33), {"count": 4, "axis": 1}),
              ((3,), {"count": 3, "axis": 0})], result=(lambda d: d,) * 40),
    movement("unfold", lambda x, axis, size, step: x.unfold(axis, size, step), _unfold_reference,
             [((9,), {"axis": 0, "size": 3, "step": 2}),
              ((2, 17), {"axis": 1, "size": 4, "step": 1}),
              ((6, 5), {"axis": 0, "size": 2, "step": 2})]),
    movement("diagonal", lambda x, **k: x.diagonal(*k.values()),
             lambda x, **k: np.diagonal(x, *k.values()),
             [((4, 4), {}), ((3, 5), {"offset": 1}), ((17, 9), {"offset": -3}), ((1, 1), {}),
              ((2, 3, 4), {"offset": -1, "first": 1, "second": 2})]),
    movement("rearrange into more", lambda x: x.rearrange("a b (c d) -> (a d) b c", d=2),
             lambda x: x.reshape(*x.shape[:2], -1, 2).transpose(0, 3, 1, 2)
             .reshape(-1, x.shape[1], x.shape[2] // 2),
             [((2, 3, 4), {}), ((1, 5, 16), {})], methods=("rearrange",)),
    movement("rearrange", lambda x: x.rearrange("a (b c) d -> c (d a) b", b=2),
             lambda x: x.reshape(x.shape[0], 2, x.shape[1] // 2, x.shape[2]).transpose(2, 3, 0, 1)
             .reshape(x.shape[1] // 2, -1, 2),
             [((3, 4, 5), {}), ((1, 2, 17), {}), ((0, 2, 3), {})]),
    movement("contiguous", lambda x: x.contiguous(), lambda x: x, [((9,), {}), ((0,), {}),
                                                                   ((5, 33), {}), ((), {})]),
    movement("triu", lambda x, diagonal: x.triu(diagonal), lambda x, diagonal: np.triu(x, diagonal),
             [((4, 4), {"diagonal": 0}), ((3, 5), {"diagonal": 1}), ((2, 17, 9), {"diagonal": -1}),
              ((0, 3), {"diagonal": 0})]),
    movement("tril", lambda x, diagonal: x.tril(diagonal), lambda x, diagonal: np.tril(x, diagonal),
             [((4, 4), {"diagonal": 0}), ((3, 5), {"diagonal": 1}), ((2, 17, 9), {"diagonal": -1}),
              ((0, 3), {"diagonal": 0})]),
    movement("diag", lambda x: x.diag(), np.diag, [((5,), {}), ((1,), {}), ((17,), {})]),
]  # fmt: skip


def _joined(draw: Any) -> Plan:
    shape = draw(shapes(1, 3))
    axis = axis_of(draw, shape)
    lengths = [draw(st.integers(0, 9)) for _ in range(draw(st.integers(2, 6)))]
    place = axis % len(shape)
    parts = [tuple(n if a == place else e for a, e in enumerate(shape)) for n in lengths]
    return Plan(tuple(parts), {"axis": axis})


_JOIN: dict[str, Any] = {"dtypes": ALL, "domains": ("wide",), "gradient_domains": ("any",),
                         "differentiable": True}  # fmt: skip
JOINS = [
    Operation("cat", lambda *x, axis: x[0].cat(*x[1:], dim=axis),
              lambda *x, axis: np.concatenate(x, axis),
              drawn([Plan(((7,), (0,), (9,)), {"axis": 0}), Plan(((5, 3), (5, 30)), {"axis": -1}),
                     Plan(((5, 3), (5, 1), (5, 9), (5, 0), (5, 2)), {"axis": 1}),
                     Plan(((1, 17), (4, 17)), {"axis": 0})], _joined),
              **_JOIN),
    Operation("stack", lambda *x, axis: x[0].stack(*x[1:], dim=axis),
              lambda *x, axis: np.stack(x, axis),
              drawn([Plan(((), ()), {"axis": 0}), Plan(((9,),) * 3, {"axis": 1}),
                     Plan(((0, 2),) * 2, {"axis": 0}), Plan(((3, 5),) * 7, {"axis": 1})],
                    lambda draw: Plan((draw(shapes(0, 3)),) * 2, {"axis": 0})), **_JOIN),
    Operation("cat of a list", lambda *x, axis: Tensor.cat(x, axis),
              lambda *x, axis: np.concatenate(x, axis),
              drawn([Plan(((5, 3), (5, 30)), {"axis": 1}), Plan(((2, 3, 3),) * 3, {"axis": 2})],
                    _joined), methods=("cat",), **_JOIN),
    Operation("stack of a list", lambda *x, axis: Tensor.stack(x, axis),
              lambda *x, axis: np.stack(x, axis),
              fixed(Plan(((9,),) * 3, {"axis": 1}), Plan(((3, 3),) * 3, {"axis": 2}),
                    Plan(((3, 3),) * 3, {"axis": 1})), methods=("stack",), **_JOIN),
    Operation("meshgrid", lambda x, y, indexing="ij": x.meshgrid(y, indexing=indexing),
              lambda x, y, indexing="ij": tuple(np.meshgrid(x, y, indexing=indexing)),
              drawn([Plan(((3,), (5,))), Plan(((1,), (17,))), Plan(((4,), (5,)), {
                  "indexing": "xy"})],
              lambda draw: Plan((draw(shapes(1, 1)), draw(shapes(1, 1))))),
              result=(lambda d: d,) * 2, **_JOIN),
    Operation("contiguous after a view", lambda x: (x.flip(0) + x).contiguous() if x.ndim else x,
              lambda x: np.flip(x, 0) + x if x.ndim else x, elementwise(1, FEW_SHAPES),
              methods=("contiguous",), **{**_JOIN, "dtypes": ("float32", "int32"),
                                          "domains": ("any",)}),
]  # fmt: skip

MOVEMENT = [*MOVES, *JOINS]
