"""Rows of the operation table: convolutions, pooling, resampling."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad.graph.symbolic import ceildiv
from minigrad.tensor import winograd

from .inputs import FLOATS
from .layouts import Shape
from .operation import COMPOSED, SELECTED, SUMMED, Operation, floating, index, same
from .plans import Plan, drawn, fixed
from .table_unary import method

Options = dict[str, Any]


def _conv(x: Any, w: Any, b: Any = 0, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
          groups: int = 1) -> Any:  # fmt: skip
    """A sum over kernel positions, each of which is one matrix product."""
    n = w.ndim - 2
    s, d = (np.broadcast_to(v, n) for v in (stride, dilation))
    pairs = padding if np.ndim(padding) == 2 else [(p, p) for p in np.broadcast_to(padding, n)]
    x = np.pad(x, [(0, 0), (0, 0), *pairs])
    out = [(x.shape[2 + i] - d[i] * (w.shape[2 + i] - 1) - 1) // s[i] + 1 for i in range(n)]
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    w = w.reshape(groups, -1, *w.shape[1:])
    result = np.zeros((x.shape[0], groups, w.shape[1], *out), x.dtype)
    for place in itertools.product(*(range(k) for k in w.shape[3:])):
        cut = tuple(
            slice(j * d[i], j * d[i] + (out[i] - 1) * s[i] + 1, s[i]) for i, j in enumerate(place)
        )
        result += np.einsum("bgc...,goc->bgo...", x[(..., *cut)], w[(..., *place)])
    result = result.reshape(result.shape[0], groups * w.shape[1], *out)
    return result + np.reshape(b, (-1, *(1 for _ in out)))


def _by_fewer_products(x: Any, w: Any, b: Any, padding: Any) -> Any:
    """A 3 × 3 convolution by Winograd's method, as used for many channels."""
    space = [n + sum(pair) - 2 for n, pair in zip(x.shape[2:], padding, strict=True)]
    return winograd.convolved(x, w, padding, space).movedim(-1, 1) + b.reshape(-1, 1, 1)


def _conv_transpose(x: Any, w: Any, b: Any = 0, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, groups: int = 1, output_padding: Any = 0) -> Any:
    """Adds each element times the kernel at its position in the result."""
    n = w.ndim - 2
    s, d, p, more = (np.broadcast_to(v, n) for v in (stride, dilation, padding, output_padding))
    full = [(x.shape[2 + i] - 1) * s[i] + d[i] * (w.shape[2 + i] - 1) + 1 + more[i]
            for i in range(n)]  # fmt: skip
    space = x.shape[2:]
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *space)
    w = w.reshape(groups, -1, *w.shape[1:])
    whole = np.zeros((x.shape[0], groups, w.shape[2], *full), x.dtype)
    for place in itertools.product(*(range(k) for k in w.shape[3:])):
        cut = tuple(
            slice(j * d[i], j * d[i] + (space[i] - 1) * s[i] + 1, s[i]) for i, j in enumerate(place)
        )
        whole[(..., *cut)] += np.einsum("bgc...,gco->bgo...", x, w[(..., *place)])
    whole = whole.reshape(whole.shape[0], groups * w.shape[2], *full)
    kept = tuple(slice(p[i], full[i] - p[i]) for i in range(n))
    return whole[(..., *kept)] + np.reshape(b, (-1, *(1 for _ in full)))


def _plan(x: Shape, w: Shape, out: int, **options: Any) -> Plan:
    return Plan((x, w, (out,)), options)


