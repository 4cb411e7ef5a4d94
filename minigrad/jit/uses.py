"""The names that a function's bytecode reads: variables, attributes, special methods."""

from __future__ import annotations

import dis
import sys
from collections.abc import Collection, Iterator
from itertools import pairwise
from types import CodeType
from typing import NamedTuple

_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_VARIABLE = ("LOAD_FAST", "LOAD_DEREF")
_STORED = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")
ADDING = ("append", "extend", "add", "update", "insert")
_TEXT = ("__format__", "__repr__", "__str__")
_FORMATTING = {"FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE"}
_FORMATTING |= {"str", "repr", "format", "join", "print", "%"}
_BY_TEXT = {"getattr", "hasattr", "setattr", "vars", "__dict__", "attrgetter", "__getattribute__"}
# Special methods that code does not call on the objects that it works with.
MAKING = ("__init__", "__new__", "__post_init__")  # called on classes
_ELSEWHERE = {*_TEXT, "__del__", "__dir__", "__sizeof__", "__init_subclass__", "__reduce__",
              "__reduce_ex__", "__getstate__", "__setstate__"}  # fmt: skip


def is_special(name: str) -> bool:
    """Whether it is a special method that any code may call: by an operator, a loop, a call …"""
    return name.startswith("__") and name.endswith("__") and name not in _ELSEWHERE


class Use(NamedTuple):
    """A name that code reads.

    of: the name of the object whose attribute it is, "" if unknown, None for a variable. called: as
    a method. adds: its value is only appended to. by_text: as in getattr(of, "name", default), so
    there may be none. stored: it is set, not read.
    """

    of: str | None
    name: str
    called: bool = False
    adds: bool = False
    by_text: bool = False
    stored: bool = False


def uses_of(code: CodeType, known: Collection[str]) -> Iterator[Use]:
    """The names that code, and functions in it, read. known: its cells, and arguments to check."""
    of = ""
    for step, after in pairwise(dis.get_instructions(code)):
        kind, name = step.opname, step.argval
        name = name[-1] if isinstance(name, tuple) and name else name
        if of == "vars" and kind.startswith(("LOAD_GLOBAL", *_VARIABLE)):
            yield Use(name, "__dict__")
        adds = after.opname in _ATTRIBUTE and after.argval in ADDING
        if kind in _ATTRIBUTE:
            # since Python 3.12 a bit tells whether it is called
            bit = sys.version_info >= (3, 12) and bool((step.arg or 0) & 1)
            called = kind == "LOAD_METHOD" or bit
            yield Use(of, name, called, adds)
        elif kind == "LOAD_GLOBAL" or (kind.startswith(_VARIABLE) and name in known):
            yield Use(None, name, adds=adds)
        elif kind in ("IMPORT_NAME", "IMPORT_FROM"):
            yield Use(None if kind == "IMPORT_NAME" else "", name)
        else:
            if kind == "STORE_ATTR" and (of or code.co_name not in MAKING):
                yield Use(of, name, stored=True)
            elif kind == "STORE_GLOBAL" or (kind == "STORE_DEREF" and name in known):
                yield Use(None, name, stored=True)
            elif after.opname == "MATCH_CLASS":
                yield from (Use("", attribute) for attribute in step.argval)
            name = ""
        if not _FORMATTING.isdisjoint((kind, name, step.argrepr.rstrip("="))):
            yield from (Use("", method, called=True) for method in _TEXT)
        of = name
    if "super" in code.co_names:  # it takes the first argument implicitly
        yield Use(None, code.co_varnames[0])
    by_text = not _BY_TEXT.isdisjoint(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from uses_of(constant, {*known}.intersection(constant.co_freevars))
        elif isinstance(constant, str) and constant.isidentifier() and by_text:
            yield Use("", constant, by_text=True)
