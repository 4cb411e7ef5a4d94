"""What is in a model: tensors and modules by dotted names, also in plain objects and lists."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from minigrad.errors import DTypeError, StateError, expect
from minigrad.graph.bounds import users_line
from minigrad.hints import hint
from minigrad.tensor import Tensor, realization
from minigrad.tensor.arguments import check_functions


class Kind(IntEnum):
    """The role of a tensor in the object that holds it, in PyTorch's order of listing."""

    PARAMETER = 0  # trained and saved
    BUFFER = 1  # saved
    TRANSIENT = 2  # a buffer that is not saved
    PLAIN = 3  # an attribute of a Module that was registered as neither
    LOOSE = 4  # unmarked, in a plain object or a list outside of Modules: trained and saved


_SAVED = (Kind.PARAMETER, Kind.BUFFER, Kind.LOOSE)
Member = tuple[str, Any, Kind]


class Names(NamedTuple):
    """Names that `load_state_dict` found on one side only."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def members(value: Any) -> Iterator[Member]:
    """The members of an object, by name: items of a mapping or list, or attributes."""
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
        yield str(key), item, mark_of(item)


def mark_of(value: Any) -> Kind:
    """What a tensor's mark says; detached views, such as a kept state, are no buffers."""
    if isinstance(value, Tensor) and value.requires_grad is not None:
        if value.requires_grad:
            return Kind.PARAMETER
        if value._origin is None or not value._origin.stops:
            return Kind.BUFFER
    return Kind.LOOSE


def walk(model: Any, prefix: str = "") -> Iterator[Member]:
    """A model and everything in it, with dotted names, in the order of definition.

    An object with several names is yielded under each; one that contains itself is visited once
    along a path. Lists and plain objects in a Module count as its own attributes. Optimizers in a
    Module are skipped.
    """
    stack: list[tuple[str, Any, Kind, frozenset[int], tuple[type, ...]]] = [
        (prefix.rstrip("."), model, mark_of(model), frozenset(), _OPAQUE)
    ]
    while stack:
        name, value, kind, above, opaque = stack.pop()
        if isinstance(value, Tensor):
            yield name, value, kind
        elif id(value) not in above and not isinstance(value, opaque):
            yield name, value, kind
            path = above | {id(value)}
            opaque = (*_OPAQUE, Training) if hasattr(type(value), "_members") else opaque
            inner = []
            for key, item, own in members(value):
                own = Kind.PLAIN if kind is Kind.PLAIN and own is Kind.LOOSE else own
                inner.append((f"{name}.{key}" if name else key, item, own, path, opaque))
            stack.extend(reversed(inner))


class Training:
    """Base of objects that train a module, such as optimizers: not part of what is walked."""


_OPAQUE = (ModuleType, FunctionType, str, bytes, int, float)  # these have no parameters


def once(found: Iterable[Member], kind: type) -> list[Member]:
    """The members of a type, each once, by its first name."""
    first: dict[int, Member] = {}
    for member in found:
        if isinstance(member[1], kind):
            first.setdefault(id(member[1]), member)
    return [*first.values()]


def check_model(name: str, model: Any) -> None:
    """TypeError for objects that cannot have tensors, such as a class instead of an instance."""
    holds = isinstance(model, (Tensor, Mapping, list, tuple)) or hasattr(model, "__dict__")
    if not holds or isinstance(model, (type, *_OPAQUE)):  # nor does an iterator hold any
        what = getattr(model, "__name__", repr(model))
        raise TypeError(f"{name}: expected a model, or tensors in a list or dict, got {what:.60}")


