"""What a model holds: its tensors by dotted names, whatever it is made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from minigrad.errors import DTypeError, ShapeError
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions


class Kind(IntEnum):
    """What a tensor is to the object that holds it, in the order in which PyTorch lists them."""

    PARAMETER = 0  # trained and saved
    BUFFER = 1  # saved
    TRANSIENT = 2  # a buffer that is not saved
    PLAIN = 3  # an attribute of a Module that was registered as neither
    LOOSE = 4  # in a plain object or list, and unmarked: trained and saved


_SAVED = (Kind.PARAMETER, Kind.BUFFER, Kind.LOOSE)
_BY_MARK = {True: Kind.PARAMETER, False: Kind.BUFFER, None: Kind.LOOSE}  # by requires_grad
Member = tuple[str, Any, Kind]


class Names(NamedTuple):
    """What `load_state_dict` did not find on either side."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def members(value: Any) -> Iterator[Member]:
    """What an object holds, by name: items of a mapping, places of a list, attributes."""
    found: Any = ()
    if hasattr(type(value), "_members"):  # a Module knows the kinds of its tensors
        yield from value._members()
    elif isinstance(value, Mapping):
        found = value.items()
    elif isinstance(value, (list, tuple)):
        found = enumerate(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        found = vars(value).items()
    for key, item in found:
        marked = item.requires_grad if isinstance(item, Tensor) else None
        yield str(key), item, _BY_MARK[marked]


def walk(model: Any, prefix: str = "") -> Iterator[Member]:
    """A model and all that is in it, by dotted names, in the order of definition.

    What has several names is found under each; an object that contains itself is visited once
    along a path.
    """
    kind = _BY_MARK[model.requires_grad] if isinstance(model, Tensor) else Kind.LOOSE
    stack: list[tuple[str, Any, Kind, frozenset[int]]] = [
        (prefix.rstrip("."), model, kind, frozenset())
    ]
    while stack:
        name, value, kind, above = stack.pop()
        if isinstance(value, Tensor):
            yield name, value, kind
        elif id(value) not in above and not _is_opaque(value):
            yield name, value, kind
            path = above | {id(value)}
            inner = [
                (f"{name}.{key}" if name else key, item, kind, path)
                for key, item, kind in members(value)
            ]
            stack.extend(reversed(inner))


def _is_opaque(value: Any) -> bool:
    """Functions, modules of Python and plain values have no parameters."""
    return isinstance(value, (type(os), type(walk), str, bytes, int, float))


def get_state_dict(model: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a model by dotted names ("layers.0.weight"), in the order of definition.

    model: any object, list, tuple or mapping of them. A tensor that has several names (tied
    weights) stands under each; an object that contains itself is visited once along a path. Of an
    `nn.Module` its parameters and the buffers that are saved, as PyTorch's.
    """
    return {
        name: value
        for name, value, kind in walk(model, prefix)
        if isinstance(value, Tensor) and kind in _SAVED
    }


def get_parameters(model: Any) -> list[Tensor]:
    """The tensors of a model that may be trained: each once, without those marked False.

    Of plain objects that is every float tensor, also one that nobody marked; a warning names these
    where others are marked, as a mask is beside layers: mark it with `nn.Parameter` or `nn.buffer`.
    """
    unique = {
        id(value): (name, value, kind)
        for name, value, kind in reversed([*walk(model)])
        if isinstance(value, Tensor)
    }
    found = [*reversed(unique.values())]
    warn_of_unmarked(found, 4)
    return [
        tensor
        for _, tensor, kind in found
        if kind in _SAVED and tensor.requires_grad is not False and tensor.dtype.is_float
    ]


def warn_of_unmarked(found: list[Member], depth: int) -> None:
    """Warn, `depth` frames up, of float tensors of which nobody said whether they are trained."""
    mixed = any(kind is Kind.PARAMETER for _, _, kind in found)
    for name, tensor, kind in found:
        if not tensor.dtype.is_float or tensor.requires_grad is not None:
            continue
        if kind is Kind.LOOSE and mixed:
            does = "will be trained"
        elif kind is Kind.PLAIN and tensor.made:  # what a Module computed is no weight
            does = "is neither trained nor saved"
        else:
            continue
        warnings.warn(
            f"{name} is a plain Tensor and {does}; say so with nn.Parameter(tensor), which is "
            "trained and saved, or nn.buffer(tensor), which is only saved",
            stacklevel=depth,
        )


def load_state_dict(
    model: Any, state: Mapping[str, Any], strict: bool = True, verbose: bool = False
) -> Names:
    """Copy values into a model's tensors in place, cast to their dtypes.

    state: Tensors, or what `Tensor` takes (arrays, PyTorch's tensors), by the names of
    `get_state_dict`. Gives the names that only one side has. Raises KeyError where strict and names
    differ, ShapeError where shapes differ, DTypeError where floats would become integers; the model
    is then as it was before.
    """
    own = get_state_dict(model)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if strict and (missing or unexpected):
        raise KeyError(
            f"load_state_dict: missing {missing[:8]}, unexpected {unexpected[:8]}; expected the "
            "model's own names, or strict=False"
        )
    given = {name: state[name] for name in own if name in state}
    values = {n: v if isinstance(v, Tensor) else Tensor(v) for n, v in given.items()}
    for name, value in values.items():
        target = own[name]
        if target.shape != value.shape:
            raise ShapeError(
                f"load_state_dict: {name} has shape {value.shape}, the model's {target.shape}"
            )
        if value.dtype.is_float and not target.dtype.is_float:
            raise DTypeError(
                f"load_state_dict: {name} is {value.dtype.name}, the model's {target.dtype.name}; "
                "expected integers"
            )
    with Tensor.no_grad():
        values = {name: value.cast(own[name].dtype) for name, value in values.items()}
        if values:
            Tensor.realize(*values.values())
        for name, value in values.items():
            own[name]._fill(value._bytes())  # by the host: nothing is compiled
    return Names(missing, unexpected)


check_functions(globals())