_CONV = [
    _plan((2, 3, 9), (4, 3, 3), 4),
    _plan((1, 1, 1, 1), (1, 1, 1, 1), 1),
    _plan((2, 3, 9, 8), (17, 3, 3, 3), 17, padding=1),
    _plan((1, 4, 9, 16), (6, 2, 3, 2), 6, groups=2, stride=2, padding=(1, 0)),
    _plan((1, 5, 8, 7), (5, 1, 3, 3), 5, groups=5, padding=1),
    _plan((2, 2, 9, 9), (3, 2, 3, 2), 3, dilation=2, padding=((2, 1), (0, 3))),
    _plan((1, 3, 8, 8), (9, 3, 2, 2), 9, stride=2),
    _plan((1, 2, 7, 9), (3, 2, 3, 3), 3, stride=2, dilation=2, padding=2),
    _plan((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), 3, padding=1, stride=(1, 2, 1)),
    _plan((0, 2, 5), (3, 2, 2), 3),
]
_FILTERED = [
    Plan(((2, 17, 8, 6), (20, 17, 3, 3), (20,)), {"padding": ((1, 1), (1, 1))}),
    Plan(((1, 3, 7, 9), (2, 3, 3, 3), (2,)), {"padding": ((0, 2), (1, 0))}),
]

_TRANSPOSED = [
    _plan((2, 3, 5), (3, 4, 3), 4, stride=2, output_padding=1),
    _plan((2, 3, 4, 5), (3, 17, 3, 3), 17, padding=1),
    _plan((2, 3, 6, 7), (3, 4, 3, 3), 4, stride=2, padding=1, output_padding=1),
    _plan((1, 4, 3, 4), (4, 2, 3, 2), 4, groups=2, stride=2, padding=(1, 0)),
    _plan((1, 2, 4, 3), (2, 3, 3, 2), 3, dilation=2),
    _plan((1, 2, 3, 3), (2, 3, 2, 2), 3, stride=3, dilation=2),
    _plan((1, 2, 2, 3, 2), (2, 3, 2, 3, 2), 3, stride=(1, 2, 2)),
]


def _draw_conv(draw: Any, transposed: bool = False) -> Plan:
    n, groups = draw(st.sampled_from((1, 2))), draw(st.integers(1, 2))
    inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    numbers = st.integers(1, 3)
    kernel = tuple(draw(numbers) for _ in range(n))
    options = {
        "stride": tuple(draw(numbers) for _ in range(n)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(n)),
        "groups": groups,
    }
    if transposed:
        space = tuple(draw(st.integers(1, 6)) for _ in range(n))
        weight = (groups * inner, outer, *kernel)
    else:
        options["padding"] = tuple(draw(st.integers(0, 2)) for _ in range(n))
        space = tuple(draw(st.integers(5, 9)) for _ in range(n))
        weight = (groups * outer, inner, *kernel)
    x = (draw(st.integers(1, 2)), groups * inner, *space)
    return Plan((x, weight, (groups * outer,)), options)


def _draw_filter(draw: Any) -> Plan:
    batch, inner, outer = (draw(st.integers(1, most)) for most in (2, 9, 9))
    ends = st.integers(0, 2)
    pairs = tuple((draw(ends), draw(ends)) for _ in range(2))
    space = tuple(draw(st.integers(max(3 - sum(pair), 1), 9)) for pair in pairs)
    return Plan(((batch, inner, *space), (outer, inner, 3, 3), (outer,)), {"padding": pairs})


