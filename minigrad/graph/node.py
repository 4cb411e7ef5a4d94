"""Nodes: the immutable, interned operations that every program consists of.

A `Node` is one operation on whole arrays. The same operation on the same sources *is* the same
object, so a common subexpression costs nothing and `is` compares. (Copies of templates, `make_all`,
become so when a program is compiled.) The whole instruction set is `Op` in `graph/operations.py`;
a matrix product is `SUM(MUL(a, b))` seen through movements.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence, Set
from typing import Any, TypeVar

from minigrad.dtype import DType, convert, dtypes
from minigrad.errors import DeviceError, DTypeError, ShapeError, misfit
from minigrad.graph.interned import Interned
from minigrad.graph.numeric import Number, Numeric
from minigrad.graph.operations import NAMED, TAKEN
from minigrad.graph.operations import Op as Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import Affine, Integer

Shape = tuple[Integer, ...]
K = TypeVar("K")
T = TypeVar("T")


class Form:
    """What all BUFFERs of one dtype, shape and device share: `is` compares all three at once.

    size: elements to reserve in memory.
    """

    __slots__ = ("size", "__weakref__")

    def __init__(self, shape: Shape) -> None:
        self.size = numel(shape)


class Node(Numeric):
    """One operation on whole arrays; make nodes with the functions of `minigrad.graph.build`.

    Attributes: op, dtype, shape (ints, or `Affine`s if symbolic), src (the operands), arg (see
    `Op`), device (the name of the device that computes it). form: see `Form`; None for other
    operations, and for a BUFFER that must not be confused with another. age: how many nodes were
    made before it; a node is younger than its sources.
    """

    __slots__ = ("op", "dtype", "shape", "src", "arg", "device", "form", "age", "__weakref__")
    op: Op
    dtype: DType
    shape: Shape
    src: tuple[Node, ...]
    arg: Any
    device: str
    form: Form | None
    age: int

    def __repr__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        arg = "" if self.arg is None else f" {self.arg!r}"
        return f"<{self.op.name} ({shape}) {self.dtype.name}{arg}>"

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a Node (it is a place in a graph); pickle the Tensor")

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def operation(self, name: str, *others: Node | Number) -> Node:
        """An elementwise operation on self and others; name: the value of its `Op`."""
        operands = (x if isinstance(x, Node) else self.constant(x) for x in others)
        return elementwise(NAMED[name], self, *operands)

    def constant(self, value: Number, dtype: DType | None = None) -> Node:
        """An array of self's shape filled with one number."""
        return const(value, dtype or self.dtype, self.shape, self.device)

    def known(self) -> Number | None:
        """The number that fills it, if it is a constant."""
        return self.arg if self.op is Op.CONST else None

    def cast(self, dtype: DType) -> Node:
        """self converted to dtype."""
        return cast(self, dtype)

    def bits_as(self, dtype: DType) -> Node:
        """The bits of self read as another dtype of the same size."""
        return bitcast(self, dtype)


# Ops that are needed for every node: in Python 3.11 a look-up of an Enum member takes as long as a
# function call.
BUFFER, CONST, ASSIGN, WHERE = Op.BUFFER, Op.CONST, Op.ASSIGN, Op.WHERE
CUSTOM, CHECK, RESHAPE, EXPAND = Op.CUSTOM, Op.CHECK, Op.RESHAPE, Op.EXPAND
COLLECTIVE = Op.COLLECTIVE

ages = itertools.count()
_interned: Interned[Node] = Interned()
_forms: Interned[Form] = Interned()


def make(op: Op, dtype: DType, shape: Shape, src: tuple[Node, ...], arg: Any, device: str) -> Node:
    """The one node with these fields (no checks; `build` checks)."""
    key_arg = arg  # as it is compared
    if op is CONST:
        arg = convert(arg, dtype)
        key_arg = number_key(arg, dtype)
    key = (op, dtype, shape, src, key_arg, device)
    link = _interned.get(key)
    node = None if link is None else link()
    if node is None:
        node = Node()
        node.op, node.dtype, node.shape = op, dtype, shape
        node.src, node.arg, node.device = src, arg, device
        node.form = form_of(dtype, shape, device) if op is BUFFER else None
        node.age = next(ages)
        node = _interned.settle(key, node)
    return node


