"""Nodes: the immutable, interned operations of which every program is made.

A `Node` is one operation on whole arrays. The same operation on the same sources *is* the same
object, so a common subexpression costs nothing and `is` compares. The table `Op` below is the whole
instruction set; a matrix product is `SUM(MUL(a, b))` seen through movement operations.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

from minigrad.dtype import DType, convert, dtypes
from minigrad.graph.interned import Interned
from minigrad.graph.symbolic import Affine, Integer

Shape = tuple[Integer, ...]


class Op(Enum):
    """What a node does. Argument `arg` in parentheses."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and each node hashes its op

    def __setattr__(self, name: str, value: object) -> None:
        if "_sort_order_" in self.__dict__:  # the last that Enum sets
            raise AttributeError(f"{self} cannot be changed: every node of it would be another")
        object.__setattr__(self, name, value)

    # sources
    CONST = "const"  # every element is arg
    BUFFER = "buffer"  # memory (a device Buffer; an int slot in a canonical graph)
    IOTA = "iota"  # 0, 1, 2 … along one axis of length shape[0]
    VARIABLE = "variable"  # the value of a symbolic integer (an Affine), a 0-d int32

    # elementwise, one source
    NEG = "neg"
    NOT = "not"  # logical for bool, bitwise for integers
    SQRT = "sqrt"
    EXP = "exp"
    EXP2 = "exp2"
    LOG = "log"
    LOG2 = "log2"
    SIN = "sin"
    COS = "cos"
    ASIN = "asin"
    ACOS = "acos"
    ATAN = "atan"
    TANH = "tanh"
    ERF = "erf"
    FLOOR = "floor"
    CEIL = "ceil"
    TRUNC = "trunc"
    ROUND = "round"  # half to even
    CAST = "cast"  # (dtype) float → int truncates and saturates, NaN → 0
    BITCAST = "bitcast"  # (dtype) of equal size

    # elementwise, two sources
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"  # floats only
    IDIV = "idiv"  # integers, floor; x // 0 = 0
    MOD = "mod"  # sign of the divisor; integers: x % 0 = 0
    POW = "pow"  # floats only
    MAXIMUM = "maximum"  # NaN wins
    MINIMUM = "minimum"  # NaN wins
    LT = "lt"
    LE = "le"
    EQ = "eq"
    NE = "ne"
    AND = "and"
    OR = "or"
    XOR = "xor"
    SHL = "shl"  # integers; a shift by the width or more gives 0
    SHR = "shr"  # arithmetic for signed; a shift by the width or more gives 0 or the sign

    # elementwise, three sources
    WHERE = "where"  # bool, then, else

    # reductions over arg = axes; the reduced dimensions stay as 1
    SUM = "sum"
    MAX = "max"  # NaN wins
    PROD = "prod"

    # running reductions along arg = axis: element i combines the elements 0 … i
    CUMSUM = "cumsum"
    CUMPROD = "cumprod"
    CUMMAX = "cummax"  # NaN wins

    # movement
    RESHAPE = "reshape"  # (shape)
    PERMUTE = "permute"  # (order)
    EXPAND = "expand"  # (shape) from dimensions of 1
    PAD = "pad"  # ((before, after), …) with zeros
    SHRINK = "shrink"  # ((start, stop), …)
    FLIP = "flip"  # (axes)
    WINDOW = "window"  # ((axis, size, step, dilation), …) the axis counts windows, new last ones

    # addressed by data
    GATHER = "gather"  # (axis) out[…i…] = x[…index[…i…]…]; an index out of range reads 0
    SCATTER_ADD = "scatter_add"  # (axis) base, index, x; an index out of range writes nothing
    SCATTER_MAX = "scatter_max"  # the same with the larger one; NaN wins
    SCATTER_PROD = "scatter_prod"  # the same with the product
    SORT = "sort"  # (axis) the stable permutation (int32) that sorts unsigned keys, ascending
    DISTRIBUTE = "distribute"  # starts, bin, x: x put bin by bin (see `build.distribute`)

    # engine
    CONTIGUOUS = "contiguous"  # identity, stored in a buffer
    ASSIGN = "assign"  # target BUFFER, value: the value, stored in the target's memory
    COPY = "copy"  # identity on another device (arg)
    COLLECTIVE = "collective"  # (Collective) an exchange with other ranks: graph/collective.py
    CHECK = "check"  # (Check) identity; a program raises where an element is no index: bounds.py
    CUSTOM = "custom"  # (rule) the first source; `rule` gives the gradients of the others