def _padded_windows(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
                    ceil_mode: bool, value: Any) -> tuple[Any, int]:  # fmt: skip
    """Windows of x, padded with `value`; the last n dimensions are positions in a window."""
    n = 2 if np.ndim(kernel_size) == 0 else len(kernel_size)
    k = np.broadcast_to(kernel_size, n)
    s = k if stride is None else np.broadcast_to(stride, n)
    p, d = np.broadcast_to(padding, n), np.broadcast_to(dilation, n)
    amounts = [(0, 0)] * (x.ndim - n)
    for i in range(n):
        extent, reach = x.shape[x.ndim - n + i], d[i] * (k[i] - 1) + 1
        free = extent + 2 * p[i] - reach
        count = (ceildiv(free, s[i]) if ceil_mode else free // s[i]) + 1
        if ceil_mode and (count - 1) * s[i] >= extent + p[i]:
            count -= 1
        end = (count - 1) * s[i] + reach - extent - p[i]
        amounts.append((int(p[i]), int(max(p[i], end))))
    x = np.pad(x, amounts, constant_values=value)
    for i in range(n):
        axis = len(amounts) - n + i
        windows = np.lib.stride_tricks.sliding_window_view(x, d[i] * (k[i] - 1) + 1, axis)
        cut = [slice(None)] * windows.ndim
        cut[axis], cut[-1] = slice(None, None, s[i]), slice(None, None, d[i])
        x = windows[tuple(cut)]
    return x, n


def _max_pool(x: Any, kernel_size: Any = 2, stride: Any = None, padding: Any = 0,
              dilation: Any = 1, ceil_mode: bool = False) -> Any:  # fmt: skip
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    x, n = _padded_windows(x, kernel_size, stride, padding, dilation, ceil_mode, least)
    return x.max(tuple(range(-n, 0)))


def _max_places(x: Any, **options: Any) -> tuple[Any, Any]:
    best = _max_pool(x, **options)
    plane = np.broadcast_to(np.arange(x[0, 0].size).reshape(x.shape[2:]), x.shape)
    given = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, **options}
    values, _ = _padded_windows(x, value=-np.inf, **given)
    places, _ = _padded_windows(plane, value=-1, **given)
    flat = values.reshape(*best.shape, -1)
    found = ((flat == best[..., None]) | np.isnan(flat)) & (places.reshape(flat.shape) >= 0)
    first = found.argmax(-1)[..., None]
    return best, np.take_along_axis(places.reshape(flat.shape), first, -1)[..., 0]


def _avg_pool(x: Any, kernel_size: Any = 2, stride: Any = None, padding: Any = 0,
              ceil_mode: bool = False, count_include_pad: bool = True) -> Any:  # fmt: skip
    n = 2 if np.ndim(kernel_size) == 0 else len(kernel_size)
    counted = np.ones(x.shape)
    if count_include_pad:
        pads = [(0, 0)] * (x.ndim - n) + [(int(p), int(p)) for p in np.broadcast_to(padding, n)]
        total, _ = _padded_windows(x, kernel_size, stride, padding, 1, ceil_mode, 0)
        ones = np.pad(counted, pads, constant_values=1)
        s = kernel_size if stride is None else stride
        size, _ = _padded_windows(ones, kernel_size, s, 0, 1, ceil_mode, 0)
        size = size[tuple(slice(0, e) for e in total.shape)]
    else:
        total, _ = _padded_windows(x, kernel_size, stride, padding, 1, ceil_mode, 0)
        size, _ = _padded_windows(counted, kernel_size, stride, padding, 1, ceil_mode, 0)
    axes = tuple(range(-n, 0))
    return total.sum(axes) / size.sum(axes)


def _resampled(x: Any, size: Any, mode: str, align_corners: bool = False) -> Any:
    """Resampling by one matrix of weights per dimension."""
    for axis, count in enumerate(size, 2):
        n = x.shape[axis]
        weights = np.zeros((count, n))
        for i in range(count):
            for place, weight in _taps(i, n, count, mode, align_corners):
                weights[i, min(max(place, 0), n - 1)] += weight
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x


