"""What a step reads: which functions ran while it was captured, and what their code reads.

`Watch` is told by Python which functions run: the step's own, those that it calls, and those that
something else calls for it (operators, properties, layers in a list, what is inherited). Of each
that is not a library's, the code says which names it reads: cells of its closure, globals,
arguments. From these values on `Walk` goes through objects: attributes that the code reads right
behind the name of a value (`model.scale`, `self.rate`, `Config.rate`), or behind something of which
it is not known what that is (`layer.scale` in a loop over layers), and what is in containers. What
a library reads on the way is not seen, unless it says so by `note`.
"""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, pairwise
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from minigrad.graph.node import Node
from minigrad.tensor import Tensor, realization
from minigrad.undisturbed import undisturbed

PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CLOSED = (*PLAIN, Tensor, Node)  # in which nothing changes, or is looked at elsewhere
_LARGEST = 1 << 16  # bytes of an array that are compared in every call
_LONGEST = 1 << 12  # items of a container that are
_MOST = 1 << 12  # values that are
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")
_VARIABLE = ("LOAD_FAST", "LOAD_DEREF")
_ADDING = ("append", "extend", "add", "update", "insert")
_BY_TEXT = {"getattr", "attrgetter", "vars", "__dict__", "globals"}  # for these, strings are names
_LIBRARIES = {"minigrad", "numpy", "torch"}  # nobody rebinds what is theirs
_STANDARD = os.path.dirname(os.__file__)  # where Python's own modules are
_ALIKE: Collection[Any] = (object.__eq__, str.__eq__)  # nothing equals what differs by these
_GONE = object()


class Read(NamedTuple):
    """A value that is read. label: what it is called; owner: the name of what it is read from.

    test: how another is told from it: "is not"; or, of contents, "!=", or item by item: "items" of
    what can be gone through, "pairs" of a mapping.
    """

    value: Any
    label: str
    owner: str
    test: str = "is not"


class _Use(NamedTuple):
    """A name that code reads. of: what it is an attribute of, "" where nobody knows what that is;
    None for a variable. called: it is a method's; adds: what has it is only added to.
    """

    of: str | None
    name: str
    called: bool = False
    adds: bool = False


class _Ran(NamedTuple):
    """Code that ran. names: its globals; functions: those that have it; own: objects in its
    arguments, by their names.
    """

    code: CodeType
    names: dict[str, Any]
    functions: Sequence[FunctionType]
    own: Mapping[str, Sequence[Any]]


class Mark(NamedTuple):
    """Stands for an object that is not held."""

    number: int


