"""From nodes to scalar expressions: index expressions are pushed through movement operations.

Movement operations never become code. `Lowering.value(node, index)` starts with the index of one
element and walks towards the sources; each movement operation changes the index, a PAD adds a
condition, and what is left at the leaves is a load at an index expression.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Mapping, Sequence

from minigrad.errors import CompileError
from minigrad.graph.node import Node, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, Op
from minigrad.graph.shapes import flatten, reshape_index
from minigrad.graph.substitution import replace_atoms
from minigrad.graph.symbolic import Atom, Integer, high, var, where_small
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard, restrict

Index = tuple[Integer, ...]
_SAME = (Op.CONTIGUOUS, Op.COPY, Op.ASSIGN)  # their elements are those of the last source
# A request for a value: this node's element at this index, read under this guard.
Request = tuple[Node, Index, Guard]


class Lowering:
    """Lowers values of one kernel; `arrays` maps the nodes that are in memory to their arrays."""

    def __init__(self, arrays: Mapping[Node, Array]) -> None:
        self.arrays = arrays
        self.known: dict[tuple[Index, Guard], dict[Node, Expr]] = {}

    def value(self, node: Node, index: Index, inside: bool = False) -> Expr:
        """The expression of node[index]; `inside` computes node even if it has an array."""
        stack = [self._lowered(node, index, (), inside)]
        answer: Expr | None = None
        while stack:
            try:
                asked = stack[-1].send(answer)  # type: ignore[arg-type]  # None begins
                stack.append(self._lowered(*asked))
                answer = None
            except StopIteration as end:
                answer = end.value
                stack.pop()
        assert answer is not None
        return answer

    def _lowered(
        self, node: Node, index: Index, guard: Guard, inside: bool = False
    ) -> Generator[Request, Expr, Expr]:
        """The expression of a request; yields requests for elements at other indices.

        (A coroutine, because graphs are deeper than Python's stack.)
        """
        known = self.known.setdefault((index, guard), {})
        arrays, own = self.arrays, node if inside else None

        def below(x: Node) -> Sequence[Node]:
            computed = x.op in ELEMENTWISE and x not in known and (x not in arrays or x is own)
            return x.src if computed else ()

        for x in topological([node], (), below):
            if x in known:
                continue
            if x in arrays and x is not own:
                known[x] = expr.load(arrays[x], flatten(index, x.shape), guard)
            elif x.op in ELEMENTWISE:
                known[x] = expr.apply(x.op, tuple([known[source] for source in x.src]), x.dtype)
            else:
                known[x] = yield from self._leaf(x, index, guard)
        return known[node]

    def _leaf(self, node: Node, index: Index, guard: Guard) -> Generator[Request, Expr, Expr]:
        """The same for a node that is not stored, and whose sources have another index."""
        op = node.op
        if op is Op.CONST:
            return expr.const(node.arg, node.dtype)
        if op is Op.IOTA or op is Op.VARIABLE:
            return expr.index(index[0] if op is Op.IOTA else node.arg, node.dtype)
        if op in _SAME:
            return (yield node.src[-1], index, guard)
        if op is Op.GATHER:
            where = expr.value_of((yield node.src[1], index, guard))
            moved = tuple(where if axis == node.arg else i for axis, i in enumerate(index))
            conditions: list[Integer] = [where, node.src[0].shape[node.arg] - 1 - where]
        elif op in MOVEMENT:
            moved, conditions = _MOVES[op](node, index), []
            if op is Op.PAD:
                moved, conditions = _inside(node, moved)
        else:
            raise CompileError(f"{node!r} must be stored before it can be read")
        value = yield node.src[0], moved, restrict(guard, conditions)
        return expr.guarded(restrict((), conditions), value, expr.const(0, node.dtype))


def _inside(pad: Node, moved: Index) -> tuple[Index, list[Integer]]:
    """An index into a PAD's source, and the conditions under which it exists.

    If these bound a remainder so that it needs no division, it is replaced. Example: a matrix whose
    diagonal becomes a column by a reshape: (1024·i + j) % 1025 ≤ 0 where j − i = 0.
    """
    conditions: list[Integer] = []
    places: dict[Atom, Integer] = {}
    for inner, (before, after), extent in zip(moved, pad.arg, pad.src[0].shape, strict=True):
        small = where_small(inner, extent) if isinstance(extent, int) and after != 0 else {}
        places |= small
        if before != 0 or small:
            conditions.append(replace_atoms(inner, small))
        if after != 0:
            conditions.append(extent - 1 - replace_atoms(inner, small))
    return tuple(replace_atoms(inner, places) for inner in moved), conditions


def _unpermute(node: Node, index: Index) -> Index:
    moved: list[Integer] = [0] * len(index)
    for i, axis in zip(index, node.arg, strict=True):
        moved[axis] = i
    return tuple(moved)


def _unwindow(node: Node, index: Index) -> Index:
    moved = list(index[: node.src[0].ndim])
    places = index[len(moved) :]
    for (axis, _, step, dilation), place in zip(node.arg, places, strict=True):
        moved[axis] = moved[axis] * step + place * dilation
    return tuple(moved)


_MOVES: dict[Op, Callable[[Node, Index], Index]] = {
    Op.RESHAPE: lambda node, index: reshape_index(index, node.shape, node.src[0].shape),
    Op.PERMUTE: _unpermute,
    Op.EXPAND: lambda node, index: tuple(
        0 if extent == 1 else i for i, extent in zip(index, node.src[0].shape, strict=True)
    ),
    Op.SHRINK: lambda node, index: tuple(
        i + start for i, (start, _) in zip(index, node.arg, strict=True)
    ),
    Op.FLIP: lambda node, index: tuple(
        extent - 1 - i if axis in node.arg else i
        for axis, (i, extent) in enumerate(zip(index, node.shape, strict=True))
    ),
    Op.PAD: lambda node, index: tuple(
        i - before for i, (before, _) in zip(index, node.arg, strict=True)
    ),
    Op.WINDOW: _unwindow,
}


def shown(node: Node, through: Container[Op]) -> tuple[list[Node], Index, Index]:
    """Follow a node through movements and casts.

    Returns the nodes on the way, the last one included; an index into the first, with a variable
    for each axis; and the same element's index into the last.
    """
    chain, places = [node], tuple(
        var(f"i{axis}", 0, max(high(extent) - 1, 0)) for axis, extent in enumerate(node.shape)
    )
    index: Index = places
    while node.op in through:
        index = _MOVES[node.op](node, index) if node.op is not Op.CAST else index
        node = node.src[0]
        chain.append(node)
    return chain, places, index
