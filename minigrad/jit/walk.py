"""Which values a captured function reads: the walk over its code and the objects that it leads to.

The starting points are known: cells of its closure, globals, `self`, and arguments that are
objects. From there objects are walked: the items of containers, and attributes that the code reads
directly from such a value (`model.scale`, `self.rate`, `Config.rate`), or, in any of the functions,
from an unknown object (`layer.scale` in a loop over layers, or of an argument). Python functions
found on the way are walked, too: methods, properties, functions behind calls, loops and operators
(`__call__`, `__iter__`, `__add__`, `__init__` of objects that are created), functions that
decorators wrap, contents of defaults, and the code of modules that were called. What a library
reads is not seen, unless it reports it by `observe`.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from queue import Queue
from threading import Event
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from minigrad.graph.node import Node
from minigrad.jit.host_random import is_generator
from minigrad.jit.uses import ADDING, MAKING, Use, is_special, uses_of
from minigrad.tensor import Tensor
from minigrad.tensor.pytree import Same

PLAIN = (bool, int, float, complex, str, bytes, type(None))
_Dict: Any = dict | MappingProxyType
# What objects of the standard library hold, as an expression.
_CONTENTS: tuple[tuple[Any, str], ...] = (
    (UserDict | UserList | WeakSet | WeakKeyDictionary | WeakValueDictionary, ".data"),
    (ChainMap, ".maps"), (ContextVar, ".get(None)"), (Event, ".is_set()"), (weakref.ref, "()"),
    (Queue, ".queue"),
    (type({}.keys()) | type({}.values()) | type({}.items()), ".mapping"),
)  # fmt: skip
_KNOWN = (FunctionType, type, staticmethod, classmethod)  # descriptors whose function is known
_CLOSED = (*PLAIN, Tensor, Node)  # nothing in these changes, or it is checked elsewhere
_LARGEST = 1 << 16  # bytes of an array whose contents are compared in every call
LONGEST = 256  # items of a container that are checked one by one
_MOST_IDS = 1 << 11  # items of a longer one whose identities are compared (0.2 ms)
_MOST = 1 << 12  # values that are compared
_LIBRARIES = {"minigrad", "numpy", "torch"}  # their names are not rebound
_INSTALLED = ("site-packages", "dist-packages")  # folders of other libraries
_STANDARD = os.path.dirname(os.__file__)  # the folder of Python's standard library
GONE = object()
MISSING = (AttributeError, LookupError, ValueError)  # raised by an expression whose name is gone


class Read(NamedTuple):
    """A value that a step reads.

    label: its name in messages. kind: "name", "part" of a container, "noted" for an attribute that
    other code has reported (it can only be another if `changes` has been counted up), "constant"
    for the node of a tensor whose values are in the programs. test: the operator that tells another
    value from it. near: a shorter expression, valid while its container is the same object. link:
    to the object whose attribute `label` it is, for the latter two kinds, unless that is gone.
    """

    value: Any
    label: str
    kind: str = "name"
    test: str = "is not"
    near: str = ""
    link: Callable[[], Any] = lambda: None


_CALLED = Use("", "__call__", called=True)
_PART = Use(None, "")  # of a part of a container or argument, which has no name of its own


class Names(dict[str, Any]):
    """Values by the names that they have in expressions."""

    def of(self, value: Any) -> str:
        """The name of a value, which is kept alive."""
        name = f"at{id(value)}"
        self[name] = value
        return name


class Walk:
    """Finds what a step reads. instance: returns its `self`; given: its arguments that are objects.

    modules: those that it called → their attributes that are checked elsewhere; hooks: functions
    that these called. names: the names that expressions use.
    """

    def __init__(
        self, step: Any, instance: Callable[[], Any] | None, given: Mapping[str, Any],
        modules: Mapping[weakref.ref[Any], Mapping[str, Any]], hooks: Sequence[Any],
    ) -> None:  # fmt: skip
        self.names = Names(contents=contents)
        self.read: dict[str, Read] = {}  # by expression
        self.stored: dict[str, Any] = {}  # values of places that code sets, by expression
        self.generators: dict[int, tuple[str, Any]] = {}  # of random numbers, with labels, by id
        self.grows: list[tuple[Any, list[Any], str]] = []  # (what code adds to, its items, label)
        self.seen = set[tuple[Any, ...]]()
        self.uses: dict[tuple[CodeType, frozenset[str]], tuple[Use, ...]] = {}
        self.todo: list[Callable[[], None]] = []
        # attributes that functions read from objects unknown to them, such as arguments; by name,
        # with all uses of that function; and the objects that were found, with their expressions
        self.unknown: dict[str, dict[tuple[Use, tuple[Use, ...]], None]] = {}
        self.objects: list[tuple[Any, str, str]] = []
        self.called = set[int]()  # ids of objects whose `__call__` was walked
        self.elsewhere = {id(link()): names for link, names in modules.items()}
        is_function = isinstance(step, FunctionType | MethodType | functools.partial)
        if not is_function and inspect.getattr_static(step, "__wrapped__", None) is None:
            step = MethodType(type(step).__call__, step)
        own = {name: self.names.of(value) for name, value in given.items()}
        self._function(step, own, "" if instance is None else f"{self.names.of(instance)}()")
        for name, place in own.items():
            self._value(place, name.partition(" ")[0], _PART, (), known=True)
        self._finish()
        for link, settings in modules.items():
            kind = type(link())
            if id(link()) not in self.called:
                self._function(kind.__call__, {}, f"{self.names.of(link)}()", kind.__name__)
            for name in () if _is_library(kind) else ("__call__", "forward"):
                method = Read(getattr(kind, name), f"{kind.__name__}.{name}")
                self.read.setdefault(f"{self.names.of(kind)}.{name}", method)
            for name, layer in settings.items():
                if isinstance(layer, Same) and not isinstance(layer.value, weakref.ref | type):
                    place, label = self.names.of(layer.value), f"{kind.__name__}.{name}"
                    self._value(place, label, _CALLED, (_CALLED,), known=True)
            self._finish()
        for hook in hooks:
            self._value(self.names.of(hook), "a hook", _CALLED, (_CALLED,), known=True)
        self._across()
        while self.todo:
            self._across()

    def _finish(self) -> None:
        for one in self.todo:  # the list grows meanwhile
            one()
        self.todo.clear()  # breaks a reference cycle

    def _across(self) -> None:
        """Walk what one function reads from objects that another one gives it or gets from it."""
        self._finish()
        for value, place, label in self.objects:
            kinds = (*(value.__mro__ if isinstance(value, type) else ()), *type(value).__mro__)
            own = [vars(kind) for kind in kinds if not _is_library(kind)]
            names = {*getattr(value, "__dict__", ())}.union(*own)
            special = {name for one in own for name, its in one.items()
                       if is_special(name) and isinstance(its, FunctionType | staticmethod)
                       and (isinstance(value, type) or name not in MAKING)}
            for name in (names & self.unknown.keys()) | special:
                found = list[tuple[Use, tuple[Use, ...]]](self.unknown.get(name, ()))
                found += [(Use("", name, called=True), ())] if name in special else []
                for use, uses in found:
                    if (id(value), use, uses) not in self.seen:
                        self.seen.add((id(value), use, uses))
                        self._attribute(value, place, label, use, uses)

    def _function(
        self, function: Any, own: Mapping[str, str], first: str = "", label: str = ""
    ) -> None:
        """Walk a function and those that it wraps.

        own: expressions for its arguments; first: for the first one; label: its name in messages.
        """
        while function is not None:
            if isinstance(function, MethodType):
                first, function = self.names.of(function.__self__), function.__func__
            if isinstance(function, functools.partial):
                own = {**self._before(function.func, function.args, function.keywords), **own}
                function = function.func
                continue
            if isinstance(function, FunctionType):
                self._code(function, own, first, label)
                for method in vars(function).get("registry", {}).values():  # of singledispatch
                    self._function(method, {})
            function = inspect.getattr_static(function, "__wrapped__", None)

    def _before(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, str]:
        """Expressions for arguments that are not plain values: bound earlier, or defaults."""
        try:
            signature = inspect.signature(function, follow_wrapped=False)
            found = signature.bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):  # the call itself raises a better error
            return {}
        defaults = {name: one.default for name, one in signature.parameters.items()
                    if one.default is not one.empty}  # fmt: skip
        return {name: self.names.of(value) for name, value in {**defaults, **found}.items()
                if not isinstance(value, (*PLAIN, Tensor))}  # fmt: skip

    def _code(self, function: FunctionType, own: Mapping[str, str], first: str, label: str) -> None:
        """Walk a function's own code. For the arguments see `_function`."""
        if _is_library(function) and (self.seen or "__wrapped__" in vars(function)):
            return  # the step itself may be a library's
        code, globals_ = function.__code__, function.__globals__
        if function.__defaults__ or function.__kwdefaults__:
            own = {**self._before(function, (), {}), **own}
        if first and code.co_argcount:
            own = {**own, code.co_varnames[0]: first}
        key = (id(function), *own.values())
        if key in self.seen:
            return
        self.seen.add(key)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        found = code, frozenset((*own, *cells))  # a method of many objects is analysed once
        if found not in self.uses:
            self.uses[found] = tuple(dict.fromkeys(uses_of(*found)))
        uses = self.uses[found]
        for use in uses:
            name = use.name
            if use.of is None and name in own:
                shown = label if label and own[name] == first else name
                self._value(own[name], shown, use, uses, known=True)
            elif use.of is None and name in cells:
                self._value(f"{self.names.of(cells[name])}.cell_contents", name, use, uses)
            elif use.of is None and name in globals_:
                self._value(f"{self.names.of(globals_)}[{name!r}]", name, use, uses)
            elif use.of is None and name in sys.modules:  # imported by the function
                self._value(self.names.of(sys.modules[name]), name, use, uses)
            elif use.of == "":
                self.unknown.setdefault(name, {})[use, uses] = None
        if "super" in code.co_names and "__class__" in cells:
            bases = cells["__class__"].cell_contents.__mro__[1:]
            for name in (use.name for use in uses if use.of is not None):
                method = next((vars(base)[name] for base in bases if name in vars(base)), None)
                self._function(method, {}, first, label)

    def _value(
        self, place: str, label: str, use: Use, uses: tuple[Use, ...], kind: str = "name",
        known: bool = False, near: str = "", value: Any = GONE,
    ) -> None:  # fmt: skip
        """Walk the value of an expression.

        use: of its name; uses: of the function that reads it. kind: see `Read`. known: it
        cannot be replaced by another. near: see `Read`. value: the value, if already known.
        """
        try:
            value = eval(place, self.names) if value is GONE else value
        except MISSING:  # a cell that is still empty
            return
        library = _is_library(value) and "__wrapped__" not in vars(value)
        if library or len(self.read) >= _MOST:
            return
        if use.stored:
            self.stored.setdefault(place, value)
            if type(value) is dict:
                self._stored_items(value)
            return
        if not (known or isinstance(value, ModuleType | type)):
            self.read.setdefault(place, Read(value, label, kind, near=near))
        key = (id(value), use, uses)
        closed = isinstance(value, _CLOSED) and not hasattr(value, "__dict__")
        if key not in self.seen and not closed:
            self.seen.add(key)
            self.todo.append(lambda: self._inside(value, place, label, use, uses))

    def _inside(self, value: Any, place: str, label: str, use: Use, uses: tuple[Use, ...]) -> None:
        """Walk a value: the function, or the contents of the container or object."""
        self._function(value, {})
        if isinstance(value, list | tuple | deque | set | frozenset | _Dict):
            if use.adds and isinstance(value, list | deque | set):
                self.grows.append((value, [*value], label))
            elif not use.adds and len(value) <= _MOST_IDS:
                self._items(value, place, label, uses)
            if type(value) in (list, dict) and len(value) <= LONGEST:
                self._stored_items(value)
        elif not isinstance(value, _CLOSED) and (held := contents(value)) is not None:
            self.read.setdefault(f"contents({place})", Read(held, label, "part", "!="))
        if isinstance(value, BuiltinMethodType) and value.__name__ in ADDING:
            grown: Any = value.__self__
            self.grows.append((grown, [*grown], label))
        elif isinstance(value, BuiltinMethodType | MethodWrapperType):  # look = table.get
            known = not isinstance(value.__self__, Iterator)
            self._value(f"{place}.__self__", label, use, uses, known=known)
        bound = isinstance(value, BuiltinMethodType | MethodType)  # pick = generator.choice
        drawing = value.__self__ if bound else value
        if is_generator(drawing):
            self.generators[id(drawing)] = label, drawing
        for kind, inside in _CONTENTS:
            if isinstance(value, kind):
                self._value(f"{place}{inside}", label, use, uses, kind="part")
        has_parts = hasattr(value, "__dict__") or not _is_library(type(value))
        if has_parts and not isinstance(value, ModuleType):
            self.objects.append((value, place, label))
        for other in uses:
            if other.of in (use.name, ""):
                self._attribute(value, place, label, other, uses)

    def _items(self, value: Any, place: str, label: str, uses: tuple[Use, ...]) -> None:
        """Walk a container."""
        long = len(value) > LONGEST
        if isinstance(value, list | tuple | deque) and not long:
            items = [(repr(number), number, item) for number, item in enumerate(value)]
            self.read.setdefault(f"len({place})", Read(len(value), label, "part", "!="))
        else:
            items = [(self.names.of(key), key, item) for key, item in
                     (value.items() if isinstance(value, _Dict) and not long else ())]  # fmt: skip
            whole, compared = place, value
            if isinstance(value, _Dict) and long:
                whole, compared = f"(*{place}, *{place}.values())", (*value, *value.values())
            ids = Read([*map(id, compared)], label, "part", "!=")
            self.read.setdefault(f"[*map(id, {whole})]", ids)
        for item in value if isinstance(value, set | frozenset | _Dict) and not long else ():
            self._value(self.names.of(item), f"{label}[…]", _PART, uses, known=True, value=item)
        for name, key, item in items:
            inner = f"{label}[{repr(key) if isinstance(key, PLAIN) else '…'}]"
            near = self._near(value, place, f"[{name}]")
            self._value(f"{place}[{name}]", inner, _PART, uses, kind="part", near=near, value=item)

    def _stored_items(self, value: Any) -> None:
        """Note the tensors in a container: code may have put them there."""
        name = self.names.of(value)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, Tensor):
                self.stored.setdefault(f"{name}[{self.names.of(key)}]", item)

    def _attribute(
        self, value: Any, place: str, label: str, use: Use, uses: tuple[Use, ...]
    ) -> None:
        """Walk an attribute of an object or its class; for a property, the method that it calls."""
        name = use.name
        if name == "__call__" and not isinstance(value, type):
            self.called.add(id(value))
        if name in ("__class__", "__dict__"):
            self._value(f"{place}.{name}", f"{label}.{name}", use, uses)
            return
        found = inspect.getattr_static(value, name, GONE)
        is_own = name in getattr(value, "__dict__", ())
        if is_own and name in self.elsewhere.get(id(value), ()):
            own = vars(value)[name]
            if isinstance(own, PLAIN) or id(own) in self.elsewhere:
                return
        if found is GONE:
            found = inspect.getattr_static(value, "__getattr__", GONE)
            if found is GONE and (use.by_text or use.of):
                missing = Read(getattr(value, name, None), f"{label}.{name}")
                self.read.setdefault(f"getattr({place}, {name!r}, None)", missing)
        found = found.fget if isinstance(found, property) else found
        get = inspect.getattr_static(type(found), "__get__", None)  # of a user's descriptor
        found = get if isinstance(get, FunctionType) and not _is_library(get) else found
        found = found.func if isinstance(found, functools.partialmethod) else found
        if not isinstance(found, _KNOWN) and hasattr(found, "__get__"):
            found = inspect.getattr_static(found, "__wrapped__", found)  # a captured method
        takes_it = isinstance(found, classmethod) or not isinstance(value, type)
        first = place if takes_it and not isinstance(found, staticmethod) else ""
        found = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        if isinstance(found, FunctionType) and (not is_own or isinstance(value, type)):
            kind = value if isinstance(value, type) else type(value)
            plain = isinstance(inspect.getattr_static(kind, name, None), _KNOWN)
            if not _is_library(found) and plain and getattr(kind, name) is found:  # not replaced
                inner = f"{kind.__name__}.{name}"
                self.read.setdefault(f"{self.names.of(kind)}.{name}", Read(found, inner))
            self.todo.append(lambda: self._function(found, {}, first, label))
        elif is_own or inspect.ismemberdescriptor(found) or not hasattr(found, "__get__"):
            if found is not GONE and (callable(found) or not use.called):
                is_item = is_own and not isinstance(value, type)
                here = f".__dict__[{name!r}]" if is_item else f".{name}"
                near, inner = self._near(value, place, here), f"{label}.{name}"
                if use.stored:  # one expression for all ways to it, which does not keep it alive
                    weak = hasattr(value, "__weakref__")
                    place = self.names.of(weakref.ref(value) if weak else value) + "()" * weak
                self._value(place + here, inner, use, uses, near=near)

    def _near(self, value: Any, place: str, here: str) -> str:
        """The expression of a part of a value, starting at the value itself if that is checked."""
        return self.names.of(value) + here if place in self.read else ""


def contents(value: Any) -> bytes | None:
    """The bytes of an array, or of another object that shows its memory; None if they are many."""
    try:
        whole: Any = memoryview(value)
    except (TypeError, ValueError):  # an array of dates is none, either
        if isinstance(value, type) or inspect.getattr_static(value, "tobytes", None) is None:
            return None
        whole = value
    return whole.tobytes() if getattr(whole, "nbytes", _LARGEST + 1) <= _LARGEST else None


def _is_library(value: Any) -> bool:
    """Whether it is a module, class or function of minigrad or another library."""
    if not isinstance(value, ModuleType | type | FunctionType):
        return False
    if isinstance(value, FunctionType):  # a decorator may have set another's __module__
        name = value.__globals__.get("__name__")
    else:
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    first = (name or "").partition(".")[0]
    file = getattr(sys.modules.get(first), "__file__", None)
    if first not in sys.stdlib_module_names:
        installed = file is not None and not {*_INSTALLED}.isdisjoint(file.split(os.sep))
        return first in _LIBRARIES or (installed and first != "__main__")
    return file is None or file.startswith(_STANDARD)  # a user's module may have such a name