UNARY = frozenset({
    Op.NEG, Op.NOT, Op.SQRT, Op.EXP, Op.EXP2, Op.LOG, Op.LOG2, Op.SIN, Op.COS, Op.ASIN, Op.ACOS,
    Op.ATAN, Op.TANH, Op.ERF, Op.FLOOR, Op.CEIL, Op.TRUNC, Op.ROUND, Op.CAST, Op.BITCAST,
})  # fmt: skip
COMPARISONS = frozenset({Op.LT, Op.LE, Op.EQ, Op.NE})
BINARY = COMPARISONS | frozenset({
    Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.IDIV, Op.MOD, Op.POW, Op.MAXIMUM, Op.MINIMUM,
    Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR,
})  # fmt: skip
ELEMENTWISE = UNARY | BINARY | {Op.WHERE}
REDUCTIONS = frozenset({Op.SUM, Op.MAX, Op.PROD})
SCANS = {Op.CUMSUM: Op.SUM, Op.CUMPROD: Op.PROD, Op.CUMMAX: Op.MAX}  # and what each combines by
SCATTERS = {Op.SCATTER_ADD: Op.SUM, Op.SCATTER_MAX: Op.MAX, Op.SCATTER_PROD: Op.PROD}
MOVEMENT = frozenset({
    Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SHRINK, Op.FLIP, Op.WINDOW,
})  # fmt: skip


class Form:
    """What BUFFERs of one dtype, shape and device have in common."""

    __slots__ = ("__weakref__",)


class Node:
    """One operation on whole arrays; make nodes with the functions of `minigrad.graph.build`.

    Attributes: op, dtype, shape (ints, or `Affine`s where symbolic), src (the operands), arg (see
    `Op`), device (the name of the device that computes it). form: the same object for all BUFFERs
    of one dtype, shape and device, so that one look compares them; None for other operations, and
    for a BUFFER that must not be taken for any other.
    """

    __slots__ = ("op", "dtype", "shape", "src", "arg", "device", "form", "__weakref__")
    op: Op
    dtype: DType
    shape: Shape
    src: tuple[Node, ...]
    arg: Any
    device: str
    form: Form | None

    def __repr__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        arg = "" if self.arg is None else f" {self.arg!r}"
        return f"<{self.op.name} ({shape}) {self.dtype.name}{arg}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Node is a place in a graph and cannot be pickled; pickle the Tensor")

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


_interned: Interned[Node] = Interned()
_forms: Interned[Form] = Interned()


def make(
    op: Op, dtype: DType, shape: Shape, src: tuple[Node, ...], arg: Any, device: str
) -> Node:
    """The one node with these fields (no checks; `build` checks)."""
    key_arg = arg
    if op is Op.CONST:  # Python would merge 0.0 with −0.0, 1 with True, and split NaNs
        arg = convert(arg, dtype)
        key_arg = struct.pack("<d", arg) if dtype.is_float else int(arg)
    key = (op, dtype, shape, src, key_arg, device)
    node = _interned.find(key)
    if node is None:
        node = Node()
        node.op, node.dtype, node.shape = op, dtype, shape
        node.src, node.arg, node.device = src, arg, device
        node.form = form_of(dtype, shape, device) if op is Op.BUFFER else None
        node = _interned.settle(key, node)
    return node


def form_of(dtype: DType, shape: Shape, device: str) -> Form:
    """The form of a BUFFER."""
    key = (dtype, shape, device)
    return _forms.find(key) or _forms.settle(key, Form())


def own_buffer(memory: Any, dtype: DType, shape: Shape, device: str, form: Form) -> Node:
    """A BUFFER node for memory of which no other node can know; skips the table of nodes."""
    node = Node()
    node.op, node.dtype, node.shape = Op.BUFFER, dtype, shape
    node.src, node.arg, node.device, node.form = (), memory, device, form
    return node


def topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes that the roots need, sources before users, in an order fixed by the graph."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack.append((root, iter(root.src)))
        while stack:
            node, sources = stack[-1]
            for source in sources:
                if source not in seen:
                    seen.add(source)
                    stack.append((source, iter(source.src)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def is_symbolic(shape: Shape) -> bool:
    """True where a dimension is not a plain int."""
    return any(isinstance(extent, Affine) for extent in shape)


INDEX = dtypes.int32