class Watch:
    """Notes which functions of the user's run while a step is captured, and what they find.

    What the step makes itself is nothing that it reads; of that, only the classes count. It is not
    held meanwhile, as tensors may be in it.
    """

    def __init__(self, step: Any, instance: Callable[[], Any] | None) -> None:
        functions = [*_functions_of(step)] or [*_functions_of(type(step).__call__)]
        self.step = functions[-1].__code__ if functions else None  # which a library may have
        self.before = Walk(instance, notes=True)
        for function in functions:
            self.before.found(function)
        self._ran: dict[tuple[int, ...], _Ran] = {}
        # young objects: lest an id come back, they stay; tensors may go
        self._known = [one for one in _young() if type(one) not in (Tensor, FrameType)]
        self._new = set[int]()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the step runs. A debugger that watches, too, is told what it would be."""
        self._previous = sys.gettrace()
        with undisturbed():  # what is new stays young
            sys.settrace(self._called)
            try:
                yield
            finally:
                sys.settrace(self._previous)
                self._new = {*map(id, _young())}.difference(map(id, self._known))
                self._known.clear()  # it is among them

    def _called(self, frame: FrameType, event: Any, argument: Any) -> Any:
        if event == "call":
            own = frame.f_code is self.step
            if own or not _is_of_library(frame.f_globals.get("__name__")):
                self._note(frame)
        if self._previous is None:
            return None
        try:
            return self._previous(frame, event, argument)
        finally:
            sys.settrace(self._called)  # some put themselves there

    def _note(self, frame: FrameType) -> None:
        outer: FrameType | None = frame
        while outer is not None:  # what runs to compile and compute is no part of the step
            if outer.f_code.co_filename == realization.__file__:
                return
            outer = outer.f_back
        code, values = frame.f_code, frame.f_locals
        functions = [
            one for one in self.before.functions.get(id(code), ())
            if all(_content(cell) is values.get(name, _GONE) for name, cell in _cells(one))
        ]  # fmt: skip
        count = code.co_argcount + code.co_kwonlyargcount
        for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS):
            count += bool(code.co_flags & flag)
        names = code.co_varnames[:count] + (() if functions else code.co_freevars)
        own = {name: [*_objects(values[name])] for name in names if name in values}
        key = (id(code), *(id(value) for found in own.values() for value in found))
        if key not in self._ran:
            self.before.of(_Ran(code, frame.f_globals, functions, own))
            links = {name: [*map(self._link, found)] for name, found in own.items()}
            self._ran[key] = _Ran(code, frame.f_globals, functions, links)

    def ran(self) -> Iterator[_Ran]:
        """What ran, with the objects from before, and the classes of others."""
        inner = {id(part) for one in self._ran.values() for part in one.code.co_consts}
        unknown = [one.code for one in self._ran.values() if not one.functions]
        unknown = [code for code in unknown if code.co_freevars and id(code) not in inner]
        for function in gc.get_referrers(*unknown) if unknown else ():
            if isinstance(function, FunctionType) and id(function) not in self._new:
                self.before.found(function)
        for code, names, functions, links in self._ran.values():
            own = {name: [self._old(*link) for link in found] for name, found in links.items()}
            if not functions:
                functions = [
                    one for one in self.before.functions.get(id(code), ())
                    if all(any(_content(cell) is value for value in own[name])
                           for name, cell in _cells(one) if own.get(name))
                ]  # fmt: skip
            yield _Ran(code, names, functions, own)

    def _link(self, value: Any) -> tuple[Callable[[], Any], type]:
        """How to find an object if it is still there, and its class."""
        try:
            return weakref.ref(value), type(value)
        except TypeError:  # it has __slots__, or is of Python's own
            is_new = id(value) in {*map(id, _young())}.difference(map(id, self._known))
            return functools.partial(lambda same: same, None if is_new else value), type(value)

    def _old(self, link: Callable[[], Any], kind: type) -> Any:
        value = link()
        return kind if value is None or id(value) in self._new else value


class Walk:
    """Finds what code that ran reads. instance: a weak reference to what the step is a method of.

    elsewhere: attributes that are looked at in another way, by the ids of what has them. notes:
    it holds nothing that could be in the way, but a `Mark` of objects, and links to tensors. names:
    what the expressions refer to; read: by these; refused: what could not be compared.
    """

    def __init__(
        self, instance: Callable[[], Any] | None, notes: bool = False,
        elsewhere: Mapping[int, Collection[str]] | None = None,
    ) -> None:  # fmt: skip
        self.instance, self.notes, self.elsewhere = instance, notes, elsewhere or {}
        self.names: dict[str, Any] = {}
        self.read: dict[str, Read] = {}
        self.refused: list[str] = []
        self.functions: dict[int, weakref.WeakSet[FunctionType]] = {}  # by the ids of their codes
        self._labels: dict[int, str] = {}
        self._uses: dict[tuple[CodeType, frozenset[str]], tuple[_Use, ...]] = {}
        self._seen = set[tuple[Any, ...]]()
        self._todo = deque[Callable[[], None]]()

    def of(self, ran: _Ran) -> None:
        """What code that ran reads."""
        known = ran.code, frozenset((*ran.own, *ran.code.co_freevars))
        if known not in self._uses:
            self._uses[known] = tuple(dict.fromkeys(_uses(*known)))
        uses = self._uses[known]
        for function in ran.functions:
            for name in ("__code__", "__defaults__")[: 1 + bool(function.__defaults__)]:
                label = f"{function.__name__}.{name}"
                self._put(function, f".{name}", getattr(function, name), label)
            if (options := function.__kwdefaults__) is not None:
                self._put(options, "", {**options}, f"{function.__name__}.__kwdefaults__", "pairs")
        for value in ran.own.get(ran.code.co_varnames[0], ()) if ran.code.co_argcount else ():
            self._defined(value, ran.code)
        for use in uses:
            if use.of is None:
                self._variable(ran, use, uses)
        while self._todo:
            self._todo.popleft()()

    def found(self, function: FunctionType) -> None:
        """A function that may run."""
        self.functions.setdefault(id(function.__code__), weakref.WeakSet()).add(function)

    def _variable(self, ran: _Ran, use: _Use, uses: tuple[_Use, ...]) -> None:
        """Of a name: an argument's, a cell's, a global one, or that of a module to import."""
        name = use.name
        cells = [cell for one in ran.functions for own, cell in _cells(one) if own == name]
        for value in chain(ran.own.get(name, ()), *(_default(one, name) for one in ran.functions)):
            self._reach(value, self._labels.get(id(value), name), use, uses)
        for cell in cells:
            self._value(cell, ".cell_contents", _content(cell), name, use, uses)
        if name in ran.own or name in ran.code.co_freevars:
            return
        if name in ran.names:
            self._value(ran.names, f"[{name!r}]", ran.names[name], name, use, uses)
        elif name in sys.modules:
            self._reach(sys.modules[name], name, use, uses)

    def _named(self, value: Any) -> str:
        name = f"at{id(value)}"
        if self.instance is not None and value is self.instance():
            self.names[name] = self.instance
            return f"{name}()"
        if not self.notes:
            self.names[name] = value
        return name

    def _kept(self, value: Any) -> Any:
        if not self.notes or isinstance(value, (*PLAIN, Iterator)):
            return value
        return value._link if isinstance(value, Tensor) else Mark(id(value))

    def _put(
        self, owner: Any, here: str, value: Any, label: str, test: str = "is not"
    ) -> None:
        """Note what an expression reads from an owner."""
        name = self._named(owner)
        value = self._kept(value) if test == "is not" else value
        self.read.setdefault(f"{name}{here}", Read(value, label, name, test))
        if len(self.read) > _MOST:
            self.refused.append(f"more than {_MOST} values")

    def _value(
        self, owner: Any, here: str, value: Any, label: str, use: _Use, uses: tuple[_Use, ...]
    ) -> None:
        """Of what an owner has, and of what is in that."""
        if value is not _GONE and not is_library(value):
            self._put(owner, here, value, label)
            self._reach(value, label, use, uses)

    def _reach(self, value: Any, label: str, use: _Use, uses: tuple[_Use, ...]) -> None:
        """Of what is in a value. use: of its name; uses: of the code that reads it."""
        key = id(value), use, id(uses)
        has_nothing = isinstance(value, _CLOSED) or is_library(value)
        if not has_nothing and key not in self._seen:
            self._seen.add(key)
            self._named(value)  # and kept, lest another take its id
            self._labels.setdefault(id(value), label)
            self._todo.append(lambda: self._inside(value, label, use, uses))

    def _inside(self, value: Any, label: str, use: _Use, uses: tuple[_Use, ...]) -> None:
        """By the kind of a value, what is in it; and attributes."""
        kind = type(value)
        for function in _functions_of(value):
            self.found(function)
        standard = is_library(kind) and kind.__module__.partition(".")[0] not in _LIBRARIES
        if isinstance(value, bytearray):
            self._bytes(value, "[:]", len(value), label)
        elif hasattr(kind, "tobytes"):
            size = getattr(value, "nbytes", None)
            self._bytes(value, ".tobytes()", len(value.tobytes()) if size is None else size, label)
        elif hasattr(kind, "__array__"):
            self.refused.append(f"{label!r}, a {kind.__name__}, whose values are not Python's")
        elif isinstance(value, ContextVar):
            self._value(value, ".get(None)", value.get(None), label, use, uses)
        elif isinstance(value, functools.partial):
            self._reach(value.args, label, use, uses)
            self._reach(value.keywords, label, use, uses)
        elif hasattr(kind, "cache_info"):
            self._cached(value, label, use, uses)
        elif isinstance(value, (list, tuple, dict, set, frozenset, deque)) or (
            standard and isinstance(value, Mapping | Sequence | Set) and kind is not range
        ):
            if not use.adds:
                self._items(value, label, uses)
        for other in uses:
            if other.of in (use.name, ""):
                self._attribute(value, label, other, uses)

    def _bytes(self, value: Any, here: str, size: int, label: str) -> None:
        if size <= _LARGEST:
            contents = eval(f"value{here}", {"value": value})
            self._put(value, here, contents, label, "!=")
        else:
            self.refused.append(f"{label!r}, a {type(value).__name__} of {size:,} bytes")

    def _items(self, value: Any, label: str, uses: tuple[_Use, ...]) -> None:
        """Of a container: which items it has, and what is in these."""
        if len(value) > _LONGEST:
            self.refused.append(f"{label!r}, a {type(value).__name__} of {len(value):,} items")
            return
        by_key = isinstance(value, Mapping)
        items: dict[Any, Any] = {**value} if by_key else dict(enumerate(value))
        kept = {key: self._kept(item) for key, item in items.items()}
        items_differ, kinds = "pairs" if by_key else "items", {*map(type, items.values())}
        if by_key:
            kinds |= {*map(type, items)}
        if type(value) in (dict, list) and all(kind.__eq__ in _ALIKE for kind in kinds):
            items_differ = "!="
        if not isinstance(value, tuple | frozenset):
            self._put(value, "", kept if by_key else [*kept.values()], label, items_differ)
        for key, item in items.items():
            inner = f"{label}[{repr(key) if isinstance(key, PLAIN) else '…'}]"
            self._reach(item, inner, _Use(None, ""), uses)

    def _cached(self, value: Any, label: str, use: _Use, uses: tuple[_Use, ...]) -> None:
        """Of a function that keeps results: what it would read, and what is in the results."""
        for function in _functions_of(value):
            ran = _Ran(function.__code__, function.__globals__, (function,), {})
            self._todo.append(functools.partial(self.of, ran))
        for found in gc.get_referents(value):
            if found is not vars(value):
                for result in found.values() if type(found) is dict else [found]:
                    self._reach(result, f"{label}(…)", use, uses)

    def _attribute(self, value: Any, label: str, use: _Use, uses: tuple[_Use, ...]) -> None:
        """Of what an object has by a name, of itself or of its class."""
        name, is_class = use.name, isinstance(value, type)
        own = {} if is_class else getattr(value, "__dict__", {})
        found = inspect.getattr_static(value, name, own.get(name, _GONE))
        shown = f"{label}.{name}"
        binds = hasattr(type(found), "__get__")
        if found is _GONE or (use.called and not callable(found) and not binds):
            return
        if found is own.get(name, _GONE):
            if name in self.elsewhere.get(id(value), ()):
                self._reach(found, shown, use, uses)
            else:
                self._value(value, f".__dict__[{name!r}]", found, shown, use, uses)
        elif inspect.ismemberdescriptor(found) or not binds:
            here = getattr(value, name, _GONE)  # a slot may be empty
            self._value(value, f".{name}", here, shown, use, uses)
        else:
            of_user = self._dispatched(value if is_class else type(value), name, shown)
            overrides = hasattr(value, "__dict__") and not hasattr(type(found), "__set__")
            if of_user and not is_class and overrides and id(value) not in self.elsewhere:
                self._put(value, f".__dict__.get({name!r})", None, shown)

    def _defined(self, value: Any, code: CodeType) -> None:
        """Of a first argument, where code is a method's of its class: that it still is."""
        kind = value if isinstance(value, type) else type(value)
        label, name = self._labels.get(id(value), kind.__name__), code.co_name
        if is_library(kind):
            return
        owners = [owner for owner in kind.__mro__ if name in vars(owner)]
        for owner in owners:
            if code in (one.__code__ for one in _functions_of(vars(owner)[name])):
                self._dispatched(kind if owner is owners[0] else owner, name, f"{label}.{name}")
                if value is not kind and id(value) not in self.elsewhere:
                    self._put(value, ".__class__", kind, f"{label}.__class__")
                return

    def _dispatched(self, kind: type, name: str, label: str) -> bool:
        """Of a method, a property or the like that a class has by a name; whether it is a user's.
        """
        owner = next((owner for owner in kind.__mro__ if name in vars(owner)), None)
        if owner is None or is_library(owner):
            return False
        found = vars(owner)[name]
        for function in _functions_of(found):
            self.found(function)
        if isinstance(found, FunctionType | property):
            self._put(kind, f".{name}", found, label)
        else:
            self._put(owner, f".__dict__[{name!r}]", found, label)
        return True


