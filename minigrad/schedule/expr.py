"""Scalar expressions: how one element of a stage is computed.

An `Expr` is a tree (with sharing) over graph operations whose leaves read memory at an index, turn
an index into a value, or test a condition. Expressions are interned, so equal ones are identical.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from operator import attrgetter
from typing import Any

from minigrad.dtype import DType, convert, dtypes
from minigrad.graph.interned import Interned
from minigrad.graph.node import Shape, is_symbolic, topological
from minigrad.graph.numeric import Number, Numeric
from minigrad.graph.operations import NAMED, Members, Op
from minigrad.graph.shapes import numel, usual_numel
from minigrad.graph.substitution import (
    coefficient,
    proven_nonnegative,
    replace_values,
    substitute,
    variables,
)
from minigrad.graph.symbolic import Affine, Atom, Integer, high, low


class Leaf(Enum):
    """Operations of expressions besides those of graphs; fields are in parentheses."""

    __hash__ = object.__hash__  # Enum's own is written in Python

    LOAD = "load"  # (array, index, guard) an array at a flat index; 0 where the guard fails
    INDEX = "index"  # (index) an index as a value
    CONDITION = "condition"  # (index) whether it is ≥ 0
    FMA = "fma"  # not a leaf: args (a, b, c), a·b + c rounded once and never split or merged
    # not a leaf: args are two bfloat16 (in memory, or CASTs of loads) or four bytes in memory; they
    # become one uint32, the first lowest
    WORD = "word"
    # args (a, b, c): WORDs of two bfloat16 and a float32, a₀·b₀ + a₁·b₁ + c; or of four bytes, a's
    # unsigned and b's signed unless they are for matrix registers, and an int32
    DOT = "dot"
    # Operations of processors: see render/vector_math.py.
    QUOTIENT = "quotient"  # args (x, y): integers, to zero; y is not 0, nor −1 if x is signed
    REMAINDER = "remainder"  # args (x, y): with the sign of x; of integers as QUOTIENT
    # Index arithmetic, of int32 or int64: see render/indices.py.
    PLUS = "plus"  # args (x, y): the sum does not overflow
    TIMES = "times"  # args (x, y): the product does not overflow
    PART = "part"  # args (x, y): x / y, rounded down; x ≥ 0, y > 0
    REST = "rest"  # args (x, y): the remainder of PART
    # args (test, then, otherwise): `then` is always right, but slow; `otherwise` is right where the
    # test does not hold, which is nearly always the case
    RARELY = "rarely"
    WHOLE = "whole"  # args (x): a float in the range of an integer dtype, rounded to zero


Leaf.__class__ = Members  # type: ignore[assignment]

class _OneOfEach(type):
    """A class of which equal objects are one object, so that tables find it by its address."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        made = super().__call__(*values, **named)
        return _arrays.settle((*vars(made).values(),), made)


_arrays: Interned[Array] = Interned()


@dataclass(frozen=True, eq=False)
class Array(metaclass=_OneOfEach):
    """Memory, or registers of a loop nest, that stages and loops read and write.

    space: "buffer" (a kernel argument), "scratch", "local" (memory that a work-group shares), or
    "registers", whose indices are numbers once loops are unrolled. of: the array whose memory this
    one reinterprets as another dtype. whole: the array that this one is a part of (joins.py), with
    all of its memory. lanes, width: the loop whose iterations have their own registers, side by
    side, and how many. folded: these are combined in the end, so lanes outside of a mask must not
    change. image: (extent, start, stop) of each dimension, if all elements outside of start … stop
    are 0; () if nothing is known. size: elements, at most; usual: the number that costs are
    estimated for (0: size).
    """

    name: str
    dtype: DType
    size: int
    space: str = "buffer"
    of: Array | None = None
    whole: Array | None = None
    lanes: Atom | None = None
    width: int = 1
    folded: bool = False
    image: tuple[tuple[int, int, int], ...] = ()
    usual: int = 0

    @property
    def nbytes(self) -> int:
        """Its bytes in memory, at most."""
        return self.size * self.dtype.itemsize

    @property
    def usual_bytes(self) -> int:
        """Its bytes in memory, usually."""
        return (self.usual or self.size) * self.dtype.itemsize

    @property
    def words(self) -> Array:
        """The same memory as numbers of 32 bits."""
        count = 4 // self.dtype.itemsize  # elements in a word
        size, usual = self.size // count, self.usual // count
        return replace(self, dtype=dtypes.uint32, size=size, usual=usual, of=self.of or self)

    @property
    def in_registers(self) -> bool:
        """Whether it consists of registers."""
        return self.space == "registers"

    def __repr__(self) -> str:
        return self.name


