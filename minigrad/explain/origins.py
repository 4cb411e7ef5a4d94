"""Where nodes come from: the lines of the user's program, and the module, that created each.

Nodes do not record this, and it costs nothing unless it is recorded. While it is, the table of
interned nodes is replaced by one that looks at Python's frames whenever a node is requested. Passes
of the compiler create nodes in place of others; a local variable of the pass tells which one.
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
from minigrad.graph import buckets, canonical, gradient, node, partition, rewrite, writes
from minigrad.graph.interned import Interned
from minigrad.graph.node import Node
from minigrad.locks import new_lock
from minigrad.nn import optimizer
from minigrad.runtimes import cpu
from minigrad.schedule import schedule

# Functions that create nodes in place of another, and the variable that holds that one.
FOLLOWED: dict[CodeType, str] = {
    function.__code__: name
    for function, name in (
        (gradient.gradient, "node"), (rewrite._step, "node"), (rewrite.remade, "node"),
        (program._in_stages, "node"), (canonical.Canonical.rewritten, "node"),
        (partition.Emitter.value, "node"), (buckets.in_buckets, "node"),
        (writes._Remaker.remade, "node"),
        (schedule._distinct_roots, "root"), (schedule._copied_last, "root"),
    )
}  # fmt: skip
_BACKWARD = gradient.gradient.__code__
_PACKAGE = os.path.dirname(os.path.abspath(node.__file__)).removesuffix("graph")
_MODELS = os.path.join(_PACKAGE, "models", "")  # scripts in it count as the user's
_OTHERS = (  # not the user's code
    _PACKAGE, os.path.join(os.path.dirname(os.path.abspath(cpu.__file__)), ""),
    os.path.join(sysconfig.get_paths()["stdlib"], ""), "<",
)  # fmt: skip

Place = tuple[str, int, str]  # file, line, function


@dataclass(frozen=True)
class Origin:
    """stack: the user's lines, innermost first. module: the name of the one that was running.

    phase: "forward", "backward" or "update". made_for: the age of the node in whose place this one
    was created, or −1.
    """

    stack: tuple[Place, ...] = ()
    module: str = ""
    phase: str = "forward"
    made_for: int = -1


class _Watched(Interned[Node]):
    """Stands in for a table of nodes while any thread records.

    It reports to each recording thread the nodes that this thread requests.
    """

    __slots__ = ("table", "notes")

    def __init__(self, table: Interned[Node]) -> None:
        self.table = table
        self.notes: dict[int, Callable[[Node], None]] = {}

    def get(self, key: Any, otherwise: Any = None) -> Any:
        """See the table."""
        link = self.table.get(key, otherwise)
        found = None if link is None else link()
        if found is not None:
            self._noted(found)
        return link

    def settle(self, key: Any, made: Node) -> Node:
        """See the table."""
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
    """Start or stop reporting the nodes that a thread requests.

    Threads may stop in any order; the last one restores the plain table.
    """
    with _LOCK:
        _WATCHED.notes.pop(thread, None)
        if note is not None:
            _WATCHED.notes[thread] = note
        node._interned = _WATCHED if _WATCHED.notes else _PLAIN


class Origins:
    """What is known of nodes, by their age. modules: names of the user's modules by `id`.

    earlier: the origins of nodes in whose place others were created later.
    """

    def __init__(
        self, modules: Mapping[int, str], classes: frozenset[str], earlier: Origins | None = None
    ) -> None:
        self.modules, self.classes, self.earlier = modules, classes, earlier
        self.known: dict[int, Origin] = {}
        self._users: dict[CodeType, bool] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the origins of nodes that this thread creates in a `with` block."""
        thread, top = get_ident(), sys._getframe(2)  # the frame with the `with`
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
        """The place of a node in the user's program; for a gradient, lines of the forward pass."""
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
            elif code.co_filename == optimizer.__file__:
                phase = "update" if made_for < 0 else phase
            elif self._is_users(code):
                stack.append((code.co_filename, frame.f_lineno, code.co_name))
            if not module and code.co_varnames[:1] == ("self",):
                kind = code.co_qualname.rpartition(".")[0].rpartition(".")[2]
                if kind in self.classes:  # (reading a frame's locals makes it keep them)
                    module = self.modules.get(id(frame.f_locals["self"]), "")
            frame = frame.f_back
        return Origin(tuple(stack), module, phase, made_for)

    def _is_users(self, code: CodeType) -> bool:
        known = self._users.get(code)
        if known is None:
            name = os.path.abspath(code.co_filename) if code.co_filename[:1] != "<" else "<"
            known = self._users[code] = name.startswith(_MODELS) or not name.startswith(_OTHERS)
        return known
