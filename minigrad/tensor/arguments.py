"""Arguments of methods and functions: each must have the type that its annotation names.

A wrong type raises at the user's call, not later where something is computed with it. Arguments may
also have the names that other libraries use.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import FunctionType, NoneType
from typing import Any, NamedTuple

from minigrad.errors import ShapeError, misfit
from minigrad.graph.symbolic import Affine
from minigrad.hints import of_argument
from minigrad.tensor.broadcasting import as_python
from minigrad.tensor.core import Core

# Other names of arguments: here those that are given one by one, with their methods; the rest is
# in ALSO.
SEVERAL = {"dims": ("permute", "flip"), "order": ("permute",), "repeats": ("repeat",),
           "shape": ("reshape", "view", "expand", "broadcast_to"), "size": ("expand",)}  # fmt: skip
ALSO = (("keepdims", "keepdim"), ("dim", "axis"), ("axis", "dim"), ("dimension", "dim"),
        ("split_size", "sizes"))  # fmt: skip


class Kind(NamedTuple):
    """How to check the values of an annotation."""

    plain: frozenset[type]  # types that are accepted without a check
    fits: Callable[[Any], bool]  # whether a value of another type fits
    words: str  # "expected …"


def _is_int(value: Any) -> bool:
    return isinstance(value, (Integral, Affine)) and not isinstance(value, bool)


def _are_ints(value: Any) -> bool:
    return _is_int(value) or isinstance(value, (tuple, list, range)) and all(map(_is_int, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and {*map(type, [*value, *value.values()])} <= {str}


_TENSOR = Kind(frozenset(), lambda value: isinstance(value, Core), "a tensor; write Tensor(…)")
_NUMBER = Kind(frozenset({float, int, bool}),
               lambda value: isinstance(value, (Real, Affine, Core)), "a number")  # fmt: skip
_INT = Kind(frozenset({int}), _is_int, "an int")
_AXES = Kind(frozenset({int}), _are_ints, "an int or several")
_FLAG = Kind(frozenset({bool}), lambda value: False, "True or False")
_EPS = Kind(frozenset(), lambda eps: isinstance(eps, Real) and float(eps) >= 0, "a number ≥ 0")
_SIZE = Kind(frozenset(), lambda value: _is_int(value) and value >= 0, "an int ≥ 0")
KINDS = {
    "int": _INT, "Axis": _INT, "Integer": _INT, "bool": _FLAG,
    "float": _NUMBER, "Scalar": _NUMBER, "float | Tensor": _NUMBER,
    "Core": _TENSOR, "Tensor": _TENSOR, "Self": _TENSOR,
    "str | os.PathLike[str]": Kind(
        frozenset({str}), lambda value: isinstance(value, (str, os.PathLike)), "a path"
    ),
    "Mapping[str, str]": Kind(frozenset(), _are_texts, "a dict of strings"),
    "str": Kind(frozenset({str}), lambda value: isinstance(value, str), "a string"),
    "Axes": _AXES, "int | Sequence[int]": _AXES, "int | Sequence[Integer]": _AXES,
    "Sequence[int]": Kind(
        frozenset(), lambda value: _are_ints(value) and not _is_int(value),
        "several ints, as (2, 3)",
    ),
}  # fmt: skip


@functools.cache
def kind_of(annotation: Any) -> Kind | None:
    """The kind of an annotation, or None if it is not checked."""
    plain = str(annotation).removesuffix(" | None")
    kind = KINDS.get(plain)
    if kind is None or (plain == annotation and annotation not in ("Axis", "Axes")):
        return kind
    return kind._replace(plain=kind.plain | {NoneType})


def fitted(title: str, name: str, value: Any, kind: Kind) -> Any:
    """The value, with numbers of other types as Python's; TypeError if it does not fit its kind."""
    if kind.fits(value):
        several = isinstance(value, (tuple, list, range))
        return tuple(map(as_python, value)) if several else as_python(value)
    home, what = type(value).__module__, type(value).__name__
    shown = repr(value) if home == "builtins" else ""
    wrong: type[Exception] = TypeError
    if isinstance(value, Real) and not isinstance(value, bool):
        wrong = ShapeError if kind is _SIZE and _is_int(value) else wrong
        wrong = ValueError if kind is _EPS else wrong
    if kind.words is _TENSOR.words or not 0 < len(shown) <= 60:
        what = what if home == "builtins" else f"{home}.{what}"
        title = title if name == "self" else f"{title}({name}=…)"
        is_layer = kind.words is _TENSOR.words and hasattr(value, "weight")
        raise misfit(title, "a tensor; write layer.weight" if is_layer else kind.words, what,
                     error=wrong)  # fmt: skip
    raise misfit(f"{title}({name}={shown})", kind.words, error=wrong)


def fit(title: str, kinds: Mapping[str, Kind | None], given: dict[str, Any]) -> None:
    """Replace each argument in `given` by its `fitted` value."""
    for name, value in given.items():
        kind = kinds.get(name)
        if kind is not None and type(value) not in kind.plain:
            given[name] = fitted(title, name, value, kind)


def check_fields(made: Any) -> None:
    """TypeError for a dataclass field whose value does not fit its annotation."""
    kinds = {field.name: kind_of(str(field.type)) for field in dataclasses.fields(made)}
    fit(type(made).__name__, kinds, dict(vars(made)))


