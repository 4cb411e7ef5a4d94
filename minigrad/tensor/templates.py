"""Functions of tensors that make their nodes once for each form of their arguments.

A layer norm is the same dozen nodes each time, on other sources. Such a function runs on nameless
arrays first; from then on its nodes are made as they were then, which takes a fifth of the time:
no broadcasting, promotion, checks, or tensors in between. What depends on none of the sources
(numbers, masks) is kept. For sizes between those that it was run for, it is not run again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter, le
from threading import get_ident
from typing import Any, TypeVar

from minigrad.dtype import DType
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape, depending, make, topological
from minigrad.graph.sharding import meshes
from minigrad.settings import thread
from minigrad.tensor.core import Core
from minigrad.tensor.live_tensors import lock

MOST = 256  # forms of a function; then it begins anew
_OWN = frozenset({Op.BUFFER, Op.ASSIGN, Op.CHECK})  # of one call: memory, draws, lines of a user
# Methods that are a handful of nodes or more. Those that draw or check indices cannot be here.
TEMPLATED = (
    "matmul", "__matmul__", "linear", "mean", "var", "std", "softmax", "log_softmax", "logsumexp",
    "layernorm", "rmsnorm", "batchnorm", "relu", "gelu", "silu", "sigmoid", "softplus",
    "leaky_relu", "elu", "conv2d", "conv_transpose2d", "avg_pool2d", "max_pool2d", "argmax",
    "argmin", "_keys",
)
F = TypeVar("F", bound=Callable[..., Any])
_tracing: set[int] = set()  # threads that make a template: of all that is called meanwhile, too


class _OwnData(Exception):
    """A function made an array of numbers that it was given: rows in a tuple, another library's.

    Or it read a tensor's value, as one given for an axis.
    """


class _Nameless(tuple[str, int]):
    """In the place of an array's memory."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise _OwnData


# op, dtype, shape, places of the sources, arg, device; lists are what no size changes
Row = tuple[Op, DType, Any, list[int], Any, str]
Whole = tuple[list[Any], tuple[Row, ...]]
Sizes = tuple[int, ...]  # of all dimensions of a function's sources


class _Template:
    """The nodes between a function's sources and its results, sources before users.

    whole: a row for each node, with the places of its sources among the values: the function's
    sources, and the rows before it. Before these stand: how many sources there are; how many rows,
    the first, depend on none of them, whose nodes are kept; the places of the results; whether
    these are several.
    """

    def __init__(self, whole: Whole) -> None:
        self.whole, ((count, alone, self.places, self.several), rows) = whole, whole
        values: list[Any] = [None] * count
        for op, dtype, shape, places, arg, device in rows[:alone]:
            src = tuple([values[place] for place in places])
            values.append(make(op, dtype, shape, src, arg, device))
        self.kept = values[count:]
        self.steps = [
            (op, dtype, shape, itemgetter(*places, places[0]), arg, device)
            for op, dtype, shape, places, arg, device in rows[alone:]
        ]

    def results(self, sources: Sequence[Node], kind: Any) -> Any:
        """The function's results for other sources, as tensors of a kind."""
        values = [*sources, *self.kept]
        for op, dtype, shape, src_of, arg, device in self.steps:
            values.append(make(op, dtype, shape, src_of(values)[:-1], arg, device))
        found = tuple([None if at is None else kind(values[at]) for at in self.places])
        return found if self.several else found[0]


def _template_of(sources: Sequence[Node], found: Any) -> _Template:
    """The template of a function that has found this for sources."""
    several = isinstance(found, (tuple, list))
    given = [None if x is None else x.node for x in (found if several else [found])]
    del found  # by whom no tensor may be kept, see `_traced`
    order = topological([node for node in given if node is not None], sources)
    own = [node for node in order if node.op in _OWN]
    if own and all(node.op is Op.BUFFER and node.age > sources[0].age for node in own):
        raise _OwnData
    assert not own, own
    depends = depending(order, sources)
    nodes = sorted(order, key=depends.__contains__)
    place = {node: at for at, node in enumerate([*sources, *nodes])}
    rows = tuple([(n.op, n.dtype, n.shape, [place[s] for s in n.src], n.arg, n.device)
                  for n in nodes])  # fmt: skip
    places = [None if node is None else place[node] for node in given]
    return _Template(([len(sources), len(set(order) - depends), places, several], rows))


class _Unlike(Exception):
    """Templates for two sizes differ in more than what follows from these."""


class _Times:
    """A number in a template for any sizes: so many times one of these."""

    def __init__(self, place: int, factor: int) -> None:
        self.place, self.factor = place, factor