Guard = tuple[Affine, ...]


class Expr(Numeric):
    """One scalar operation.

    operands: what it is computed from, `args` or the expressions inside a leaf's indices. indices:
    those of a leaf, guards included. variables: the loop variables that its value depends on.
    inner_loads: all LOADs below it, each once. Other fields depend on the op: CONST has a `value`;
    LOAD `array`, `index` and `guard`; INDEX and CONDITION an `index`.
    """

    __slots__ = (
        "op", "dtype", "args", "operands", "value", "array", "index", "guard", "indices",
        "variables", "inner_loads", "__weakref__",
    )  # fmt: skip
    op: Op | Leaf
    dtype: DType
    args: tuple[Expr, ...]
    operands: tuple[Expr, ...]
    value: int | float | bool
    array: Array
    index: Integer
    guard: Guard
    indices: tuple[Integer, ...]
    variables: frozenset[Atom]
    inner_loads: tuple[Expr, ...]

    @property
    def in_registers(self) -> bool:
        """Whether it is the value of a register."""
        return self.op is Leaf.LOAD and self.array.space == "registers"

    def __repr__(self) -> str:
        return show(self)

    def operation(self, name: str, *others: Expr | Number) -> Expr:
        """An elementwise operation on self and others; name: the value of its `Op`."""
        op = NAMED[name]
        args = (self, *(x if isinstance(x, Expr) else self.constant(x) for x in others))
        return apply(op, args, dtypes.bool if op.facts.compares else args[-1].dtype)

    def constant(self, value: Number, dtype: DType | None = None) -> Expr:
        """A constant."""
        return const(value, dtype or self.dtype)

    def known(self) -> Number | None:
        """The value of a constant, else None."""
        return self.value if self.op is Op.CONST else None

    def cast(self, dtype: DType) -> Expr:
        """The value converted to a dtype."""
        return apply(Op.CAST, (self,), dtype)

    def bits_as(self, dtype: DType) -> Expr:
        """The bits read as another dtype of equal size."""
        return apply(Op.BITCAST, (self,), dtype)

    def fused(self, factor: Expr, addend: Expr | Number) -> Expr:
        """self·factor + addend with one rounding, guaranteed (unlike `*` and `+`)."""
        last = addend if isinstance(addend, Expr) else self.constant(addend)
        return apply(Leaf.FMA, (self, factor, last), self.dtype)

    def rarely(self, then: Expr, otherwise: Expr) -> Expr:
        """`then`, which is always right; or, where self does not hold, `otherwise`."""
        return apply(Leaf.RARELY, (self, then, otherwise), then.dtype)

    def substitute_atom(self, atom: Atom, values: Mapping[Atom, Integer]) -> Integer:
        """The `value` atom whose payload is this expression, after a substitution."""
        return value_of(substitute_in(self, values), (atom.low, atom.high))


_interned: Interned[Expr] = Interned()


def _make(
    op: Op | Leaf, dtype: DType, args: tuple[Expr, ...] = (), indices: tuple[Any, ...] = (),
    beside: Any = None, value: Any = None,
) -> Expr:  # fmt: skip
    """The one expression of an op, a dtype, args, indices, and an array or a constant's bits."""
    key = (op, dtype, args, indices, beside)
    link = _interned.get(key)
    expr = None if link is None else link()
    if expr is None:
        expr = Expr()
        expr.op, expr.dtype, expr.args = op, dtype, args
        expr.indices, expr.array, expr.value = indices, beside, value
        if indices:
            expr.index, *guard = indices
            expr.guard = tuple(guard)
        expr.operands = args or tuple([e for x in indices for e in values_in(x)])
        known = [arg.variables for arg in args] or [*map(variables, indices)]
        if op is Leaf.LOAD and beside.lanes is not None:
            known.append(frozenset((beside.lanes,)))
        expr.variables = frozenset().union(*known)
        expr.inner_loads = tuple(loads(*expr.operands)) if expr.operands else ()
        expr = _interned.settle(key, expr)
    return expr