def check_names(title: str, function: Callable[..., Any], given: Iterable[str]) -> None:
    """TypeError for a name that is not a parameter of a function; says what to type instead."""
    known = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    for name in sorted(given, key=lambda name: name != "out"):  # np.mean(x) passes dtype=, too
        if name not in known:
            own = ", ".join(one for one in known if one not in ("self", "cls"))
            how = of_argument(name) or f"expected {own or 'none by name'}"
            said = f"{title}() got an unexpected keyword argument {name!r}: {how}"
            raise TypeError(said) from None


def _parameters(function: Any) -> tuple[Sequence[str], Sequence[str], Mapping[str, Any]]:
    """Names of positional parameters, of keyword-only ones, and the annotations by name."""
    code = function.__code__
    names, count = code.co_varnames, code.co_argcount
    return names[:count], names[count : count + code.co_kwonlyargcount], function.__annotations__


def checked(
    function: Callable[..., Any], words: Mapping[str, str] | None = None, *, first: bool = False,
    owner: type | None = None, sizes: bool = False,
) -> Callable[..., Any]:  # fmt: skip
    """The function, but raising TypeError for an argument that does not fit its annotation.

    words: other names of its arguments (see `_words_of`). first: the first argument must be a
    tensor, whatever its annotation. owner: the class of a method that may be called with another
    first argument, as Tensor.isin([1], x). sizes: ints must be ≥ 0, and so must numbers called eps.
    """
    words = words or {}
    named = function.__qualname__.rpartition(".")[2]
    makes = named in ("__init__", "__call__")  # of an object: messages name its class
    positional, others, said = _parameters(function)
    names = (*positional, *others)
    # a device may be a tuple of several: the code that looks them up reports errors
    kinds = {name: None if name == "device" else kind_of(said.get(name)) for name in names}
    if sizes:
        kinds |= {name: _SIZE for name in names if said.get(name) == "int"}
        kinds |= {name: _EPS for name in names if name.endswith("eps")}
    kinds |= {word: kinds.get(meant) for word, meant in words.items() if word not in kinds}
    places = [(name, kinds[name]) for name in positional]
    if first:
        places[:1] = [(names[0] if names else "input", _TENSOR)]
    wanted = words or any(kind for _, kind in [*places, *kinds.items()])
    if owner is not None:
        places[:1] = [("self", _TENSOR._replace(plain=frozenset({owner})))]

    known: set[tuple[type, ...]] = set()  # of arguments that fit whatever their values

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        types = tuple(map(type, args))
        if types in known and not kwargs:
            return function(*args)
        title = type(args[0]).__name__ if makes else named
        by_type = True
        for place, (value, (name, kind)) in enumerate(zip(args, places, strict=False)):
            if kind is not None and type(value) not in kind.plain:
                by_type = by_type and kind.fits is _TENSOR.fits
                value = fitted(title, name, value, kind)
                args = (*args[:place], value, *args[place + 1 :])
        if by_type:
            known.add(types)
        fit(title, kinds, kwargs)
        for word in kwargs.keys() & words.keys():
            value, meant = kwargs.pop(word), words[word]
            if kwargs.get(meant) is not None:
                raise misfit(function.__qualname__, "only one of them, as they mean the same",
                             error=TypeError, **{meant: kwargs[meant], word: value})  # fmt: skip
            if meant == "*":
                args = (*args, value)
            elif value is not None:
                kwargs[meant] = value
        try:
            return function(*args, **kwargs)
        except TypeError as error:  # Python's own message may say less
            check_names(title if makes else function.__qualname__, function, kwargs)
            own = f"{function.__qualname__}() missing"  # of a base class that is not public
            if named != "__init__" or not str(error).startswith(own):
                raise
            raise TypeError(str(error).replace(own, f"{title}() missing", 1)) from None

    return call if wanted else function


def check_functions(names: dict[str, Any], *homes: str, first: bool = False) -> None:
    """Replace a module's public functions and __init__s (its own, or of `homes`) by checked ones.
    """
    for name, value in list(names.items()):
        if name.startswith("_") or value.__class__ not in (FunctionType, type):
            continue
        if value.__module__ not in (names["__name__"], *homes):
            continue
        made = vars(value).get("__init__")
        if isinstance(value, FunctionType):
            names[name] = call = checked(value, first=first)
            # where pickle looks for it
            call.__module__, call.__qualname__ = names["__name__"], name
        elif made is not None and not hasattr(made, "__wrapped__"):
            type.__setattr__(value, "__init__", checked(made))


def _words_of(name: str, function: Any) -> dict[str, str]:
    """Other names of a method's arguments → their own names; "*" for arguments given one by one."""
    positional, others, _ = _parameters(function)
    found = {word: "*" for word, methods in SEVERAL.items() if name in methods}
    for word, meant in ALSO:
        if meant in positional or (meant in others and word not in (*positional, *others)):
            found[word] = meant
    return found


def check_methods(kind: type) -> None:
    """Replace all public methods of a class by `checked` ones; see also `_words_of`."""
    for family in kind.__mro__[-2:0:-1]:  # the first family in the MRO that has a method wins
        for name, method in list(vars(family).items()):
            function = getattr(method, "__func__", method)
            if hasattr(function, "__code__") and not name.startswith("_"):
                several = function.__code__.co_flags & inspect.CO_VARARGS  # cat takes a list, too
                own = kind if function is method and not several else None
                checking = checked(function, _words_of(name, function), owner=own)
                if checking is not function:
                    form = type(method) if function is not method else (lambda f: f)
                    checking.__qualname__ = f"{kind.__name__}.{name}"  # where pickle looks for it
                    setattr(kind, name, form(checking))
