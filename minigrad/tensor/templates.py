"""Templates: functions of tensors that build their nodes once for each form of their arguments.

A layer norm is the same dozen nodes each time, on other sources. Such a function is first traced on
placeholder arrays. From then on its nodes are copied from the trace, which takes a fifth of the
time: no broadcasting, promotion, checks, or tensors in between. Nodes that depend on none of the
sources (numbers, masks) are shared.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any, TypeVar

from minigrad.graph import build
from minigrad.graph.bounds import users_line
from minigrad.graph.node import CONST, Node, Op
from minigrad.graph.sharding import meshes
from minigrad.graph.template import Template
from minigrad.locks import in_child
from minigrad.settings import thread
from minigrad.tensor.core import Core
from minigrad.tensor.live_tensors import lock

MOST = 256  # templates of a function; then it starts again
# After so many more templates that were not used again than were, a form must come twice before it
# gets one. Making one takes as long as the function itself, and sizes that are new in each call
# have no second use.
MOST_UNUSED = 8
# Methods that make several nodes. Methods that draw random numbers cannot be here.
TEMPLATED = (
    "matmul", "__matmul__", "linear", "mean", "var", "std", "softmax", "log_softmax", "logsumexp",
    "layernorm", "rmsnorm", "batchnorm", "relu", "gelu", "silu", "sigmoid", "softplus",
    "leaky_relu", "elu", "conv2d", "conv_transpose2d", "avg_pool2d", "max_pool2d", "argmax",
    "argmin", "_keys", "cross_entropy", "gather", "_positions",
)
F = TypeVar("F", bound=Callable[..., Any])
_tracing: set[int] = set()  # threads in a function that is being traced, or could be
in_child(_tracing.clear)


class _OwnData(Exception):
    """A function made an array from numbers in its arguments: a tuple, another library's array.

    Or it read a tensor's value, such as one given for an axis.
    """


class _Nameless(tuple[str, int]):
    """Stands for an array's memory while tracing; every use of it raises."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise _OwnData


_calls: weakref.WeakSet[Any] = weakref.WeakSet()


def is_template(function: Any) -> bool:
    """Whether a function is `templated`."""
    return function in _calls


def templated(function: F) -> F:
    """Let templates build the results of a function of tensors and hashable values.

    The function must depend on nothing else, and draw no random numbers. It returns a tensor, or a
    tuple or list of tensors and Nones, or a list of nodes.
    """
    # Form → what `_traced` returns; None for a form that was seen once.
    known: dict[Any, tuple[Template, bool, bool] | None] = {}
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
        except TypeError:  # an unhashable value, such as a list of axes
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
        copied, several, as_nodes = template
        made = copied.made(nodes, users_line() if copied.checks else None)
        if as_nodes:
            return made
        found = tuple([None if node is None else kind(node) for node in made])
        return found if several else found[0]

    _calls.add(call)
    return call  # type: ignore[return-value]


def _inside(function: Any, args: Any, options: Any) -> Any:
    """The result of a function, without making templates of functions that it calls."""
    _tracing.add(get_ident())
    try:
        return function(*args, **options)
    finally:
        _tracing.discard(get_ident())


def _traced(
    function: Any, args: Any, options: Any, nodes: Sequence[Node]
) -> tuple[Template, bool, bool]:
    """The template of a function for arguments, some of which are tensors of these nodes.

    Also whether it returns several results, and whether they are nodes.
    """
    sources = [
        build.buffer(_Nameless(("a source", at)), node.dtype, node.shape, node.device)
        for at, node in enumerate(nodes)
    ]
    left = iter(sources)
    with lock:  # nobody else (a fork's child) may see or keep a tensor without memory
        new = [value._new(next(left)) if isinstance(value, Core) else value
               for value in (*args, *options.values())]  # fmt: skip
        found: Any = None
        failed = False
        try:
            found = _inside(function, new[: len(args)],
                            dict(zip(options, new[len(args) :], strict=True)))  # fmt: skip
            several = isinstance(found, (tuple, list))
            as_nodes = several and isinstance(found[0], Node)
            given = [x.node if isinstance(x, Core) else x for x in (found if several else [found])]
        except Exception:  # raised again by a plain call: frames of one that is kept keep arrays
            failed = True
        finally:
            del new, found
    if failed:
        raise _OwnData
    template = Template(sources, given)
    own = template.own
    if own and all(node.op is Op.BUFFER and node.age > sources[0].age for node in own):
        raise _OwnData
    assert not own, own
    return template, several, as_nodes
