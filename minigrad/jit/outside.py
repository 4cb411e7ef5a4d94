"""What a captured function reads besides its arguments, and whether that is still the same.

The names that its code reads are known: cells of its closure, globals, and attributes of what is
in them and of arguments (`model.scale`, `self.rate`, `Config.rate`), also by functions of Python
that it names, methods of `self` among them. A replay runs no Python, so it looks whether each of
them is what it was. What other code reads on the way (a layer its attributes, a list its items'
attributes) is not seen, unless it says so by `note`.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from minigrad.errors import JitError
from minigrad.graph.node import Node
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import show as shape_of
from minigrad.tensor.live_tensors import Holder
from minigrad.tensor.pytree import Same

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LARGEST = 1 << 16  # bytes of an array that are compared in every call
_LONGEST = 256  # items of a list or dict that are
_ADDING = [["append"], ["extend"], ["add"], ["update"], ["insert"]]
_CONTAINERS = (list, tuple, set, dict)
_LIBRARIES = {"minigrad", "numpy", "torch"}  # nobody rebinds what is theirs
_STANDARD = os.path.dirname(os.__file__)  # where Python's own modules are
_Found = tuple[str, str, bool]
_SHORT = 8  # items that are quicker to compare one by one
_MISSING = (AttributeError, KeyError, ValueError)  # from an expression whose name is gone


class Noted(dict[tuple[int, str], weakref.ref[Any] | None]):
    """Whose attributes code has read, by their ids and names; None for those that it wrote first.

    left: the nodes of tensors in whose place it has put others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: list[Node] = []


class _Noting(threading.local):
    found: Noted | None = None


_noting = _Noting()
_changes = [0]  # how often an attribute was written that code notes


@contextmanager
def noting() -> Iterator[Noted]:
    """Collect what code reads, by `note`."""
    before, _noting.found = _noting.found, Noted()
    try:
        yield _noting.found
    finally:
        _noting.found = before


def note(owner: Any, attribute: str, written: bool = False) -> None:
    """Tell a capture that goes on of an attribute, a plain value, that decides what is computed.

    Whoever writes it says so before, too: a replay looks at all that its capture noted only if
    something was written. What a step writes before it reads it may be anything before.
    """
    _changes[0] += written
    if _noting.found is not None:
        _noting.found.setdefault(
            (id(owner), attribute), None if written else weakref.ref(owner)
        )


def replaces(tensor: Tensor) -> None:
    """Tell a capture that goes on that an object has another tensor in the place of this one."""
    if _noting.found is not None:
        _noting.found.left.append(tensor.raw)


