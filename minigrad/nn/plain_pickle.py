"""Pickles of plain values, read without running anything that they ask for.

A pickle is a program for a small machine with a stack and a memo; Python's `pickletools` tells what
each of its instructions does. Python's own reader calls what a pickle names, and lets it set
attributes of whatever it could name or make. Here a name stays a `Name`, which can do nothing, a
call is a question to the reader's owner, and instructions that change something take lists, dicts
and sets only, which the same pickle has made.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minigrad.errors import MinigradError

NEWEST = 5  # protocol
LONGEST = 1024  # bytes of an integer: arithmetic with longer ones takes time
_PLAIN = (type(None), bool, int, float, str, bytes)


class PickleError(MinigradError, ValueError):
    """A pickle that is damaged, or asks for more than plain values."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names: two texts, never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class PlainReader:
    """Runs a pickle; derived classes say what its names, calls and references stand for.

    Memory and time are in proportion to the pickle's length. Raises PickleError.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def find(self, name: Name) -> Any:
        """What stands for a name: the name itself, or a plain value. To be overridden."""
        raise PickleError(f"it asks for {name}")

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        """The value of a call. To be overridden."""
        raise PickleError(f"it calls {name}")

    def refer(self, reference: Any) -> Any:
        """What a reference to something outside of the pickle stands for. To be overridden."""
        raise PickleError("it refers to something outside")

    def load(self) -> Any:
        """The value that the pickle describes."""
        while (code := self.take(1)[0]) != _STOP:
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"its instruction {code:#04x} is not one of plain values")
            step(self)
        return _value(self.pop())

    # ---- bytes ----

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.place + count
        if end > len(self.data):
            raise PickleError(f"it ends after {len(self.data)} bytes, expected {end} at least")
        start, self.place = self.place, end
        return self.data[start:end]

    def number(self, size: int) -> int:
        """An unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        """Text up to the next line end, without it."""
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise PickleError("it ends in the middle of a name")
        return self.take(end + 1 - self.place)[:-1].decode()

    def text(self, size: int) -> None:
        """A string after its length, a number of so many bytes."""
        self.push(self.take(self.number(size)).decode("utf-8", "surrogatepass"))

    def integer(self, size: int) -> None:
        """A signed integer after its length."""
        length = self.number(size)
        if length > LONGEST:
            raise PickleError(f"an integer of {length} bytes: expected at most {LONGEST}")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    # ---- stack and memo ----

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self, kind: type[Any] | tuple[type[Any], ...] | None = None) -> Any:
        """Take the last value, which must be of a kind, from the stack."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("it takes more values than it has made")
        value = self.stack.pop()
        if kind is not None and not isinstance(value, kind):
            raise PickleError(f"a {type(value).__name__} stands where it cannot")
        return value

    def top(self, *kinds: type[Any]) -> Any:
        """The last value, which stays: made by the pickle, of exactly one of the kinds."""
        value = self.pop()
        if type(value) not in kinds:
            raise PickleError(f"it changes a {type(value).__name__}")
        self.push(value)
        return value

    def marked(self) -> list[Any]:
        """Take all values above the last mark from the stack, and the mark."""
        if not self.marks:
            raise PickleError("it lacks a mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def several(self, count: int) -> tuple[Any, ...]:
        """Take the last few values from the stack."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def remember(self, number: int) -> None:
        """Put the last value into the memo; who writes pickles counts from 0 on."""
        if number > len(self.data):
            raise PickleError(f"a memo number of {number} in {len(self.data)} bytes")
        value = self.pop()
        self.memo[number] = value
        self.push(value)

    def recall(self, number: int) -> None:
        """Push a value of the memo."""
        if number not in self.memo:
            raise PickleError(f"its memo has no number {number}")
        self.push(self.memo[number])

    # ---- instructions ----

    def mark(self) -> None:
        """Mark the height of the stack."""
        self.marks.append(len(self.stack))

    def extend(self, values: Iterable[Any]) -> None:
        """Append values to the list below them."""
        self.top(list).extend(map(_value, values))

    def update(self, values: list[Any]) -> None:
        """Put keys and values, in turn, into the dict below them."""
        if len(values) % 2:
            raise PickleError("a key without a value")
        self.top(dict, OrderedDict).update(pairs(zip(values[::2], values[1::2], strict=True)))

    def add(self) -> None:
        """Put values into the set below them."""
        values = self.marked()
        self.top(set).update(map(_key, values))

    def build(self) -> None:
        """Attributes, which only the state dicts of PyTorch's modules have; nobody needs them."""
        self.pop()
        self.top(OrderedDict)

    def reduce(self) -> None:
        """A call: of a name, with a tuple."""
        arguments, name = self.pop(tuple), self.pop(Name)
        self.push(self.call(name, arguments))


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