def _taps(i: int, n: int, count: int, mode: str, align: bool) -> list[tuple[int, float]]:
    if mode == "nearest":
        return [(i * n // count, 1.0)]
    if mode == "nearest-exact":
        return [((2 * i + 1) * n // (2 * count), 1.0)]
    if mode == "area":
        start, end = i * n // count, -(-(i + 1) * n // count)
        return [(place, 1 / (end - start)) for place in range(start, end)]
    if align:
        place = i * (n - 1) / (count - 1) if count > 1 else 0.0
    else:
        place = (i + 0.5) * n / count - 0.5
    if mode != "bicubic":
        place = max(place, 0.0)
        low = int(place)
        return [(low, 1 - place + low), (low + 1, place - low)]
    low = int(np.floor(place))
    t = np.abs(place - np.arange(low - 1, low + 3))
    near, far = (1.25 * t - 2.25) * t * t + 1, ((-0.75 * t + 3.75) * t - 6) * t + 3
    return [(low - 1 + j, far[j] if j in (0, 3) else near[j]) for j in range(4)]


_POOLS: list[tuple[Shape, Options]] = [
    ((2, 3, 8, 9), {}),
    ((1, 2, 9, 17), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 7), {"kernel_size": (3,), "stride": 1}),
    ((1, 1, 7, 8), {"kernel_size": (3, 2), "stride": (2, 3), "ceil_mode": True}),
    ((1, 1, 4, 5, 6), {"kernel_size": (2, 3, 2), "stride": 2, "padding": (1, 1, 0)}),
]
_MORE: list[tuple[Shape, Options]] = [
    ((1, 2, 7, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
]


def _pool_plans(*more: tuple[Shape, Options]) -> Any:
    return fixed(*(Plan((shape,), options) for shape, options in (*_POOLS, *_MORE, *more)))


_EXACT: Options = {"dtypes": (*FLOATS, "int32"), "differentiable": True}
_RESAMPLE: Options = {"dtypes": FLOATS, "differentiable": True, "special": False,
                      "methods": ("interpolate",)}  # fmt: skip


def _sizes(mode: str, **options: Any) -> Any:
    shapes: list[tuple[Shape, Shape]] = [
        ((1, 2, 5), (8,)), ((2, 1, 7), (3,)), ((1, 1, 1), (4,)), ((1, 2, 4, 3), (8, 6)),
        ((1, 2, 4, 5), (3, 9)),
    ]  # fmt: skip
    return fixed(*(
        Plan((x,), {"size": size, "mode": mode, **options})
        for x, size in shapes if mode != "bicubic" or len(size) == 2
    ))  # fmt: skip


def _resample_row(mode: str, **options: Any) -> Operation:
    return Operation(f"interpolate {mode}{' aligned' if options else ''}", method("interpolate"),
                     _resampled, _sizes(mode, **options), tolerance=COMPOSED,
                     **_RESAMPLE)  # fmt: skip


WINDOWS = [
    Operation("conv2d", method("conv2d"), _conv, drawn(_CONV, _draw_conv),
              dtypes=(*FLOATS, "int32"), tolerance=SUMMED, differentiable=True, special=False),
    Operation("conv2d by fewer products", _by_fewer_products, _conv, drawn(_FILTERED, _draw_filter),
              dtypes=("float32", "float64"), tolerance=SUMMED, differentiable=True, special=False,
              methods=("conv2d",)),
    Operation("conv_transpose2d", method("conv_transpose2d"), _conv_transpose,
              drawn(_TRANSPOSED, lambda draw: _draw_conv(draw, True)),
              dtypes=(*FLOATS, "int32"), tolerance=SUMMED, differentiable=True, special=False),
    Operation("max_pool2d", method("max_pool2d"), _max_pool,
              _pool_plans(((1, 1, 9, 8), {"kernel_size": 3, "dilation": 2, "padding": 1})),
              domains=("wide",), gradient_domains=("distinct",), tolerance=SELECTED, **_EXACT),
    Operation("max_pool2d with places", lambda x, **o: x.max_pool2d(return_indices=True, **o),
              _max_places, fixed(*(Plan((s,), {"kernel_size": 2, **o}) for s, o in _POOLS[:2])),
              dtypes=FLOATS, result=(same, index), tolerance=SELECTED, methods=("max_pool2d",)),
    Operation("avg_pool2d", method("avg_pool2d"), _avg_pool,
              _pool_plans(((1, 2, 9, 17), {"kernel_size": 3, "stride": 2, "padding": 1,
                                           "count_include_pad": False})),
              dtypes=(*FLOATS, "int32"), result=floating, tolerance=SUMMED, differentiable=True,
              special=False),
    *(_resample_row(mode) for mode in ("nearest", "nearest-exact", "area", "linear", "bicubic")),
    *(_resample_row(mode, align_corners=True) for mode in ("linear", "bicubic")),
]  # fmt: skip