class Outside:
    """The values that a function reads from outside, as they are now.

    instance: gives what a method's `self` is. given: arguments that are objects, by their names.
    noted: attributes that other code read on the way. differs: a quick look, in every call.
    """

    def __init__(
        self, name: str, function: Any, instance: Callable[[], Any] | None,
        given: Mapping[str, Any], noted: Noted,
    ) -> None:  # fmt: skip
        self.name = name
        self.gone: list[str] = []  # shapes of tensors that the step read
        self.names: dict[str, Any] = {
            "MISSING": _MISSING, "map": map, "id": id, "len": len, "ids": _ids, "gone": self.gone
        }  # fmt: skip
        # what it is called → the expression that gives it, what it was, what was in it
        self.read: dict[str, tuple[str, Any, Any]] = {}
        function = inspect.unwrap(function)
        while isinstance(function, functools.partial):
            function = inspect.unwrap(function.func)
        if isinstance(function, MethodType):
            bound = function.__self__
            function, instance = function.__func__, lambda: bound
        elif not isinstance(function, FunctionType):  # an object that is called
            called = function
            function, instance = type(called).__call__, lambda: called
        for label, place, looks_inside in _Reader(self.names).all(function, instance, given):
            value = eval(place, self.names)
            if looks_inside or label not in self.read:
                self.read[label] = (place, value, _contents(value) if looks_inside else None)
        # an attribute that was noted, whose it is, what it was
        self.noted = [
            (attribute, link, getattr(link(), attribute))
            for (_, attribute), link in noted.items()
            if link is not None and link() is not None
        ]
        self.left, self.seen = noted.left, _changes[:]
        self.links: list[weakref.ref[Holder]] = []
        self.differs = self._look()

    def _look(self) -> Callable[[], bool]:
        """Written out, as it costs a replay of a microsecond or two what it costs."""
        self.names |= {"changes": _changes, "seen": self.seen}
        tests = ["changes != seen"] if self.noted else []
        for number, (place, value, contents) in enumerate(self.read.values()):
            self.names[f"value{number}"] = value
            tests.append(f"(now := {place}) is not value{number}")
            if isinstance(contents, bytes):
                self.names[f"inside{number}"] = contents
                tests.append(f"now.tobytes() != inside{number}")
            elif contents and isinstance(value, list) and len(contents) == len(value) <= _SHORT:
                tests.append(f"len(now) != {len(contents)}")
                for at, item in enumerate(contents):
                    self.names[f"item{number}_{at}"] = item
                    tests.append(f"now[{at}] is not item{number}_{at}")
            elif contents is not None:
                self.names[f"inside{number}"] = _ids(value)
                whole = "map(id, now)" + ", *map(id, now.values())" * isinstance(value, dict)
                is_deep = any(isinstance(item, _CONTAINERS) for item in contents)
                tests.append(f"{'ids(now)' if is_deep else f'[*{whole}]'} != inside{number}")
        text = (
            "def differs():\n    try:\n"
            f"        return {' or '.join(['gone', *tests])}\n"
            "    except MISSING:\n        return True\n"
        )
        exec(compile(text, f"<what {self.name} reads>", "exec"), self.names)
        differs: Callable[[], bool] = self.names.pop("differs")
        return differs

    def mourn(self, tensors: Sequence[Holder]) -> None:
        """Note when the last of the tensors that stand for a BUFFER, which the step reads, is gone.

        The function can then read it no more: it would find another in its place.
        """
        gone, shape = self.gone, shape_of(tensors[0].raw.shape)
        links: list[weakref.ref[Holder]] = []

        def forget(link: weakref.ref[Holder]) -> None:
            if all(link() is None for link in links):
                gone.append(shape)

        links += [weakref.ref(tensor, forget) for tensor in tensors]
        self.links += links

    def check(self) -> None:
        """JitError where a value is another one."""
        if not self.differs():
            return
        for shape in self.gone:
            raise JitError(
                f"{self.name} reads a tensor of shape {shape} that is gone since it was captured "
                "(was another put in its place, as in layer.weight = …?): a replay would read the "
                "old one for ever; write with .assign(), or .reset()"
            )
        for label, (place, before, contents) in self.read.items():
            try:
                now = eval(place, self.names)
            except _MISSING:
                now = _GONE
            if now is not before and not _equal(now, before):
                raise JitError(
                    f"{self.name} reads {label!r}, which was {_show(before)} when it was captured "
                    f"and is {_show(now, True)} now: a replay would not see it; pass it as an "
                    "argument (a Tensor where it changes), write to a Tensor in place with "
                    ".assign(), or .reset()"
                )
            if contents is not None and not _alike(_contents(now), contents):
                raise JitError(
                    f"{self.name} reads {label!r}, whose contents have changed since it was "
                    "captured: a replay would not see them; pass it as a Tensor argument, or "
                    ".reset()"
                )
        self._check_noted()

    def refuse_given(self, leaves: Sequence[Tensor]) -> None:
        """JitError where an argument that gets a gradient is also a tensor of outside."""
        for label, (_, value, contents) in self.read.items():
            found = [value, *(contents if isinstance(contents, list) else ())]
            if any(one is leaf for one in found for leaf in leaves):
                raise JitError(
                    f"{self.name} is given a tensor that it also reads as {label!r}: a replay "
                    "could not tell the two apart; pass a .clone(), or do not pass it"
                )

    def refuse_changes(self, before: Outside, memory: Collection[Any]) -> None:
        """JitError where the step has itself changed what it reads, since `before`.

        memory: what a replay reads the values of; a tensor that it does not read may be replaced.
        """
        if any(node.arg in memory for node in self.left):
            self._refuse_replaced("a tensor of a module that it calls")
        for label, (_, value, contents) in before.read.items():
            now, inside = self.read.get(label, before.read[label])[1:]
            pairs = [(value, now)]
            if isinstance(contents, list) and isinstance(inside, list):
                pairs += zip(contents, inside, strict=False)
            for was, new in pairs:
                is_read = isinstance(was, Tensor) and was.raw.arg in memory
                if was is not new and (is_read or isinstance(was, _PLAIN) and not _equal(was, new)):
                    self._refuse_replaced(repr(label))

    def _refuse_replaced(self, what: str) -> None:
        raise JitError(
            f"{self.name} reads {what} and puts another in its place: a replay would do neither "
            "anew; write to a Tensor with .assign(), and change numbers outside"
        )

    def _check_noted(self) -> None:
        """JitError where code would now read something else than it noted."""
        changes = _changes[0]
        for attribute, link, before in self.noted:
            owner = link()  # one that is gone cannot have changed
            now = before if owner is None else getattr(owner, attribute)
            if now == before:
                continue
            name = attribute.strip("_")
            if isinstance(before, dict):
                name = next(n for n in {**before, **now} if before.get(n) != now.get(n))
                before, now = before.get(name), now.get(name)
            raise JitError(
                f"{self.name} calls a {type(owner).__name__} whose {name} was {_show(before)} when "
                f"it was captured and is {_show(now, True)} now: a replay would not see it; put it "
                "back, capture another function for it, or .reset()"
            )
        self.seen[0] = changes