class _AnySizes:
    """The template of a function for sizes between those that it was traced for.

    Where one of these differs, a number in its rows that differs as it does, or as a multiple, is
    that. (Of two that differ together a sum might be taken for a multiple of one.) What else a
    function does for some sizes it does above or below one, or where a size is 0 or 1 or equals
    another (see `_family`); what it divides a size by makes no multiple.
    """

    first: tuple[Sizes, Whole]
    known: tuple[Sizes, Sizes, Whole] | None = None  # the least and most of sizes, what is common

    def template(self, sizes: Sizes, trace: Callable[[], _Template]) -> _Template:
        """The template for some sizes: traced, if they do not lie between others."""
        if self.known is None:
            found = trace()
            self.first, self.known = (sizes, found.whole), (sizes, sizes, found.whole)
            return found
        low, high, whole = self.known
        if all(map(le, low, sizes)) and all(map(le, sizes, high)):
            return _Template(_sized(whole, sizes))
        found = trace()
        with suppress(_Unlike):
            if _sized(whole, sizes) != found.whole:
                low, first = self.first
                pairs = [*zip(low, sizes, strict=True)]
                if len({(a, b) for a, b in pairs if a != b}) > 1:
                    raise _Unlike
                high, whole = low, _common(first, found.whole, pairs)
            self.known = tuple(map(min, low, sizes)), tuple(map(max, high, sizes)), whole
        return found


def _family(shapes: Sequence[Shape]) -> tuple[Any, Sizes]:
    """What shapes have in common that are of one family, and the sizes in which these differ."""
    every = [size for shape in shapes for size in shape]
    sizes = tuple([size for size in every if isinstance(size, int) and size > 1])
    kind = [~every.index(size) if size in sizes else size for size in every]
    return (tuple(kind), tuple(map(len, shapes))), sizes


def _sized(x: Any, sizes: Sizes) -> Any:
    """A part of what is common to templates, for these sizes."""
    if x.__class__ is tuple:
        return tuple([_sized(part, sizes) for part in x])
    return sizes[x.place] * x.factor if x.__class__ is _Times else x


def _common(one: Any, other: Any, sizes: Sequence[tuple[int, int]]) -> Any:
    """What is one part of a template for the first of pairs of sizes, the other for the second."""
    if one.__class__ is other.__class__ is tuple and len(one) == len(other):
        return tuple([_common(a, b, sizes) for a, b in zip(one, other, strict=True)])
    if one == other:
        return one
    if one.__class__ is other.__class__ is int:
        for place, (a, b) in enumerate(sizes):
            if a != b and one % a == 0 and one // a * b == other:
                return _Times(place, one // a)
    raise _Unlike


def templated(function: F) -> F:
    """A function of tensors and hashable values that gives new tensors, which templates make.

    It must depend on nothing else, draw nothing, and check no values. It gives a tensor, or a tuple
    or list of such, some of which may be None.
    """
    known: dict[Any, _Template] = {}
    families: dict[Any, _AnySizes] = {}

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        nodes: list[Node] = []
        kind: Any = None
        key: list[Any] = [thread.key]
        shapes: list[Shape] = []
        for value in (*args, *options, *options.values()):
            if isinstance(value, Core):
                node, kind = value.node, kind or value._new
                nodes.append(node)
                shapes.append(node.shape)
                key += (value.__class__, node.dtype, node.device)
                if node.op is Op.CONST or node.device in meshes:
                    return function(*args, **options)
            else:
                key += (value.__class__, value)
                if value.__class__ in (float, tuple):  # −0.0 is not 0.0, nor True in it 1
                    key.append(repr(value))
        form = tuple(key), tuple(shapes)
        try:
            template = known.get(form)
        except TypeError:  # a list of axes
            return function(*args, **options)
        if template is None and get_ident() not in _tracing:
            if len(known) >= MOST:
                known.clear()
                families.clear()
            with suppress(_OwnData):
                own, sizes = _family(shapes)
                family = families.setdefault((form[0], own), _AnySizes())
                template = known[form] = family.template(
                    sizes, lambda: _traced(function, args, options, nodes)
                )
        if template is None:
            return function(*args, **options)
        return template.results(nodes, kind)

    return call  # type: ignore[return-value]


def _traced(function: Any, args: Any, options: Any, nodes: Sequence[Node]) -> _Template:
    """The template of a function for arguments, some of which are tensors of these nodes."""
    sources = [
        build.buffer(_Nameless(("a source", at)), node.dtype, node.shape, node.device)
        for at, node in enumerate(nodes)
    ]
    left = iter(sources)
    with lock:  # nobody else may see a tensor that has no memory, nor keep it: the child of a fork
        new = [value._new(next(left)) if isinstance(value, Core) else value
               for value in (*args, *options.values())]  # fmt: skip
        found: Any = None
        _tracing.add(get_ident())
        try:
            found = function(*new[: len(args)], **dict(zip(options, new[len(args) :], strict=True)))
            return _template_of(sources, found)
        finally:
            _tracing.discard(get_ident())
            del new, found