def _uses(code: CodeType, known: Collection[str]) -> Iterator[_Use]:
    """What code reads, and functions in it. known: its cells, and arguments that are looked at."""
    of = ""
    for step, after in pairwise(dis.get_instructions(code)):
        kind, name = step.opname, step.argval
        name = name[-1] if isinstance(name, tuple) and name else name
        adds = after.opname in _ATTRIBUTE and after.argval in _ADDING
        if kind in _ATTRIBUTE:
            # since Python 3.12 a bit says whether it is called
            bit = sys.version_info >= (3, 12) and bool((step.arg or 0) & 1)
            called = kind == "LOAD_METHOD" or (kind != "IMPORT_FROM" and bit)
            yield _Use(of, name, called, adds)
        elif kind in ("LOAD_GLOBAL", "IMPORT_NAME") or (
            kind.startswith(_VARIABLE) and name in known
        ):
            yield _Use(None, name, adds=adds)
        else:
            name = ""
        of = name
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _uses(constant, {*known}.intersection(constant.co_freevars))
        elif isinstance(constant, str) and _BY_TEXT.intersection(code.co_names):
            yield _Use("", constant)
            yield _Use(None, constant)


def _functions_of(value: Any) -> Iterator[FunctionType]:
    """The functions that run where a value is called, or read as an attribute: those it wraps."""
    seen = set[int]()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value
        if isinstance(value, MethodType | staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial | functools.cached_property):
            value = value.func
        else:
            value = inspect.getattr_static(value, "__wrapped__", None)