_GONE = object()


class _Reader:
    """Finds what functions read: what that is called, an expression that gives it, and whether
    what is in it is read, too (not where it is only appended to).

    names: what the expressions refer to.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.names, self.seen = names, set[tuple[Any, ...]]()

    def all(
        self, function: Any, instance: Callable[[], Any] | None, given: Mapping[str, Any]
    ) -> Iterator[_Found]:
        """Of a step. instance: gives its `self`. given: arguments that are objects."""
        known = {name: self._named(value) for name, value in given.items()}
        function = inspect.unwrap(function)
        if instance is not None and isinstance(function, FunctionType):
            known |= {name: self._named(instance) + "()" for name in _own_name(function)}
        yield from self._places(function, known)

    def _places(self, function: Any, known: Mapping[str, str]) -> Iterator[_Found]:
        """Of one function, and those that it names. known: expressions of its arguments."""
        function = inspect.unwrap(function)
        key = (id(function), *known.values())
        if not isinstance(function, FunctionType) or key in self.seen:
            return
        self.seen.add(key)
        code = function.__code__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for root, *attributes in dict.fromkeys(_chains(code, set(cells), set(known))):
            if root in known:
                place = known[root]
            elif root in cells:
                place = self._named(cells[root]) + ".cell_contents"
            elif root in function.__globals__:
                place = f"{self._named(function.__globals__)}[{root!r}]"
            else:
                continue
            yield from self._along(root, place, attributes, root not in known)

    def _named(self, value: Any) -> str:
        name = f"at{id(value)}"
        self.names[name] = value
        return name

    def _along(
        self, label: str, place: str, attributes: list[str], with_root: bool
    ) -> Iterator[_Found]:
        """A value, and the attributes that are read of it as far as these are its own."""
        try:
            value = eval(place, self.names)
        except ValueError:  # a cell that is empty yet
            return
        if _is_library(value):
            return
        if with_root and not isinstance(value, ModuleType | type):
            yield label, place, attributes[:1] not in _ADDING
            yield from self._places(value, {})
        for number, name in enumerate(attributes, 1):
            if isinstance(value, Tensor):
                return
            found, is_own = _attribute(value, name)
            if isinstance(found, FunctionType) and not is_own:  # a method, or what a property calls
                if not _is_library(found):
                    yield from self._places(found, dict.fromkeys(_own_name(found), place))
                return
            label = f"{label}.{name}"
            place = f"{place}.__dict__[{name!r}]" if is_own else f"{place}.{name}"
            value = found
            if found is _GONE or _is_library(found):
                return
            if not isinstance(value, ModuleType | type):
                yield label, place, attributes[number : number + 1] not in _ADDING
                yield from self._places(value, {})


def _own_name(function: FunctionType) -> tuple[str, ...]:
    """The name of its first argument, in a tuple; an empty one where it has none."""
    whole: Any = inspect.unwrap(function)
    return whole.__code__.co_varnames[:1]  # type: ignore[no-any-return]


def _is_library(value: Any) -> bool:
    """Whether it is a module, a class or a function of minigrad's or of a library."""
    if isinstance(value, ModuleType):
        name: str | None = value.__name__
    elif isinstance(value, type | FunctionType):
        name = value.__module__
    else:
        return False
    first = (name or "").partition(".")[0]
    if first not in sys.stdlib_module_names:
        return first in _LIBRARIES
    file = getattr(sys.modules.get(first), "__file__", None)  # the user's may have such a name
    return file is None or file.startswith(_STANDARD)


