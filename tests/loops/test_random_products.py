"""Products of random shapes and views agree with numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor

SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))


@st.composite
def operand(draw: st.DrawFn, rows: int, columns: int) -> tuple[np.ndarray, list[tuple[str, Any]]]:
    """An array, and the steps that make a (rows, columns) view of it."""
    kinds = ["plain", "transposed", "stepped", "broadcast", "padded", "flipped"]
    kind = draw(st.sampled_from(kinds))
    shape, steps = (rows, columns), [(kind, None)]
    if kind == "transposed":
        shape = (columns, rows)
    elif kind == "stepped":
        first, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        shape, steps = (rows * step + first, columns + first), [(kind, (first, step, rows))]
    elif kind == "broadcast":
        shape, steps = (1, columns), [(kind, (rows, columns))]
    elif kind == "padded":
        before, after = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        shape, steps = (rows - before, columns - after), [(kind, (before, after))]
    seed = draw(st.integers(0, 99))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32), steps


def view_of(x: Any, steps: list[tuple[str, Any]]) -> Any:
    """The view, of a Tensor or of an array."""
    ((kind, how),) = steps
    if kind == "transposed":
        return x.T
    if kind == "flipped":
        return x[::-1, ::-1]
    if kind == "stepped":
        first, step, rows = how
        return x[first::step][:rows, first:]
    if kind == "broadcast":
        return x.expand(how) if isinstance(x, Tensor) else np.broadcast_to(x, how)
    if kind == "padded":
        before, after = how
        if isinstance(x, Tensor):
            return x.pad((0, after, before, 0))
        return np.pad(x, ((before, 0), (0, after)))
    return x


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_products(data: st.DataObject) -> None:
    m, k, n = (data.draw(SIDES, name) for name in "mkn")
    a, left = data.draw(operand(m, k), "left")
    b, right = data.draw(operand(k, n), "right")
    found = (view_of(Tensor(a), left) @ view_of(Tensor(b), right)).numpy()
    exact = view_of(a.astype(np.float64), left) @ view_of(b.astype(np.float64), right)
    size = np.abs(view_of(a, left)).astype(np.float64) @ np.abs(view_of(b, right))
    assert found.shape == exact.shape
    np.testing.assert_array_less(np.abs(found - exact), 1e-6 * size + 1e-30)
