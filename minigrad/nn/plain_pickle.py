"""Pickles of plain values, read without running anything that they ask for.

A pickle is a program for a small machine with a stack and a memo; Python's `pickletools` tells what
each of its instructions does. Python's own reader calls what a pickle names, and lets it set
attributes of whatever it could name or make. Here it knows the harmless instructions only. A name
stays a `Name`, which can do nothing, a call is a question to the reader's owner, and instructions
that change something take lists, dicts and sets only, which the same pickle has made.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minigrad.errors import MinigradError

LONGEST = 1024  # bytes of an integer: arithmetic with longer ones takes time
_PLAIN = (type(None), bool, int, float, str, bytes)
_HARMLESS = """PROTO FRAME MARK STOP POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT LONG BININT BININT1
    BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST EMPTY_DICT EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1
    TUPLE2 TUPLE3 BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"""
# What Python's reader raises on its way through a damaged pickle.
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError,
           struct.error, pickle.UnpicklingError)  # fmt: skip


class PickleError(MinigradError, ValueError):
    """A pickle that is damaged, or asks for more than plain values."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names: two texts, never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class PlainReader(pickle._Unpickler):
    """Runs a pickle; derived classes say what its names, calls and references stand for.

    Python's reader that is written in Python, as only that has a table of its instructions. Memory
    and time are in proportion to the pickle's length. Raises PickleError.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogatepass")
        self.size = len(data)

    def find(self, name: Name) -> Any:
        """What stands for a name: the name itself, or a plain value. To be overridden."""
        raise PickleError(f"it asks for {name}")

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        """The value of a call. To be overridden."""
        raise PickleError(f"it calls {name}")

    def refer(self, reference: Any) -> Any:
        """What a reference to something outside of the pickle stands for. To be overridden."""
        raise PickleError("it refers to something outside")

    def find_class(self, module: str, name: str) -> Any:
        """Names are not looked up."""
        return self.find(Name(module, name))

    def persistent_load(self, pid: Any) -> Any:
        """References, as they are called here."""
        return self.refer(pid)

    def load(self) -> Any:
        """The value that the pickle describes."""
        try:
            return _value(super().load())
        except MinigradError:
            raise
        except _DAMAGE as error:
            raise PickleError(f"it is damaged: {type(error).__name__} {error}"[:200]) from None

    # ---- instructions, under Python's names for them ----

    def _top(self: Any, *kinds: type[Any]) -> Any:
        """The last value, which stays: made by the pickle, of exactly one of the kinds."""
        value = self.stack[-1]
        if type(value) not in kinds:
            raise PickleError(f"it changes a {type(value).__name__}")
        return value

    def _number(self: Any, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def _append(self: Any) -> None:
        value = _value(self.stack.pop())
        self._top(list).append(value)

    def _appends(self: Any) -> None:
        values = [*map(_value, self.pop_mark())]
        self._top(list).extend(values)

    def _setitem(self: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict, OrderedDict).update(pairs([(key, value)]))

    def _setitems(self: Any) -> None:
        items = self.pop_mark()
        self._top(dict, OrderedDict).update(pairs(zip(items[::2], items[1::2], strict=True)))

    def _additems(self: Any) -> None:
        values = [*map(_key, self.pop_mark())]
        self._top(set).update(values)

    def _frozenset(self: Any) -> None:
        values = frozenset(map(_key, self.pop_mark()))  # this changes what `append` is
        self.append(values)

    def _build(self: Any) -> None:
        """Attributes, which only the state dicts of PyTorch's modules have; nobody needs them."""
        self.stack.pop()
        self._top(OrderedDict)

    def _reduce(self: Any) -> None:
        """A call: of a name, with a tuple."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(name) is not Name:
            raise PickleError(f"it calls a {type(name).__name__}")
        self.append(self.call(name, arguments))

    def _long4(self: Any) -> None:
        length = self._number(4)
        if length > LONGEST:
            raise PickleError(f"an integer of {length} bytes: expected at most {LONGEST}")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def _bytearray8(self: Any) -> None:
        self.append(bytearray(self.read(self._number(8))))

    def _long_binput(self: Any) -> None:
        """Remember the last value under a number; who writes pickles counts from 0 on."""
        number = self._number(4)
        if number > self.size:
            raise PickleError(f"a memo number of {number} in {self.size} bytes")
        self.memo[number] = self.stack[-1]

    _newobj = _reduce


_OWN = """append appends setitem setitems additems frozenset build reduce newobj long4 bytearray8
    long_binput"""
PlainReader.dispatch = {
    code: pickle._Unpickler.dispatch[code]
    for code in (getattr(pickle, name)[0] for name in _HARMLESS.split())
} | {getattr(pickle, name.upper())[0]: vars(PlainReader)[f"_{name}"] for name in _OWN.split()}


def _value(value: Any) -> Any:
    if type(value) is Name:
        raise PickleError(f"it holds {value} itself")
    return value


def _key(value: Any) -> Any:
    """A key, whose hash takes no time: a tuple of tuples of … would take for ever."""
    if type(value) in _PLAIN:
        return value
    if type(value) is tuple and all(type(part) in _PLAIN for part in value):
        return value
    raise PickleError(f"a {type(value).__name__} is a key; expected a text or a number")


def pairs(items: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Keys and values as they may stand in a dict."""
    return [(_key(key), _value(value)) for key, value in items]