def get_state_dict(model: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a model by dotted names ("layers.0.weight"), in the order of definition.

    model: any object, or list, tuple or mapping of objects. A tensor with several names (tied
    weights) is listed under each; an object that contains itself is visited once along a path. For
    an `nn.Module`: its parameters and saved buffers, as in PyTorch.
    """
    check_model("get_state_dict", model)
    return {
        name: value
        for name, value, kind in walk(model, prefix)
        if isinstance(value, Tensor) and kind in _SAVED
    }


def get_parameters(model: Any) -> list[Tensor]:
    """The trainable tensors of a model, except those with requires_grad=False.

    Each once, at its first place, in the order of PyTorch and `Module.parameters`. In plain
    objects, every float tensor counts, also unmarked ones; a warning names these if other tensors
    are marked (a mask beside layers, say): mark it with `nn.Parameter` or `nn.buffer`.
    """
    check_model("get_parameters", model)
    found = once(walk(model), Tensor)
    warn_of_unmarked(found)
    return [
        tensor
        for _, tensor, kind in found
        if kind in _SAVED and tensor.requires_grad is not False and tensor.dtype.is_float
    ]


_told: dict[Any, int] = {}  # Python's registry of warnings already shown


def warn_of_unmarked(found: list[Member]) -> None:
    """Warn, at the user's line, of float tensors that are marked neither as trained nor as not."""
    mixed = any(kind is Kind.PARAMETER for _, _, kind in found)
    for name, tensor, kind in found:
        if not tensor.dtype.is_float or tensor.requires_grad is not None:
            continue
        if kind is Kind.LOOSE and mixed:
            does = "will be trained"
        elif kind is Kind.PLAIN and tensor.made:  # a tensor that a Module computed is not a weight
            does = "is neither trained nor saved"
        else:
            continue
        warnings.warn_explicit(
            f"{name} is a plain Tensor and {does}; write nn.Parameter(tensor) if it should be "
            "trained and saved, or nn.buffer(tensor) if it should only be saved",
            UserWarning, *users_line(), registry=_told,
        )  # fmt: skip


def tensors_of(name: str, params: Any) -> list[Tensor]:
    """One tensor or several, as a list; TypeError for anything else, such as a model."""
    several = isinstance(params, Iterable) and not isinstance(params, Tensor)
    given = [*params] if several else [params]
    for tensor in given:
        if not isinstance(tensor, Tensor):
            what = f"{name}: expected tensors, got {type(tensor).__name__}"
            raise TypeError(f"{what}; {hint('optim.Adam(model)')}")
    return given


def check_state(title: str, state: Any) -> None:
    """TypeError unless a state is a dict; says how a path or a model gives one."""
    how = "; use nn.state.safe_load(path)" if isinstance(state, str | PurePath) else ""
    how = "; use nn.state.get_state_dict(model)" if hasattr(type(state), "_members") else how
    expect(isinstance(state, Mapping), title, f"a dict of names and tensors{how}",
           type(state).__name__, error=TypeError)  # fmt: skip


def load_state_dict(
    model: Any, state: Mapping[str, Any], strict: bool = True, verbose: bool = False
) -> Names:
    """Copy values into a model's tensors in place, cast to their dtypes.

    state: names of `get_state_dict` → Tensors, or anything that `Tensor` takes (arrays, PyTorch's
    tensors). Returns the names that only one side has. Raises StateError (a KeyError) if strict and
    names differ, ShapeError if shapes differ, DTypeError if floats would become integers; after one
    of these the model is unchanged.
    """
    check_state("load_state_dict", state)
    own = get_state_dict(model)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if strict and (missing or unexpected):
        raise StateError(
            f"load_state_dict: the state does not have the model's names: missing {missing[:8]}, "
            f"unexpected {unexpected[:8]}; pass strict=False to load the others"
        )
    given = {name: state[name] for name in own if name in state}
    values = {name: _as_tensor(name, value) for name, value in given.items()}
    for name, value in values.items():
        target = own[name]
        expect(target.shape == value.shape, f"load_state_dict: {name}", f"shape {target.shape}",
               f"{value.shape}")  # fmt: skip
        expect(not value.dtype.is_float or target.dtype.is_float,
               f"load_state_dict: {name}", f"integers for the model's {target.dtype.name}",
               value.dtype.name, error=DTypeError)  # fmt: skip
    with Tensor.no_grad():
        values = {name: value.cast(own[name].dtype) for name, value in values.items()}
        realization.realize(values.values())
        for name, value in values.items():
            own[name]._fill(value._bytes())  # copied by the host: nothing is compiled
    return Names(missing, unexpected)


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else Tensor(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DTypeError(f"load_state_dict: {name}: {error}") from None


check_functions(globals())
