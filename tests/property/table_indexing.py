"""Rows of the operation table: indexing by data, and writes into parts of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .inputs import ALL, FLOATS, NUMBERS
from .layouts import Shape
from .mixed_keys import accepted, mixed, of
from .operation import SUMMED, Operation
from .plans import Plan, Plans, drawn, fixed, shapes, with_choices
from .table_unary import method

Parameters = dict[str, Any]


def _slice(draw: Any, n: int) -> slice:
    bound = st.none() | st.integers(-n - 2, n + 2)
    step = draw(st.sampled_from((None, 1, 2, 3, -1, -2)))
    return slice(draw(bound), draw(bound), step)


def _key(draw: Any, shape: Shape) -> tuple[Any, ...]:
    """A basic index of numpy: ints, slices with steps of either sign, None, one Ellipsis."""
    given = draw(st.integers(0, len(shape)))
    key: list[Any] = []
    for n in shape[:given]:
        whole = n == 0 or draw(st.booleans())
        key.append(_slice(draw, n) if whole else draw(st.integers(-n, n - 1)))
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    if given == len(shape) and draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), Ellipsis)
    return tuple(key)


def _basic(draw: Any) -> Plan:
    shape = draw(shapes())
    return Plan((shape,), {"key": _key(draw, shape)})


_KEYS: list[tuple[Shape, tuple[Any, ...]]] = [
    ((9,), (0,)),
    ((9,), (-1,)),
    ((17,), (slice(None, None, -1),)),
    ((33,), (slice(1, 32),)),
    ((33,), (slice(30, 2, -3),)),
    ((5, 33), (Ellipsis, 3)),
    ((5, 33), (slice(None), None, slice(16, None))),
    ((2, 3, 4), (1, Ellipsis, slice(0, 0))),
    ((), (None, Ellipsis)),
    ((3, 0, 2), (slice(1, None), slice(None), 1)),
    ((6, 7), (slice(None, None, 2), slice(None, None, -2))),
]
BASIC = drawn([Plan((shape,), {"key": key}) for shape, key in _KEYS], _basic)

# All mixes of slices, None and integer tensors; i and j broadcast with each other.
TEMPLATES: dict[str, Callable[..., Any]] = {
    "[i]": lambda i, j: (i,),
    "[:, i]": lambda i, j: (slice(None), i),
    "[..., i]": lambda i, j: (Ellipsis, i),
    "[i, j]": lambda i, j: (i, j),
    "[i, :, j]": lambda i, j: (i, slice(None), j),
    "[:, i, j]": lambda i, j: (slice(None), i, j),
    "[1:, i]": lambda i, j: (slice(1, None), i),
    "[None, i]": lambda i, j: (None, i),
    "[i, None, j]": lambda i, j: (i, None, j),
    "[2, i]": lambda i, j: (2, i),
    "[i, ::-1]": lambda i, j: (i, slice(None, None, -1)),
}


def _by_integers(name: str) -> Callable[..., Any]:
    return lambda x, i, j: x[TEMPLATES[name](i, j)]


def _integer_plans() -> Plans:
    """x is (5, 5, 5), so that the same indices are valid on each axis."""
    pairs: list[tuple[Shape, Shape]] = [
        ((7,), (7,)), ((), ()), ((2, 3), (3,)), ((17,), (1,)), ((0,), (0,)), ((3, 1), (1, 9)),
    ]  # fmt: skip
    domains = ("wide", "signed_index:5", "signed_index:5")
    edges = [Plan(((5, 5, 5), i, j), {}, domains) for i, j in pairs]
    return Plans(tuple(edges), st.sampled_from(edges))


_I, _J = np.array([[2, 0], [-1, 1]], np.int32), np.array([-2, 1], np.int32)
_MASK = np.array([[True, False, True], [False, False, True]])
_MIXED: list[tuple[Shape, tuple[Any, ...]]] = [
    ((3, 4), (_I, _J)),
    ((3, 4, 2), (_I, slice(None, None, -2), 1)),
    ((5, 3, 4), (slice(1, None, 3), _I, Ellipsis, _J)),  # the empty … separates the arrays
    ((2, 3, 4), (_MASK, _J[:, None])),
    ((4, 2, 3), (slice(None, 2), _MASK)),
    ((2, 3, 5), (_MASK, Ellipsis, None, slice(3, None, -1))),
]


def _mixed_plans(write: bool) -> Plans:
    def plan(given: tuple[Shape, tuple[Any, ...]]) -> Plan:
        shape, key = given
        value = (np.empty(shape)[key].shape,) if write else ()
        return Plan((shape, *value), {"key": key})

    return Plans(tuple(map(plan, _MIXED)), mixed().filter(accepted).map(plan))


_EXACT: dict[str, Any] = {"dtypes": ALL, "domains": ("wide",), "gradient_domains": None,
                          "differentiable": True}  # fmt: skip
READS = [
    Operation("x[basic]", lambda x, key: x[key], lambda x, key: x[key], BASIC,
              methods=("__getitem__",), **{**_EXACT, "gradient_domains": ("any",)}),
    *(Operation(f"x{name}", _by_integers(name), _by_integers(name), _integer_plans(),
                methods=("__getitem__",),
                **{**_EXACT, "gradient_domains": ("any",), "dtypes": ("float32", "int64", "bool"),
                   "tolerance": SUMMED})
      for name in TEMPLATES),
    Operation("x[mixed]", lambda x, key: x[of(x, key)], lambda x, key: x[key], _mixed_plans(False),
              methods=("__getitem__",), tolerance=SUMMED, layouts=False,
              **{**_EXACT, "gradient_domains": ("any",), "dtypes": ("float32", "int64", "bool")}),
    Operation("x[mask]", lambda x, m: x[m], lambda x, m: x[m],
              fixed(Plan(((9,), (9,)), {}, ("wide", "mask")),
                    Plan(((5, 7), (5, 7)), {}, ("wide", "mask")),
                    Plan(((5, 7), (5,)), {}, ("wide", "mask")),
                    Plan(((0,), (0,)), {}, ("wide", "mask"))),
              methods=("__getitem__",), **{**_EXACT, "domains": ("wide", "mask"),
                                           "gradient_domains": ("any", "mask")}),
    Operation("masked_select", method("masked_select"), lambda x, m: x[m],
              fixed(Plan(((9,), (9,))), Plan(((5, 33), (5, 33)))),
              **{**_EXACT, "domains": ("wide", "mask"), "gradient_domains": ("any", "mask")}),
    Operation("nonzero", method("nonzero"), np.argwhere, fixed(Plan(((9,),)), Plan(((5, 7),))),
              domains=("some_zeros",), dtypes=NUMBERS, result=lambda dtype: "int32"),
]  # fmt: skip


def _gather_plan(draw: Any) -> Plan:
    shape = draw(shapes(1, 3, st.integers(1, 9)))
    axis = draw(st.integers(0, len(shape) - 1))
    index = tuple(draw(st.integers(0, 17)) if a == axis else n for a, n in enumerate(shape))
    return Plan((shape, index), {"axis": axis}, ("wide", f"index:{shape[axis]}"))


_GATHERS = drawn([
    Plan(((9,), (33,)), {"axis": 0}, ("wide", "index:9")),
    Plan(((5, 33), (5, 2)), {"axis": 1}, ("wide", "index:33")),
    Plan(((5, 3), (0, 3)), {"axis": 0}, ("wide", "index:5")),
    Plan(((1,), (1,)), {"axis": 0}, ("wide", "index:1")),
], _gather_plan)  # fmt: skip


def _put_along(x: Any, index: Any, values: Any, axis: int) -> Any:
    """If several values go to one position, the last one wins."""
    result = x.copy()
    for place in np.ndindex(index.shape):
        target = list(place)
        target[axis] = int(index[place])
        result[tuple(target)] = values[place]
    return result


def _add_along(x: Any, index: Any, values: Any, axis: int) -> Any:
    result = x.copy()
    for place in np.ndindex(index.shape):
        target = list(place)
        target[axis] = int(index[place])
        result[tuple(target)] += values[place]
    return result


def _scatter_reduce(reduce: str) -> Callable[..., Any]:
    return lambda x, i, v, axis, **more: x.scatter_reduce(axis, i, v, reduce, **more)


def _reduce_along(
    reduce: str, x: Any, index: Any, values: Any, axis: int, include_self: bool = True
) -> Any:
    """All values for one position, with the old one if include_self, combined at once."""
    given: dict[tuple[int, ...], list[Any]] = {}
    for place in np.ndindex(index.shape):
        target = list(place)
        target[axis] = int(index[place])
        given.setdefault(tuple(target), []).append(values[place])
    combine = {"sum": np.sum, "prod": np.prod, "mean": np.mean, "amax": np.max, "amin": np.min}
    result = x.copy()
    for place, found in given.items():
        total = combine[reduce](([x[place]] if include_self else []) + found)
        result[place] = np.floor(total) if result.dtype.kind in "iu" else total
    return result


def _scatter_plans(values: str = "any") -> Plans:
    rows: list[tuple[Shape, Shape, int]] = [
        ((9,), (5,), 0), ((5, 7), (3, 7), 0), ((4, 17), (4, 5), 1), ((3,), (33,), 0),
    ]  # fmt: skip
    return fixed(*(
        Plan((x, index, index), {"axis": axis}, (values, f"index:{x[axis]}", values))
        for x, index, axis in rows
    ))  # fmt: skip


_LOOKUP: dict[str, Any] = {**_EXACT, "domains": ("wide", "index:5")}
_SCATTER: dict[str, Any] = {"dtypes": (*FLOATS, "int32"), "differentiable": True,
                            "special": False}  # fmt: skip
ADDRESSED = [
    Operation("gather", lambda x, i, axis: x.gather(axis, i),
              lambda x, i, axis: np.take_along_axis(x, i, axis), _GATHERS, tolerance=SUMMED,
              **_LOOKUP),
    Operation("take", lambda x, i: x.take(i), lambda x, i: x.reshape(-1)[i],
              fixed(Plan(((9,), (3,)), {}, ("wide", "index:9")),
                    Plan(((5, 7), (2, 2)), {}, ("wide", "index:35"))), **_LOOKUP),
    Operation("embedding", lambda w, i: i.embedding(w), lambda w, i: w[i],
              fixed(Plan(((5, 33), (7,)), {}, ("any", "index:5")),
                    Plan(((17, 8), (2, 3)), {}, ("any", "index:17")),
                    Plan(((3, 4), ()), {}, ("any", "index:3")),
                    Plan(((3, 4), (0,)), {}, ("any", "index:3"))),
              dtypes=FLOATS, differentiable=True, tolerance=SUMMED),
    Operation("one_hot", lambda i, classes: i.one_hot(classes),
              lambda i, classes: np.eye(classes)[i],
              fixed(Plan(((9,),), {"classes": 5}, ("index:5",)),
                    Plan(((2, 3),), {"classes": 17}, ("index:17",)),
                    Plan(((),), {"classes": 3}, ("index:3",))),
              dtypes=("int32",), result=lambda dtype: "int32"),
    Operation("scatter", lambda x, i, v, axis: x.scatter(axis, i, v), _put_along,
              _scatter_plans(), **_SCATTER),
    Operation("scatter_add", lambda x, i, v, axis: x.scatter_add(axis, i, v),
              _add_along, _scatter_plans(),
              tolerance=SUMMED, **_SCATTER),
    Operation("scatter with multiply", lambda x, i, v, axis: x.scatter(axis, i, v,
              reduce="multiply"), lambda *a, **k: _reduce_along("prod", *a, **k),
              _scatter_plans("near_one"), methods=("scatter",), tolerance=SUMMED,
              **{**_SCATTER, "differentiable": False}),
    *(Operation(f"scatter_reduce {reduce}", _scatter_reduce(reduce),
                lambda *a, _reduce=reduce, **k: _reduce_along(_reduce, *a, **k),
                with_choices(_scatter_plans("near_one" if reduce == "prod" else "distinct"),
                             [{}, {"include_self": False}]),
                methods=("scatter_reduce",), tolerance=SUMMED, **_SCATTER)
      for reduce in ("sum", "prod", "mean", "amax", "amin")),
    Operation("scatter with add", lambda x, i, v, axis: x.scatter(axis, i, v, reduce="add"),
              _add_along, _scatter_plans(),
              methods=("scatter",), tolerance=SUMMED, **{**_SCATTER, "differentiable": False}),
]  # fmt: skip


def _write(x: Any, key: Any, value: Any) -> Any:
    target = x.contiguous() if hasattr(x, "contiguous") else np.array(x)
    target[key] = value
    return target


def _add_in_place(x: Any, key: Any, value: Any) -> Any:
    target = x.contiguous() if hasattr(x, "contiguous") else np.array(x)
    target[key] += value
    return target


_WRITES: dict[str, Any] = {"dtypes": ALL, "domains": ("wide",), "methods": ("__setitem__",)}
_WRITE_KEYS = fixed(*(Plan((shape,), {"key": key}) for shape, key in _KEYS))
_VALUES = fixed(
    Plan(((9,), (4,)), {"key": (slice(0, 8, 2),)}),
    Plan(((5, 33), (33,)), {"key": (slice(1, 3),)}),
    Plan(((5, 33), (5, 1)), {"key": (slice(None), slice(31, 15, -1))}),
    Plan(((2, 3, 4), ()), {"key": (1, Ellipsis, -1)}),
    Plan(((17,), (17,)), {"key": (Ellipsis,)}),
)
WRITES = [
    Operation("x[basic] = scalar", lambda x, key: _write(x, key, 1), lambda x, key: _write(
              x, key, 1), _WRITE_KEYS, **_WRITES),
    Operation("x[basic] = y", lambda x, y, key: _write(x, key, y), lambda x, y, key: _write(
              x, key, y), _VALUES, **_WRITES),
    Operation("x[basic] += y", lambda x, y, key: _add_in_place(x, key, y), lambda x, y, key:
              _add_in_place(x, key, y), _VALUES, **{**_WRITES, "dtypes": NUMBERS}),
    Operation("x[mixed] = y", lambda x, y, key: _write(x, of(x, key), y),
              lambda x, y, key: _write(x, key, y), _mixed_plans(True), layouts=False, **_WRITES),
    Operation("x[i] = y", lambda x, i, y: _write(x, i, y), lambda x, i, y: _write(x, i, y),
              fixed(Plan(((9,), (1,), (1,)), {}, ("wide", "signed_index:9", "wide")),
                    Plan(((5, 17), (), (17,)), {}, ("wide", "signed_index:5", "wide"))),
              **_WRITES),
    Operation("x[mask] = scalar", lambda x, m: _write(x, m, 1), lambda x, m: _write(x, m, 1),
              fixed(Plan(((9,), (9,))), Plan(((5, 33), (5, 33))), Plan(((5, 4), (5,)))),
              **{**_WRITES, "domains": ("wide", "mask")}),
]  # fmt: skip

INDEXING = [*READS, *ADDRESSED, *WRITES]
