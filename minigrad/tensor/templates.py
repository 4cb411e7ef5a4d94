"""Templates: functions of tensors that build their nodes once for each form of their arguments.

A layer norm is the same dozen nodes each time, on other sources. Such a function is first traced on
placeholder arrays. From then on its nodes are copied from the trace, which takes a fifth of the
time: no broadcasting, promotion, checks, or tensors in between. Nodes that depend on none of the
sources (numbers, masks) are shared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from threading import get_ident
from typing import Any, TypeVar

from minigrad.graph import build
from minigrad.graph.bounds import users_line
from minigrad.graph.node import CHECK, CONST, Node, Op, depending, make, topological
from minigrad.graph.sharding import meshes
from minigrad.locks import in_child
from minigrad.settings import thread
from minigrad.tensor.core import Core
from minigrad.tensor.live_tensors import lock

MOST = 256  # forms of a function; then it begins anew
# Templates that nobody used again, less those that somebody did: from then on a form must come
# twice. To make one takes as long as the function itself; sizes that are new in each call have no
# second use.
MOST_UNUSED = 8
_OWN = frozenset({Op.BUFFER, Op.ASSIGN})  # of one call: memory, draws
# Methods that are a handful of nodes or more. Those that draw cannot be here.
TEMPLATED = (
    "matmul", "__matmul__", "linear", "mean", "var", "std", "softmax", "log_softmax", "logsumexp",
    "layernorm", "rmsnorm", "batchnorm", "relu", "gelu", "silu", "sigmoid", "softplus",
    "leaky_relu", "elu", "conv2d", "conv_transpose2d", "avg_pool2d", "max_pool2d", "argmax",
    "argmin", "_keys", "cross_entropy", "gather", "_positions",
)
F = TypeVar("F", bound=Callable[..., Any])
_tracing: set[int] = set()  # threads inside of a function that makes a template, or could have one
in_child(_tracing.clear)


class _OwnData(Exception):
    """A function made an array of numbers that it was given: rows in a tuple, another library's.

    Or it read a tensor's value, as one given for an axis.
    """


class _Nameless(tuple[str, int]):
    """In the place of an array's memory."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise _OwnData


class Template:
    """The nodes between some sources and what is made of them, sources before users.

    Each has its op, dtype, shape, arg and device, and where its sources stand among the values:
    the sources, the kept nodes, and the nodes before it. own: what is made that belongs to one call
    alone, of which there can be no template. used: whether it was used again.
    """

    used = False

    def __init__(self, sources: Sequence[Node], made: Sequence[Node | None]) -> None:
        results = [node for node in made if node is not None]
        order = topological(results, sources)
        self.own = [node for node in order if node.op in _OWN]
        depends = depending(order, sources)
        inner = [node for node in order if node in depends and node.src]
        used = {*results, *(source for node in inner for source in node.src)}
        self.kept = [node for node in order if node in used and node not in depends]
        place = {node: at for at, node in enumerate([*sources, *self.kept, *inner])}
        self.steps = [
            (n.op, n.dtype, n.shape, _getter([place[s] for s in n.src]), n.arg, n.device)
            for n in inner
        ]
        self.places = [None if node is None else place[node] for node in made]

    def made(self, sources: Sequence[Node]) -> list[Node | None]:
        """The same of other sources."""
        values = [*sources, *self.kept]
        for op, dtype, shape, src_of, arg, device in self.steps:
            if op is CHECK:
                arg = arg.but(line=users_line())
            values.append(make(op, dtype, shape, src_of(values), arg, device))
        return [None if at is None else values[at] for at in self.places]


def _getter(places: Sequence[int]) -> Callable[[list[Node]], tuple[Node, ...]]:
    """What takes values out of a list, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda values: (values[place],)


def templated(function: F) -> F:
    """A function of tensors and hashable values that gives new tensors, which templates make.

    It must depend on nothing else, and draw nothing. It gives a tensor, or a tuple
    or list of such, some of which may be None.
    """
    # Each with whether there are several results; None: of a form that came once.
    known: dict[Any, tuple[Template, bool] | None] = {}
    unused = 0

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        nonlocal unused
        nodes: list[Node] = []
        kind: Any = None
        key: list[Any] = [thread.key]
        for value in (*args, *options, *options.values()):
            if isinstance(value, Core):
                node, kind = value.node, kind or value._new
                nodes.append(node)
                key += (value.__class__, node.dtype, node.shape, node.device)
                if node.op is CONST or node.device in meshes:
                    return function(*args, **options)
            else:
                key += (value.__class__, value)
                if value.__class__ in (float, tuple):  # −0.0 is not 0.0, nor True in it 1
                    key.append(repr(value))
        form = tuple(key)
        try:
            template = known.get(form)
        except TypeError:  # a list of axes
            return function(*args, **options)
        if template is None and get_ident() not in _tracing:
            if len(known) >= MOST:
                known.clear()
                unused = 0
            if unused < MOST_UNUSED or form in known:
                with suppress(_OwnData):
                    template = known[form] = _traced(function, args, options, nodes)
                    unused += 1
            else:
                known[form] = None
                return _inside(function, args, options)
        elif template is not None and not template[0].used:
            template[0].used = True
            unused -= 2
        if template is None:
            return function(*args, **options)
        made, several = template[0].made(nodes), template[1]
        found = tuple([None if node is None else kind(node) for node in made])
        return found if several else found[0]

    return call  # type: ignore[return-value]


def _inside(function: Any, args: Any, options: Any) -> Any:
    """What a function gives, while no templates are made of what it calls."""
    _tracing.add(get_ident())
    try:
        return function(*args, **options)
    finally:
        _tracing.discard(get_ident())


def _traced(
    function: Any, args: Any, options: Any, nodes: Sequence[Node]
) -> tuple[Template, bool]:
    """The template of a function for arguments, some of which are tensors of these nodes.

    And whether it gives several results.
    """
    sources = [
        build.buffer(_Nameless(("a source", at)), node.dtype, node.shape, node.device)
        for at, node in enumerate(nodes)
    ]
    left = iter(sources)
    with lock:  # nobody else may see a tensor that has no memory, nor keep it: the child of a fork
        new = [value._new(next(left)) if isinstance(value, Core) else value
               for value in (*args, *options.values())]  # fmt: skip
        found: Any = None
        try:
            found = _inside(function, new[: len(args)],
                            dict(zip(options, new[len(args) :], strict=True)))  # fmt: skip
            several = isinstance(found, (tuple, list))
            given = [None if x is None else x.node for x in (found if several else [found])]
        finally:
            del new, found
    template = Template(sources, given)
    own = template.own
    if own and all(node.op is Op.BUFFER and node.age > sources[0].age for node in own):
        raise _OwnData
    assert not own, own
    return template, several