def _line_of_digits(reader: PlainReader) -> None:
    text = reader.line().removesuffix("L")
    if len(text) > LONGEST:
        raise PickleError(f"an integer of {len(text)} digits: expected at most {LONGEST}")
    reader.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))


def _pop(reader: PlainReader) -> None:
    if reader.marks and reader.marks[-1] == len(reader.stack):
        reader.marks.pop()
    else:
        reader.pop()


def _protocol(reader: PlainReader) -> None:
    if (found := reader.number(1)) > NEWEST:
        raise PickleError(f"its protocol is {found}: expected at most {NEWEST}")


def _global(reader: PlainReader) -> None:
    module = reader.line()
    reader.push(reader.find(Name(module, reader.line())))


def _stack_global(reader: PlainReader) -> None:
    name, module = reader.pop(str), reader.pop(str)
    reader.push(reader.find(Name(module, name)))


def _pair(reader: PlainReader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.update([key, value])


_STOP = ord(".")
_STEPS: dict[int, Callable[[PlainReader], Any]] = {
    code[0]: step
    for code, step in {
        b"\x80": _protocol,
        b"\x95": lambda r: r.take(8),  # how many bytes follow, which nobody needs
        b"(": PlainReader.mark,
        b"0": _pop,
        b"1": PlainReader.marked,
        b"2": lambda r: r.stack.extend([r.pop()] * 2),
        b"N": lambda r: r.push(None),
        b"\x88": lambda r: r.push(True),
        b"\x89": lambda r: r.push(False),
        b"I": _line_of_digits,
        b"L": _line_of_digits,
        b"J": lambda r: r.push(int.from_bytes(r.take(4), "little", signed=True)),
        b"K": lambda r: r.push(r.number(1)),
        b"M": lambda r: r.push(r.number(2)),
        b"\x8a": lambda r: r.integer(1),
        b"\x8b": lambda r: r.integer(4),
        b"G": lambda r: r.push(struct.unpack(">d", r.take(8))[0]),
        b"U": lambda r: r.text(1),
        b"T": lambda r: r.text(4),
        b"X": lambda r: r.text(4),
        b"\x8c": lambda r: r.text(1),
        b"\x8d": lambda r: r.text(8),
        b"C": lambda r: r.push(r.take(r.number(1))),
        b"B": lambda r: r.push(r.take(r.number(4))),
        b"\x8e": lambda r: r.push(r.take(r.number(8))),
        b"\x96": lambda r: r.push(bytearray(r.take(r.number(8)))),
        b"]": lambda r: r.push([]),
        b"}": lambda r: r.push({}),
        b")": lambda r: r.push(()),
        b"\x8f": lambda r: r.push(set()),
        b"t": lambda r: r.push(tuple(r.marked())),
        b"\x85": lambda r: r.push(r.several(1)),
        b"\x86": lambda r: r.push(r.several(2)),
        b"\x87": lambda r: r.push(r.several(3)),
        b"\x91": lambda r: r.push(frozenset(map(_key, r.marked()))),
        b"a": lambda r: r.extend([r.pop()]),
        b"e": lambda r: r.extend(r.marked()),
        b"s": _pair,
        b"u": lambda r: r.update(r.marked()),
        b"\x90": PlainReader.add,
        b"q": lambda r: r.remember(r.number(1)),
        b"r": lambda r: r.remember(r.number(4)),
        b"\x94": lambda r: r.remember(len(r.memo)),
        b"h": lambda r: r.recall(r.number(1)),
        b"j": lambda r: r.recall(r.number(4)),
        b"c": _global,
        b"\x93": _stack_global,
        b"R": PlainReader.reduce,
        b"\x81": PlainReader.reduce,
        b"b": PlainReader.build,
        b"Q": lambda r: r.push(r.refer(r.pop())),
    }.items()
}  # fmt: skip
