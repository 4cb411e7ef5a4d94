"""Arguments and results of a step: tensors in lists, tuples and dicts, apart from their structure.

A structure is hashable and comparable: it holds the Python values, and `TENSOR` where tensors were.
Bound variables stand in it without their values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minigrad.dtype import DType
from minigrad.graph.node import Form, form_of
from minigrad.graph.symbolic import Affine, Integer
from minigrad.graph.variable import rebind, unbind
from minigrad.tensor.core import Core


class _Place:
    """The place of a tensor in a structure."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Tensor"


TENSOR = _Place()


class Same:
    """An object compared by identity; it is kept alive, so that its id is not reused."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"a {type(self.value).__name__}"


def flatten(value: Any, values: dict[str, int] | None = None) -> tuple[list[Any], Any]:
    """The tensors of a value, and its structure; values of bound variables go to `values`."""
    tensors: list[Any] = []
    return tensors, _structure(value, tensors, {} if values is None else values)


def _structure(value: Any, tensors: list[Any], values: dict[str, int]) -> Any:
    if isinstance(value, Core):
        tensors.append(value)
        return TENSOR
    if isinstance(value, list | tuple):
        return (type(value), tuple(_structure(item, tensors, values) for item in value))
    if isinstance(value, dict):
        return (dict, tuple((k, _structure(item, tensors, values)) for k, item in value.items()))
    if isinstance(value, Affine):
        return unbind(value, values)
    if isinstance(value, float):  # 0.0 and −0.0 differ, and NaN equals itself
        return (type(value), value.hex())
    if isinstance(value, int | str | bytes | bool | None):
        return (type(value), value)
    return (object, Same(value))


def objects(structure: Any) -> list[Any]:
    """Objects of a structure that are neither tensors, containers nor plain values."""
    if not isinstance(structure, tuple):
        return []
    kind, inner = structure
    if kind is object:
        return [inner.value]
    if kind is dict:
        return [found for _, item in inner for found in objects(item)]
    return [found for item in inner for found in objects(item)] if isinstance(inner, tuple) else []


def adds_to(structure: Any, other: Any) -> bool:
    """Whether the second structure is the first one changed, other than by removing items."""
    alike = isinstance(structure, tuple) and isinstance(other, tuple) and structure[0] == other[0]
    if not alike or not isinstance(other[1], tuple):
        return bool(structure != other)
    (kind, before), (_, now) = structure, other
    if kind is dict:
        known = dict(before)
        return any(key not in known or adds_to(known[key], item) for key, item in now)
    return len(now) > len(before) or (len(now) == len(before) and any(map(adds_to, before, now)))


def rebuild(value: Any, tensors: Callable[[], Any], values: Mapping[str, int] | None = None) -> Any:
    """A value like `value`, with tensors taken in order, and variables bound to `values`."""
    if value is TENSOR or isinstance(value, Core):
        return tensors()
    if isinstance(value, tuple):
        items = [rebuild(item, tensors, values) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list | dict):
        found = copy.copy(value)  # also of a user's class
        for place, item in value.items() if isinstance(value, dict) else enumerate(value):
            found[place] = rebuild(item, tensors, values)
        return found
    if isinstance(value, Affine) and values is not None:
        return rebind(unbind(value, {}), values)
    return value


def template(value: Any) -> Any:
    """A value like `value` with `TENSOR` instead of its tensors, for `rebuild`."""
    return rebuild(value, lambda: TENSOR)


def show(structure: Any) -> str:
    """A structure as text for error messages."""
    if isinstance(structure, tuple) and len(structure) == 2:
        kind, inner = structure
        if kind is object:
            return repr(inner)
        if kind is dict:
            return f"{{{', '.join(f'{key}: {show(item)}' for key, item in inner)}}}"
        text = repr(float.fromhex(inner) if issubclass(kind, float) else inner)
        if isinstance(inner, tuple):
            ends = "[]" if issubclass(kind, list) else "()"
            text = f"{ends[0]}{', '.join(map(show, inner))}{ends[1]}"
        known = kind.__module__ == "builtins"
        return text if known else f"{kind.__name__}({text})"
    return repr(structure)


class Signature(NamedTuple):
    """What a replay assumes about an input or an output."""

    shape: tuple[Integer, ...]
    dtype: DType
    device: str

    @property
    def form(self) -> Form:
        """The form of a BUFFER for it."""
        return form_of(self.dtype, self.shape, self.device)

    def differs_in_extents(self, other: Signature) -> bool:
        """Whether it differs from another at most in extents."""
        alike = self.dtype is other.dtype and self.device == other.device
        return alike and len(self.shape) == len(other.shape)

    def __str__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        return f"({shape}) {self.dtype.name} on {self.device}"


def signature(tensor: Core, values: dict[str, int]) -> Signature:
    """The signature of a tensor; values of bound variables go to `values`."""
    shape = tuple(unbind(extent, values) for extent in tensor.shape)
    return Signature(shape, tensor.dtype, tensor.raw.device)