def _attribute(value: Any, name: str) -> tuple[Any, bool]:
    """What an object has by a name, of itself or of its class, and whether of itself.

    A property is the function that it calls. _GONE for what is not there, or computed otherwise.
    """
    own = getattr(value, "__dict__", {})
    is_kind = isinstance(value, type)
    if name in own and not is_kind:
        return own[name], True
    kinds = value.__mro__ if is_kind else type(value).__mro__
    found = next((vars(k)[name] for k in kinds if not _is_library(k) and name in vars(k)), _GONE)
    if inspect.ismemberdescriptor(found):  # of __slots__
        return getattr(value, name, _GONE), False
    if isinstance(found, property):
        found = found.fget
    is_method = isinstance(found, FunctionType) and not is_kind
    return (found if is_method or not hasattr(found, "__get__") else _GONE), False


def _chains(code: CodeType, cells: set[str], first: set[str]) -> Iterator[tuple[str, ...]]:
    """The names that code reads: of a cell, a global, or `self`, and attributes right behind."""
    chain: tuple[str, ...] = ()
    local: dict[str, tuple[str, ...]] = {}  # what variables are other words for
    for step in dis.get_instructions(code):
        name = step.argval
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, name)
            continue
        if chain:
            yield chain
        if step.opname.startswith("STORE_FAST"):
            local[name[0] if isinstance(name, tuple) else name] = chain
        name = name[-1] if isinstance(name, tuple) and name else name
        if step.opname.startswith("LOAD_FAST") and local.get(name):
            chain = local[name]
            continue
        known = (
            step.opname == "LOAD_GLOBAL"
            or name in first and step.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
            or name in cells and step.opname == "LOAD_DEREF"
        )
        chain = (name,) if known else ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _chains(constant, cells, first & set(constant.co_freevars))


def _contents(value: Any) -> Any:
    """What is in a short container and those in it, or the bytes of a small array; else None."""
    if isinstance(value, _CONTAINERS):
        found = _flat(value, [])
        frozen = isinstance(value, tuple) and not any(isinstance(i, _CONTAINERS) for i in value)
        return None if frozen or len(found) > _LONGEST else found
    if hasattr(value, "tobytes") and getattr(value, "nbytes", _LARGEST + 1) <= _LARGEST:
        return value.tobytes()
    return None


def _flat(value: Any, found: list[Any]) -> list[Any]:
    """The items of a container, behind one that is one itself what is in it, till there are many"""
    for item in (*value, *value.values()) if isinstance(value, dict) else value:
        found.append(item)
        if len(found) > _LONGEST:
            break
        if isinstance(item, _CONTAINERS):
            found.append(len(item))
            _flat(item, found)
    return found


def _ids(value: Any) -> list[int]:
    return [*map(id, _flat(value, []))]


def _alike(one: Any, other: Any) -> bool:
    """Whether contents are the same."""
    if isinstance(one, list) and isinstance(other, list):
        pairs = list(zip(one, other, strict=False))
        return len(one) == len(other) and all(a is b or _equal(a, b) for a, b in pairs)
    return type(one) is type(other) and bool(one == other)


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, _CONTAINERS):
        return len(some := _flat(one, [])) <= _LONGEST and _alike(some, _flat(other, []))
    return isinstance(one, _PLAIN) and repr(one) == repr(other)  # 0.0 and −0.0 are two values


def _show(value: Any, is_new: bool = False) -> str:
    if value is _GONE:
        return "gone"
    if isinstance(value, Same):
        whole = value.value() if isinstance(value.value, weakref.ref) else value.value
        return f"{'another' if is_new else 'one'} {type(whole).__name__}"
    if isinstance(value, Tensor):
        return "another Tensor" if is_new else "one Tensor"
    return repr(value)[:60]