def _young() -> Iterator[Any]:
    """Objects that no collection of garbage but those of the youngest has seen."""
    return chain(gc.get_objects(generation=0), gc.get_objects(generation=1))


def _objects(value: Any) -> Iterator[Any]:
    """The objects of an argument: those in lists and the like, which whoever has these reads."""
    if isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects(item)
    elif not isinstance(value, _CLOSED):
        yield value


def _default(function: FunctionType, name: str) -> Sequence[Any]:
    """What an argument is unless it is given."""
    code, given = function.__code__, function.__defaults__ or ()
    by_place = dict(zip(code.co_varnames[: code.co_argcount][::-1], given[::-1], strict=False))
    every = {**by_place, **(function.__kwdefaults__ or {})}
    return [every[name]] if name in every else []


def _cells(function: FunctionType) -> Iterable[tuple[str, Any]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return _GONE


def is_library(value: Any) -> bool:
    """Whether it is a module, a class or a function of minigrad's or of a library."""
    if isinstance(value, FunctionType):  # a decorator has given it another's __module__
        inner = getattr(inspect.unwrap(value), "__globals__", value.__globals__)
        return _is_of_library(inner.get("__name__"))
    if isinstance(value, ModuleType | type):
        return _is_of_library(value.__name__ if isinstance(value, ModuleType) else value.__module__)
    return False


@functools.cache
def _is_of_library(name: str | None) -> bool:
    """The same of what is in a module of this name."""
    first = (name or "builtins").partition(".")[0]
    if first not in sys.stdlib_module_names:
        return first in _LIBRARIES or first.startswith("namedtuple_")  # whose code has such a one
    file = getattr(sys.modules.get(first), "__file__", None)  # the user's may have such a name
    return file is None or file.startswith(_STANDARD)