# A node without its sources, a function that takes them out of a list of nodes, whether that is one
# source alone, not in a tuple, and whether it is looked up if there is an equal node.
Plain = tuple[Op, DType, Shape, Callable[[list[Node]], Any], bool, Any, str, bool]


def make_all(steps: Iterable[Plain], values: list[Node]) -> None:
    """Append the node of each step to `values`, in a third of the time of `make`. No CONST, BUFFER.

    Most are new, so most are not looked up: a program's graph has equal nodes once anyway. All are,
    if their creation is being recorded.
    """
    append, settle, new, watched = values.append, _interned.settle, Node, is_watched()
    for op, dtype, shape, sources_of, alone, arg, device, shared in steps:
        src = (sources_of(values),) if alone else sources_of(values)
        node = new()
        node.op, node.dtype, node.shape = op, dtype, shape
        node.src, node.arg, node.device = src, arg, device
        node.form, node.age = None, next(ages)
        look = shared or watched
        append(settle((op, dtype, shape, src, arg, device), node) if look else node)


def unshared(node: Node) -> Node:
    """Another node with the same fields. What is made of it is not what is made of the first."""
    if is_watched():  # a page that explains a step shows equal nodes once
        return node
    return own_node(node.op, node.dtype, node.shape, node.src, node.arg, node.device, node.form)


def number_key(value: Number, dtype: DType) -> bytes | int:
    """A number as it is compared: floats by their bits.

    In Python 0.0 == −0.0, though 1/x tells them apart, and NaN != NaN, so it would never be found.
    """
    return struct.pack("<d", value) if dtype.is_float else int(value)


def picked(order: Iterable[Node], ops: Container[Op]) -> list[Node]:
    """The nodes of an order whose operation is one of `ops`."""
    return [node for node in order if node.op in ops]


def target_of(node: Node) -> Node:
    """The BUFFER that a write (ASSIGN) writes to; any other node itself."""
    return node.src[0] if node.op is ASSIGN else node


def is_watched() -> bool:
    """Whether the creation of nodes is being recorded (by a page that explains a step)."""
    return type(_interned) is not Interned


def form_of(dtype: DType, shape: Shape, device: str) -> Form:
    """The form of a BUFFER."""
    key = (dtype, shape, device)
    link = _forms.get(key)
    return (link and link()) or _forms.settle(key, Form(shape))


def const(value: int | float | bool, dtype: DType, shape: Shape, device: str) -> Node:
    """An array filled with one number."""
    return make(CONST, dtype, tuple(shape), (), value, device)


def elementwise(op: Op, *src: Node) -> Node:
    """An elementwise operation on operands of equal shape and (except WHERE) equal dtype."""
    facts = op.facts
    if facts.scalar is None or len(src) != facts.arity:
        raise ValueError(f"elementwise({op}): expected {facts.arity} operands, got {len(src)}")
    shape, dtype, device = src[-1].shape, src[-1].dtype, src[-1].device
    for node in src:
        if node.device != device:
            device_of(op, src)  # which raises
        if node.shape != shape:
            raise ShapeError(f"{op.value}: expected equal shapes, got {[x.shape for x in src]}")
    chooses = op is WHERE
    for node in src[1:] if chooses else src:
        if node.dtype is not dtype:
            raise DTypeError(f"{op.value}: expected one dtype, got {[x.dtype.name for x in src]}")
    if chooses and src[0].dtype is not dtypes.bool:
        raise DTypeError(f"where: expected a bool condition, got {src[0].dtype.name}")
    if dtype.kind not in facts.kinds:
        raise misfit(op.value, TAKEN[facts.kinds], dtype.name, error=DTypeError)
    return make(op, dtypes.bool if facts.compares else dtype, shape, src, None, device)


def cast(x: Node, dtype: DType) -> Node:
    """x converted to dtype."""
    if x.dtype is dtype:
        return x
    if x.op is CONST:
        return make(CONST, dtype, x.shape, (), x.arg, x.device)
    return make(Op.CAST, dtype, x.shape, (x,), dtype, x.device)


def bitcast(x: Node, dtype: DType) -> Node:
    """The bits of x read as another dtype of the same size."""
    if x.dtype is dtype:
        return x
    if x.dtype.itemsize != dtype.itemsize or dtypes.bool in (x.dtype, dtype):
        raise DTypeError(f"bitcast: expected equal sizes, got {x.dtype.name} and {dtype.name}")
    return make(Op.BITCAST, dtype, x.shape, (x,), dtype, x.device)


