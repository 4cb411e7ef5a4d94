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
BINS = leaf(2, 3, dtype=dtypes.uint8)

REFUSED: dict[str, Callable[[], object]] = {
    "Op.ADD is not a reduction": lambda: build.reduce(Op.ADD, X, (0,)),
    "sum: axes (2,) of an array of 2 dimensions": lambda: build.reduce(Op.SUM, X, (2,)),
    "distribute of (2, 3) and (2, 3) and (2, 3)": lambda: build.distribute(WHOLE, BINS, X),
    "distribute of float32 and uint8": lambda: build.distribute(leaf(2, 256), BINS, X),
    "permute (0, 0) of an array of 2": lambda: build.permute(X, (0, 0)),
    "pad ((1, 1),) of shape (2, 3)": lambda: build.pad(X, [(1, 1)]),
    "shrink ((0, 1),) of shape (2, 3)": lambda: build.shrink(X, [(0, 1)]),
    "flip: axes (2,) of an array of 2": lambda: build.flip(X, (2,)),
    "cat along axis 0 of (2, 3) and (n, 3)": lambda: build.cat([X, leaf(LENGTH, 3)], 0),
    "cat along axis 0 of float32 (2, 3) and int32": lambda: build.cat([X, WHOLE], 0),
    "an axis twice": lambda: build.window(X, [(1, 1, 1, 1), (1, 1, 1, 1)]),
    "scatter_add of base float32 and index (2, 3)": lambda: build.scatter_add(X, WHOLE, WHOLE, 0),
    "gather: the index is float32": lambda: build.gather(X, X, 0),
    "gather along axis 0 of (2, 3) and": lambda: build.gather(X, leaf(2, dtype=WHOLE.dtype), 0),
    "assign to SUM": lambda: build.assign(build.reduce(Op.SUM, X, (0,)), X),
    "assign of (2, 3) int32 and (2, 3) float32": lambda: build.assign(X, WHOLE),
    "elementwise(Op.ADD): expected 2 operands, got 1": lambda: elementwise(Op.ADD, X),
    "add: dtypes ['float32', 'int32'] differ": lambda: elementwise(Op.ADD, X, WHOLE),
    "the condition is float32": lambda: elementwise(Op.WHERE, X, X, X),
    "bitcast from float32 to uint8": lambda: bitcast(X, dtypes.uint8),
    "unknown exchange 'swap'": lambda: exchange("swap", "dp", 2, [X]),
    "all_gather with reduction 'sum'": lambda: exchange("all_gather", "dp", 2, [X], "sum"),
    "one exchange of float32, int32": lambda: exchange("all_reduce", "dp", 2, [X, WHOLE], "sum"),
    "all_to_all takes one array, got 2": lambda: exchange("all_to_all", "dp", 2, [X, X]),
    "shape (n, 3); expected plain ints": lambda: exchange("permute", "dp", 2, [leaf(LENGTH, 3)]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_node_is_refused(words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        REFUSED[words]()
