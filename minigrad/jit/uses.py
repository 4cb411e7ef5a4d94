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
_ADDING = ("append", "extend", "add", "update", "insert")
_TRUTH = ("__bool__", "__len__")
_IMPLIED = {  # instruction → the methods that it may call on objects of Python classes
    "CALL": ("__call__",), "CALL_KW": ("__call__",), "CALL_FUNCTION_EX": ("__call__",),
    "GET_ITER": ("__iter__",), "BINARY_SUBSCR": ("__getitem__",), "BEFORE_WITH": ("__enter__",),
    "CONTAINS_OP": ("__contains__",), "UNARY_NEGATIVE": ("__neg__",), "UNARY_NOT": _TRUTH,
    "COMPARE_OP": ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    "UNPACK_SEQUENCE": ("__iter__",),
}  # fmt: skip
_BUILTINS = {  # function of Python → the methods that it calls
    "len": ("__len__",), "bool": _TRUTH, "float": ("__float__",), "int": ("__int__",),
    **dict.fromkeys(
        ("all", "any", "dict", "enumerate", "filter", "iter", "list", "map", "max", "min", "set",
         "sorted", "sum", "tuple", "zip"), ("__iter__",)
    ),
}  # fmt: skip
_BY_TEXT = {"getattr", "hasattr", "vars", "__dict__", "attrgetter"}  # these take names as strings
_OPERATORS = {
    "+": "add__", "-": "sub__", "*": "mul__", "/": "truediv__", "//": "floordiv__", "%": "mod__",
    "**": "pow__", "@": "matmul__", "&": "and__", "|": "or__", "^": "xor__",
}  # fmt: skip


class Use(NamedTuple):
    """A name that code reads.

    of: the name of the object whose attribute it is, "" if unknown, None for a variable. called: as
    a method. adds: its value is only appended to. by_text: as in getattr(of, "name", default), so
    there may be none.
    """

    of: str | None
    name: str
    called: bool = False
    adds: bool = False
    by_text: bool = False


def uses_of(code: CodeType, known: Collection[str]) -> Iterator[Use]:
    """The names that code, and functions in it, read. known: its cells, and arguments to check."""
    of = ""
    for step, after in pairwise(dis.get_instructions(code)):
        kind, name = step.opname, step.argval
        name = name[-1] if isinstance(name, tuple) and name else name
        adds = after.opname in _ATTRIBUTE and after.argval in _ADDING
        if kind in _ATTRIBUTE:
            # since Python 3.12 a bit tells whether it is called
            bit = sys.version_info >= (3, 12) and bool((step.arg or 0) & 1)
            called = kind == "LOAD_METHOD" or bit
            yield Use(of, name, called, adds)
        elif kind == "LOAD_GLOBAL" or (kind.startswith(_VARIABLE) and name in known):
            yield Use(None, name, adds=adds)
            for method in _BUILTINS.get(name, ()):
                yield Use("", method, called=True)
        elif kind in ("IMPORT_NAME", "IMPORT_FROM"):
            yield Use(None if kind == "IMPORT_NAME" else "", name)
        else:
            for method in _TRUTH if "_IF_" in kind else _IMPLIED.get(kind, ()):
                yield Use("", method, called=True)
            word = _OPERATORS.get(step.argrepr.rstrip("=")) if kind == "BINARY_OP" else None
            for way in ("__", "__r", "__i") if word else ():
                yield Use("", f"{way}{word}", called=True)
            name = ""
        of = name
    if "super" in code.co_names:  # it takes the first argument implicitly
        yield Use(None, code.co_varnames[0])
    by_text = not _BY_TEXT.isdisjoint(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from uses_of(constant, {*known}.intersection(constant.co_freevars))
        elif isinstance(constant, str) and constant.isidentifier() and by_text:
            yield Use("", constant, by_text=True)