def device_of(what: Op | str, src: Sequence[Node]) -> str:
    """The device of all sources; DeviceError if they have several.

    what: the operation, for the message.
    """
    device = src[0].device
    for node in src:
        if node.device != device:
            names = f"{device} and {node.device}"
            sharded = ", or with .shard(mesh, P(…))" if "Mesh" in names else ""
            raise DeviceError(
                f"{getattr(what, 'value', what)}: tensors are on {names}; "
                f"move one with .to({device!r}){sharded}"
            )
    return device


def own_node(
    op: Op, dtype: DType, shape: Shape, src: tuple[Node, ...], arg: Any, device: str,
    form: Form | None = None,
) -> Node:  # fmt: skip
    """A node that no other is to be, such as one of new memory; skips the table of nodes."""
    node = Node()
    node.op, node.dtype, node.shape = op, dtype, shape
    node.src, node.arg, node.device, node.form = src, arg, device, form
    node.age = next(ages)
    return node


def topological(
    roots: Iterable[T], known: Iterable[T] = (), below: Callable[[T], Sequence[T]] | None = None
) -> list[T]:
    """All nodes that the roots need, sources before users, in an order fixed by the graph.

    Known nodes, and nodes that only they need, are left out. below: what a node (or another item)
    needs, if not its sources. It walks depth first, but without recursion, because graphs are
    deeper than Python's stack.
    """
    order: list[T] = []  # list[T]() would take as long as five nodes
    done = set(known)
    add, append = done.add, order.append
    # from the first item down to here: each item, and the rest of what the one above it depends on
    path: list[tuple[Any, Iterator[T]]] = []
    above: Any = None  # the item whose dependencies are `rest`
    rest = iter(roots)
    while True:
        for item in rest:
            if item not in done:
                add(item)
                needs = item.src if below is None else below(item)  # type: ignore[attr-defined]
                if needs:
                    path.append((above, rest))
                    above, rest = item, iter(needs)
                    break
                append(item)
        else:  # all dependencies of `above` are in the order
            if not path:
                return order
            append(above)
            above, rest = path.pop()


def grouped(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """The values of pairs (key, value) by key, in the order of each key's first."""
    found: dict[K, list[T]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def needed(roots: Iterable[Node]) -> list[Node]:
    """As `topological`, without nodes that only the gradient rules of CUSTOM nodes need."""
    return topological(roots, (), value_src)


def value_src(node: Node) -> tuple[Node, ...]:
    """The sources of a node's value: of a CUSTOM, not those that only its gradient rule reads."""
    return node.src[:1] if node.op is CUSTOM else node.src


def needed_among(order: Sequence[Node], roots: Collection[Node]) -> Sequence[Node]:
    """The nodes of a topological order that are `needed`, in a third of the time of `needed`."""
    unread = {source for node in order if node.op is CUSTOM for source in node.src[1:]}
    unread.difference_update(roots)
    for node in order:
        if not unread:
            return order  # true of most graphs: no walk
        unread.difference_update(node.src[:1] if node.op is CUSTOM else node.src)
    return below_among(order, roots, value_src) if unread else order


def below_among(
    order: Sequence[Node], roots: Iterable[Node],
    below: Callable[[Node], tuple[Node, ...]] | None = None,
) -> list[Node]:  # fmt: skip
    """The nodes of a topological order that the roots need. below: see `topological`.
    """
    found = set(roots)
    for node in reversed(order):
        if node in found:
            found.update(node.src if below is None else below(node))
    return [node for node in order if node in found]


def beneath(node: Node, ops: Container[Op]) -> Node:
    """The first node on the path along first sources whose operation is not one of `ops`."""
    while node.op in ops:
        node = node.src[0]
    return node


def depending(order: Iterable[Node], on: Iterable[Node]) -> set[Node]:
    """The nodes of a topological order that depend on some nodes, including these."""
    found = set(on)
    for node in order:
        if not found.isdisjoint(node.src):
            found.add(node)
    return found


def reading(order: Iterable[Node], some: Set[Node]) -> Iterator[Node]:
    """The nodes of an order with a source in `some`, which may grow during the iteration."""
    return (node for node in order if not some.isdisjoint(node.src))


def is_symbolic(shape: Shape) -> bool:
    """True where a dimension is not a plain int."""
    return any(isinstance(extent, Affine) for extent in shape)


INDEX = dtypes.int32
