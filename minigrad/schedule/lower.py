"""From nodes to scalar expressions: index expressions are pushed through movement operations.

Movement operations never become code. `Lowering.value(node, index)` starts with the index of one
element and walks towards the sources; each movement operation changes the index, a PAD adds a
condition, and what is left at the leaves is a load at an index expression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minigrad.errors import CompileError
from minigrad.graph.node import Node
from minigrad.graph.operations import ELEMENTWISE, Op
from minigrad.graph.shapes import flatten, reshape_index
from minigrad.graph.symbolic import Integer
from minigrad.schedule import expr
from minigrad.schedule.expr import Array, Expr, Guard, restrict

Index = tuple[Integer, ...]
# A value that is asked for: this node's element at this index, read under this guard.
Request = tuple[Node, Index, Guard]


class Lowering:
    """Lowers values of one kernel; `arrays` maps the nodes that are in memory to their arrays."""

    def __init__(self, arrays: Mapping[Node, Array]) -> None:
        self.arrays = arrays
        self.known: dict[Request, Expr] = {}

    def value(self, node: Node, index: Index, inside: bool = False) -> Expr:
        """The expression of node[index]; `inside` computes node even if it has an array."""
        first: Request = (node, index, ())
        stack = [first]
        while stack:
            top = stack[-1]
            if top in self.known:
                stack.pop()
            elif top[0] in self.arrays and not (inside and top is first):
                self.known[top] = self._load(top)
            else:
                sources = self._sources(top)
                missing = [source for source in sources if source not in self.known]
                stack += missing
                if not missing:
                    self.known[top] = self._combine(top, [self.known[source] for source in sources])
        return self.known[first]

    def _load(self, request: Request) -> Expr:
        node, index, guard = request
        return expr.load(self.arrays[node], flatten(index, node.shape), guard)

    def _sources(self, request: Request) -> list[Request]:
        """What a request needs. GATHER asks for its index first, and then for what it selects."""
        node, index, guard = request
        if node.op in ELEMENTWISE:
            return [(source, index, guard) for source in node.src]
        if node.op in (Op.CONTIGUOUS, Op.COPY, Op.ASSIGN):
            return [(node.src[-1], index, guard)]
        if node.op not in _MOVES and node.op not in (Op.PAD, Op.GATHER):
            return []
        first = [(source, index, guard) for source in node.src[1:]]  # of a GATHER
        if any(source not in self.known for source in first):
            return first
        moved, conditions = self._moved(request)
        return [*first, (node.src[0], moved, restrict(guard, conditions))]

    def _moved(self, request: Request) -> tuple[Index, list[Integer]]:
        """The index that is read in the source, and the conditions for it to be in range."""
        node, index, guard = request
        if node.op is Op.PAD:
            return _unpad(node, index)
        if node.op is not Op.GATHER:
            return _MOVES[node.op](node, index), []
        where = expr.value_of(self.known[node.src[1], index, guard])
        moved = tuple(where if axis == node.arg else i for axis, i in enumerate(index))
        return moved, [where, node.src[0].shape[node.arg] - 1 - where]

    def _combine(self, request: Request, args: list[Expr]) -> Expr:
        node, index, _ = request
        op = node.op
        if op in ELEMENTWISE:
            return expr.apply(op, tuple(args), node.dtype)
        if op is Op.CONST:
            return expr.const(node.arg, node.dtype)
        if op is Op.IOTA:
            return expr.index(index[0], node.dtype)
        if op is Op.VARIABLE:
            return expr.index(node.arg, node.dtype)
        if op is Op.PAD or op is Op.GATHER:
            new = restrict((), self._moved(request)[1])
            return expr.guarded(new, args[-1], expr.const(0, node.dtype))
        if args:
            return args[0]
        raise CompileError(f"{node!r} must be stored before it can be read")


def _unpad(node: Node, index: Index) -> tuple[Index, list[Integer]]:
    """The index into a PAD's source and the conditions under which it exists."""
    moved = []
    conditions: list[Integer] = []
    source = node.src[0].shape
    for i, (before, after), extent in zip(index, node.arg, source, strict=True):
        inner = i - before
        moved.append(inner)
        if before != 0:
            conditions.append(inner)
        if after != 0:
            conditions.append(extent - 1 - inner)
    return tuple(moved), conditions


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
    Op.WINDOW: _unwindow,
}
