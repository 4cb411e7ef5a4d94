"""Loaded values that are indices of loaded values, and so on: each one's text is made only once."""

from __future__ import annotations

import pytest

from minigrad.dtype import dtypes
from minigrad.graph.symbolic import Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import make_axis
from minigrad.schedule.expr import Array


def test_each_index_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are ordered by their text; a binary search doubled the work at each level."""
    shown = []
    show = expr.show

    def counted(root: expr.Expr) -> str:
        shown.append(root)
        return show(root)

    monkeypatch.setattr(expr, "show", counted)
    array, depth = Array("deep", dtypes.int32, 8), 10
    x: Integer = make_axis("deep", 0, 8).index
    for _ in range(depth):
        value = expr.value_of(expr.load(array, x))
        x = value // 3 + value % 2
    assert "deep[" in repr(x)
    assert len(shown) <= 2 * depth
