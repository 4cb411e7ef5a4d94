"""What the functions that make nodes refuse, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from devices import CPU

from minigrad.dtype import DType, dtypes
from minigrad.graph import build
from minigrad.graph.collective import exchange
from minigrad.graph.node import Node, Op, bitcast, elementwise
from minigrad.graph.symbolic import Integer, var


def leaf(*shape: Integer, dtype: DType = dtypes.float32, slot: int = 0) -> Node:
    return build.buffer(slot, dtype, shape, CPU)


X, WHOLE, LENGTH = leaf(2, 3), leaf(2, 3, dtype=dtypes.int32), var("n", 1, 9)
BINS = leaf(3, 2, dtype=dtypes.uint8)

REFUSED: dict[str, Callable[[], object]] = {
    "Op.ADD is not a reduction": lambda: build.reduce(Op.ADD, X, (0,)),
    "sum: invalid axes (2,) for an array with 2": lambda: build.reduce(Op.SUM, X, (2,)),
    "got shapes (2, 3) and (3, 2) and (2, 3)": lambda: build.distribute(WHOLE, BINS, X),
    "a uint8 bin, got float32 and int32": lambda: build.distribute(leaf(2, 256), WHOLE, X),
    "permute: invalid order (0, 0)": lambda: build.permute(X, (0, 0)),
    "per dimension of (2, 3), got ((1, 1),)": lambda: build.pad(X, [(1, 1)]),
    "per dimension of (2, 3), got ((0, 1),)": lambda: build.shrink(X, [(0, 1)]),
    "flip: invalid axes (2,)": lambda: build.flip(X, (2,)),
    "known sizes along it, got shapes (2, 3)": lambda: build.cat([X, leaf(LENGTH, 3)], 0),
    "along that axis, got float32 (2, 3) and int32": lambda: build.cat([X, WHOLE], 0),
    "expected each axis once": lambda: build.window(X, [(1, 1, 1, 1), (1, 1, 1, 1)]),
    "got base float32 and index (2, 3)": lambda: build.scatter_add(X, WHOLE, WHOLE, 0),
    "of an integer dtype, got float32": lambda: build.gather(X, X, 0),
    "axis, got shapes (2, 3) and": lambda: build.gather(X, leaf(2, dtype=WHOLE.dtype), 0),
    "a BUFFER as target, got SUM": lambda: build.assign(build.reduce(Op.SUM, X, (0,)), X),
    "got (2, 3) int32 and (2, 3) float32": lambda: build.assign(X, WHOLE),
    "elementwise(Op.ADD): expected 2 operands, got 1": lambda: elementwise(Op.ADD, X),
    "add: expected one dtype, got ['float32'": lambda: elementwise(Op.ADD, X, WHOLE),
    "a bool condition, got float32": lambda: elementwise(Op.WHERE, X, X, X),
    "equal sizes, got float32 and uint8": lambda: bitcast(X, dtypes.uint8),
    "unknown exchange 'swap'": lambda: exchange("swap", "dp", 2, [X]),
    "all_gather: invalid reduction 'sum'": lambda: exchange("all_gather", "dp", 2, [X], "sum"),
    "arrays, got float32": lambda: exchange("all_reduce", "dp", 2, [X, WHOLE], "sum"),
    "expected one array, got 2": lambda: exchange("all_to_all", "dp", 2, [X, X]),
    "ranks, got (n, 3)": lambda: exchange("permute", "dp", 2, [leaf(LENGTH, 3)]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_node_is_refused(words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        REFUSED[words]()