def with_indices(leaf: Expr, new: Callable[[Integer], Integer]) -> Expr:
    """A leaf with `new` applied to all of its indices."""
    if leaf.op is Leaf.LOAD:
        return load(leaf.array, new(leaf.index), restrict((), map(new, leaf.guard)))
    if leaf.op is Leaf.INDEX:
        return index(new(leaf.index), leaf.dtype)
    test = new(leaf.index)
    return const(True, dtypes.bool) if proven_nonnegative(test) else condition(test)


def const(value: int | float | bool, dtype: DType) -> Expr:
    """A constant."""
    value = convert(value, dtype)
    key = struct.pack("<d", value) if dtype.is_float else int(value)
    return _make(Op.CONST, dtype, beside=key, value=value)


def array_of(
    name: str, dtype: DType, shape: Shape, image: tuple[tuple[int, int, int], ...] = ()
) -> Array:
    """The array of a value of this shape."""
    usual = usual_numel(shape) if is_symbolic(shape) else 0
    return Array(name, dtype, numel(shape), image=image, usual=usual)


def load(array: Array, index: Integer = 0, guard: Guard = ()) -> Expr:
    """array[index], or 0 where one of the guard's conditions is negative."""
    return _make(Leaf.LOAD, array.dtype, (), (index, *guard), array)


def register(name: str, dtype: DType) -> Expr:
    """The value of a new register."""
    return load(Array(name, dtype, 1, "registers"))


def index(value: Integer, dtype: DType = dtypes.int32) -> Expr:
    """An index as a value."""
    if isinstance(value, int):
        return const(value, dtype)
    return _make(Leaf.INDEX, dtype, (), (value,))


def condition(value: Integer) -> Expr:
    """Whether value ≥ 0."""
    if isinstance(value, int) or value.high < 0:
        return const(high(value) >= 0, dtypes.bool)
    return _make(Leaf.CONDITION, dtypes.bool, (), (value,))


def apply(op: Op | Leaf, args: tuple[Expr, ...], dtype: DType) -> Expr:
    """An elementwise operation on scalars, with simple cases simplified."""
    if op is Op.WHERE:
        if args[0].op is Op.CONST:
            return args[1] if args[0].value else args[2]
        if args[1] is args[2]:
            return args[1]
        test, yes, no = args
        if no.known() is False:
            return apply(Op.AND, (test, yes), dtype)
        if yes.op is Op.WHERE and yes.args[0] is test:
            return apply(op, (test, yes.args[1], no), dtype)
    if op is Op.EQ and args[0].op is Leaf.INDEX and args[1].op is Op.CONST:
        apart = args[0].index - int(args[1].value)
        if low(apart) > 0 or high(apart) < 0:
            return const(False, dtypes.bool)
    if op is Op.CAST and args[0].dtype is dtype:
        return args[0]
    if op is Op.AND and dtype.is_bool:
        for one, other in (args, args[::-1]):
            if one.op is Op.CONST:
                return other if one.value else one
    return _make(op, dtype, args)


def value_of(expr: Expr, bounds: tuple[int, int] | None = None) -> Integer:
    """An integer expression as part of an index; bounds: its least and its greatest value."""
    if expr.op is Op.CONST:
        return int(expr.value)
    if expr.op is Leaf.INDEX:
        return expr.index
    # Indices are computed in int64, where the upper half of uint64 is negative: it is out of range.
    dtype = dtypes.int64 if expr.dtype is dtypes.uint64 else expr.dtype
    low, high = bounds or (int(dtype.minimum), int(dtype.maximum))
    return Atom("value", "", low, high, payload=expr).index


def restrict(guard: Guard, conditions: Iterable[Integer]) -> Guard:
    """The guard with more conditions, without those that always hold."""
    added = list(guard)
    for c in conditions:
        if isinstance(c, int):
            if c < 0:
                return (Atom("var", "never", -1, -1).index,)
        elif c not in added and not proven_nonnegative(c):
            added.append(c)
    return tuple(added)


def guarded(guard: Guard, inner: Expr, otherwise: Expr) -> Expr:
    """inner where every condition of the guard holds, else otherwise."""
    test: Expr | None = None
    for c in guard:
        one = condition(c)
        test = one if test is None else apply(Op.AND, (test, one), dtypes.bool)
    return inner if test is None else apply(Op.WHERE, (test, inner, otherwise), inner.dtype)


def walk(*roots: Expr) -> list[Expr]:
    """All distinct expressions below roots, operands first (loads inside indices included)."""
    if len(roots) == 1 and not roots[0].operands:
        return [*roots]
    return topological(roots, (), _operands)


_operands: Callable[[Expr], tuple[Expr, ...]] = attrgetter("operands")


