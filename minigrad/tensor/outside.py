"""What a captured function reads besides its arguments, and whether that is still the same.

The names that its code reads are known: cells of its closure, globals, and attributes of what is
in them (`model.scale`, `self.rate`), also by functions of Python that it names. A replay runs no
Python, so it looks whether each of them is what it was. What other code reads on the way (a layer
its attributes, a list its items' attributes) is not seen.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from minigrad.errors import JitError
from minigrad.tensor import Tensor

Place = Callable[[], Any]
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LARGEST = 1 << 16  # bytes of an array that are compared in every call


class Outside:
    """The values that a function reads from outside, as they are now.

    instance: gives what a method's `self` is.
    """

    def __init__(self, name: str, function: Any, instance: Place | None = None) -> None:
        self.name = name
        self.read: list[tuple[str, Place, Any]] = []  # what, where it is, what it was
        self.contents: list[tuple[str, Place, Any]] = []  # of what can change inside
        for label, place in dict(_places(function, instance, set())).items():
            value = place()
            self.read.append((label, place, value))
            if isinstance(value, list | dict | set) or hasattr(value, "tobytes"):
                known = _contents(value)
                if known is not None:
                    self.contents.append((label, place, known))

    def differs(self) -> bool:
        """Whether anything is another object, or has other contents."""
        try:
            for _, place, value in self.read:
                if place() is not value:
                    return True
            for _, place, known in self.contents:
                if _contents(place()) != known:
                    return True
        except (AttributeError, KeyError, ValueError):  # it is gone
            return True
        return False

    def check(self) -> None:
        """JitError where a value is another one."""
        for label, place, value in self.read:
            try:
                now = place()
            except (AttributeError, KeyError, ValueError):
                now = _GONE
            if now is not value and not _equal(now, value):
                raise self._changed(label, value, now)
        for label, place, known in self.contents:
            if _contents(place()) != known:
                raise JitError(
                    f"{self.name} reads {label!r}, whose contents have changed since it was "
                    "captured: a replay would not see them; pass it as a Tensor argument, or "
                    ".reset()"
                )

    def _changed(self, label: str, before: Any, now: Any) -> JitError:
        return JitError(
            f"{self.name} reads {label!r}, which was {_show(before)} when it was captured and is "
            f"{_show(now)} now: a replay would not see it; pass it as an argument (a Tensor where "
            "it changes), write to a Tensor in place with .assign(), or .reset()"
        )


_GONE = object()


def _places(function: Any, instance: Place | None, seen: set[int]) -> Iterator[tuple[str, Place]]:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    if (function.__module__ or "").partition(".")[0] == "minigrad" and seen:
        return
    seen.add(id(function))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    first = function.__code__.co_varnames[:1] if instance is not None else ()
    for chain in _chains(function.__code__, set(cells), set(first)):
        root, names = chain[0], chain[1:]
        if root in cells:
            place = _of_cell(cells[root])
        elif root in first and instance is not None:
            place = instance
        elif root in function.__globals__:
            place = _of_dict(function.__globals__, root)
        else:
            continue
        yield from _along(root, place, names, seen, root not in first)


def _along(
    label: str, place: Place, names: tuple[str, ...], seen: set[int], with_root: bool
) -> Iterator[tuple[str, Place]]:
    """A value and the attributes that are read of it, as far as these are its own."""
    try:
        value = place()
    except ValueError:  # a cell that is empty yet
        return
    if isinstance(value, ModuleType | type):
        return
    if with_root:
        yield label, place
        yield from _places(value, None, seen)
    for name in names:
        if isinstance(value, Tensor) or name not in getattr(value, "__dict__", ()):
            return
        label, place, value = f"{label}.{name}", _of_attribute(place, name), value.__dict__[name]
        yield label, place


def _chains(code: CodeType, cells: set[str], first: set[str]) -> Iterator[tuple[str, ...]]:
    """The names that code reads: of a cell, a global, or `self`, and attributes right behind."""
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        name = step.argval
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, name)
            continue
        if chain:
            yield chain
        name = name[-1] if isinstance(name, tuple) and name else name
        fast = step.opname.startswith("LOAD_FAST")
        known = name in first if fast else name in cells if "DEREF" in step.opname else (
            step.opname == "LOAD_GLOBAL"
        )
        chain = (name,) if known and step.opname.startswith("LOAD") else ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _chains(constant, cells, first & set(constant.co_freevars))


def _of_cell(cell: Any) -> Place:
    return lambda: cell.cell_contents


def _of_dict(values: dict[str, Any], name: str) -> Place:
    return lambda: values[name]


def _of_attribute(place: Place, name: str) -> Place:
    return lambda: place().__dict__[name]


def _contents(value: Any) -> Any:
    """What is in a container of plain values or an array; None for anything else."""
    if isinstance(value, list | set) and all(isinstance(item, _PLAIN) for item in value):
        return repr(value)
    if isinstance(value, dict) and all(isinstance(item, _PLAIN) for item in value.values()):
        return repr(value)
    if hasattr(value, "tobytes") and hasattr(value, "nbytes") and value.nbytes <= _LARGEST:
        return value.tobytes()
    return None


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN) or isinstance(one, tuple) and all(
        isinstance(item, _PLAIN) for item in one
    ):
        return repr(one) == repr(other)  # 0.0 and −0.0 are two values, NaN is one
    return False


def _show(value: Any) -> str:
    if value is _GONE:
        return "gone"
    if isinstance(value, _PLAIN):
        return repr(value)
    return f"another {type(value).__name__}" if isinstance(value, Tensor) else repr(value)[:60]
