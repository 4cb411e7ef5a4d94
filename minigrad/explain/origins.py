"""Where nodes come from: the lines of the user's program, and the module, that made each.

Nodes know nothing of that, and nothing is paid for it unless somebody records. Then the table of
interned nodes is one that looks, whenever a node is asked for, at the frames of Python above. A
pass of the compiler makes nodes for the sake of others; which one it is at, a local variable says.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

from minigrad import program
from minigrad.graph import buckets, canonical, gradient, node, partition, rewrite
from minigrad.graph.interned import Interned
from minigrad.graph.node import Node
from minigrad.locks import new_lock
from minigrad.nn import optim
from minigrad.runtimes import cpu
from minigrad.schedule import schedule

# Functions that make nodes for the sake of others, and the variable that holds the one.
FOLLOWED: dict[CodeType, str] = {
    function.__code__: name
    for function, name in (
        (gradient.gradient, "node"), (rewrite._step, "node"), (rewrite.remade, "node"),
        (program._in_stages, "node"), (canonical.Canonical.rewritten, "node"),
        (partition.Emitter.value, "node"), (buckets.in_buckets, "node"),
        (schedule._distinct_roots, "root"), (schedule._Plan.__init__, "root"),
    )
}  # fmt: skip
_BACKWARD = gradient.gradient.__code__
_PACKAGE = os.path.dirname(os.path.abspath(node.__file__)).removesuffix("graph")
_MODELS = os.path.join(_PACKAGE, "models", "")  # whose scripts count as the user's
_OTHERS = (  # not the user's
    _PACKAGE, os.path.join(os.path.dirname(os.path.abspath(cpu.__file__)), ""),
    os.path.join(sysconfig.get_paths()["stdlib"], ""), "<",
)  # fmt: skip

Place = tuple[str, int, str]  # file, line, function


@dataclass(frozen=True)
class Origin:
    """stack: the user's lines, the innermost first. module: the name of that which ran.

    phase: "forward", "backward" or "update". made_for: the age of the node for whose sake this one
    was made, or −1.
    """

    stack: tuple[Place, ...] = ()
    module: str = ""
    phase: str = "forward"
    made_for: int = -1


class _Watched(Interned[Node]):
    """A table that asks another one, in whose place it is while anybody records.

    It tells each thread that records of the nodes that this thread asks for.
    """

    __slots__ = ("table", "notes")

    def __init__(self, table: Interned[Node]) -> None:
        self.table = table
        self.notes: dict[int, Callable[[Node], None]] = {}

    def get(self, key: Any, otherwise: Any = None) -> Any:
        """As the table does."""
        link = self.table.get(key, otherwise)
        found = None if link is None else link()
        if found is not None:
            self._noted(found)
        return link

    def settle(self, key: Any, made: Node) -> Node:
        """As the table does."""
        return self._noted(self.table.settle(key, made))

    def _noted(self, found: Node) -> Node:
        note = self.notes.get(get_ident())
        if note is not None:
            note(found)
        return found


_PLAIN = node._interned
_WATCHED = _Watched(_PLAIN)
_LOCK = new_lock()


def _tell(thread: int, note: Callable[[Node], None] | None) -> None:
    """Let what a thread asks for be noted, or not. Threads may end in another order than they
    began: whoever is the last one puts the plain table back.
    """
    with _LOCK:
        _WATCHED.notes.pop(thread, None)
        if note is not None:
            _WATCHED.notes[thread] = note
        node._interned = _WATCHED if _WATCHED.notes else _PLAIN


class Origins:
    """What is known of nodes, by their age. modules: names of the user's modules by `id`.

    earlier: what is known from before, of nodes for whose sake others were made.
    """

    def __init__(
        self, modules: Mapping[int, str], classes: frozenset[str], earlier: Origins | None = None
    ) -> None:
        self.modules, self.classes, self.earlier = modules, classes, earlier
        self.known: dict[int, Origin] = {}
        self._users: dict[CodeType, bool] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what this thread makes meanwhile."""
        thread, top = get_ident(), sys._getframe(2)  # whoever says `with`
        known = self.known

        def note(made: Node) -> None:
            if made.age not in known:
                known[made.age] = self._look(made, sys._getframe(4), top)

        before = _WATCHED.notes.get(thread)
        _tell(thread, note)
        try:
            yield
        finally:
            _tell(thread, before)

    def of(self, made: Node) -> Origin | None:
        """Where a node comes from in the user's program; of its gradient, the lines of the way."""
        found, seen = self._find(made.age), {made.age}
        phase = "forward" if found is None else found.phase
        while found is not None and found.made_for not in seen:
            seen.add(found.made_for)
            other = self._find(found.made_for)
            if other is None:
                break
            found, phase = other, other.phase if phase == "forward" else phase
        return found and Origin(found.stack, found.module, phase)

    def _find(self, age: int) -> Origin | None:
        found = self.known.get(age)
        return self.earlier._find(age) if found is None and self.earlier is not None else found

    def _look(self, made: Node, frame: FrameType | None, top: FrameType) -> Origin:
        stack: list[Place] = []
        module, phase, made_for = "", "forward", -1
        while frame is not None and frame is not top:
            code = frame.f_code
            if code in FOLLOWED:
                if made_for < 0:
                    other = frame.f_locals.get(FOLLOWED[code])
                    if isinstance(other, Node) and other.age != made.age:
                        made_for = other.age
                    phase = "backward" if code is _BACKWARD else phase
            elif code.co_filename == optim.__file__:
                phase = "update" if made_for < 0 else phase
            elif self._is_users(code):
                stack.append((code.co_filename, frame.f_lineno, code.co_name))
            if not module and code.co_varnames[:1] == ("self",):
                kind = code.co_qualname.rpartition(".")[0].rpartition(".")[2]
                if kind in self.classes:  # (to look into a frame makes it keep what it has)
                    module = self.modules.get(id(frame.f_locals["self"]), "")
            frame = frame.f_back
        return Origin(tuple(stack), module, phase, made_for)

    def _is_users(self, code: CodeType) -> bool:
        known = self._users.get(code)
        if known is None:
            name = os.path.abspath(code.co_filename) if code.co_filename[:1] != "<" else "<"
            known = self._users[code] = name.startswith(_MODELS) or not name.startswith(_OTHERS)
        return known