def values_in(x: Integer) -> tuple[Expr, ...]:
    """Expressions inside an index's `value` atoms."""
    if isinstance(x, int):
        return ()
    found: tuple[Expr, ...] = ()
    for atom, _ in x.terms:
        if atom.kind == "value":
            found += (atom.payload,)
        elif atom.inner is not None:
            found += values_in(atom.inner)
    return found


def loads(*roots: Expr) -> Sequence[Expr]:
    """The distinct LOAD leaves below roots, registers included.

    Loads inside an index come before the load that has the index.
    """
    found = [(*e.inner_loads, e) if e.op is Leaf.LOAD else e.inner_loads for e in roots]
    return found[0] if len(found) == 1 else [*dict.fromkeys(chain.from_iterable(found))]


def adjacent(parts: Sequence[Expr]) -> bool:
    """Whether expressions are loads of neighbours in memory, in order, without conditions."""
    return all(
        e.op is Leaf.LOAD and not e.guard and e.index == parts[0].index + n
        for n, e in enumerate(parts)
    )


def strides(x: Atom, *roots: Expr) -> set[int | None]:
    """The steps of all loads below roots along a variable; None for a step that varies."""
    return {coefficient(load.index, x) for load in loads(*roots)}


def rebuild(root: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """root with leaves replaced: `change` gets each leaf and gives its replacement or None.

    Expressions inside the indices of a leaf are rebuilt before the leaf.
    """
    new: dict[Expr, Expr] = {}
    for expr in walk(root):
        made = with_operands(expr, new) if expr.operands else expr
        new[expr] = made if expr.args else change(made) or made
    return new[root]


def map_loads(root: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """`rebuild`, where only loads are changed."""
    return rebuild(root, lambda leaf: change(leaf) if leaf.op is Leaf.LOAD else None)


def replace_in(root: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """root with subexpressions replaced, except inside indices."""
    new: dict[Expr, Expr] = {}
    for expr in walk(root):
        new[expr] = values.get(expr) or (with_operands(expr, new) if expr.args else expr)
    return new[root]


def with_operands(expr: Expr, new: Mapping[Expr, Expr]) -> Expr:
    """An expression with new values of its operands, which for a leaf are inside of its indices."""
    operands = tuple([new[operand] for operand in expr.operands])
    if operands == expr.operands:
        return expr
    if expr.args:
        return apply(expr.op, operands, expr.dtype)
    return with_indices(expr, lambda x: replace_values(x, lambda e: value_of(new[e])))


def substitute_in(root: Expr, values: Mapping[Atom, Integer]) -> Expr:
    """root with loop variables replaced."""
    if root.variables.isdisjoint(values):
        return root

    # rebuild substitutes inside loaded values
    def moved(leaf: Expr) -> Expr | None:
        if leaf.variables.isdisjoint(values):
            return None
        return with_indices(leaf, lambda x: substitute(x, values, in_loaded=False))

    return rebuild(root, moved)


def show(root: Expr) -> str:
    """The expression as one line of text (with sharing lost; for printing only)."""
    text: dict[Expr, str] = {}
    for expr in walk(root):
        if expr.op is Op.CONST:
            text[expr] = str(expr.value)
        elif expr.op is Leaf.LOAD:
            test = "".join(f" if {c!r}>=0" for c in expr.guard)
            text[expr] = f"{expr.array!r}[{expr.index!r}{test}]"
        elif expr.op is Leaf.INDEX:
            text[expr] = f"({expr.index!r})"
        elif expr.op is Leaf.CONDITION:
            text[expr] = f"({expr.index!r} >= 0)"
        else:
            args = [text[arg] for arg in expr.args]
            symbol = expr.op.facts.symbol if isinstance(expr.op, Op) else ""
            if symbol:
                text[expr] = f"({args[0]} {symbol} {args[1]})"
            else:
                name = expr.dtype.name if expr.op is Op.CAST else expr.op.value
                text[expr] = f"{name}({', '.join(args)})"
        if len(text[expr]) > 4000:
            text[expr] = text[expr][:3990] + "…"
    return text[root]


def cost(op: Op | Leaf) -> int:
    """The approximate number of vector instructions of one evaluation."""
    return 0 if op is Op.CONST else op.facts.cost if isinstance(op, Op) else 1


def operations(root: Expr) -> int:
    """Σ cost over the distinct expressions below root."""
    return sum(cost(expr.op) for expr in walk(root))
