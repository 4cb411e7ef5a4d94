"""The models that a step uses, and what is in them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from minigrad.device import Buffer
from minigrad.graph.node import Op, target_of
from minigrad.jit.jitted import Jitted
from minigrad.nn.members import walk
from minigrad.nn.optimizer import Optimizer
from minigrad.tensor import Tensor

DEEPEST = 3  # depth of functions called by name in which models are searched


def models_of(step: Any) -> dict[str, Any]:
    """Objects with tensors that a step's function reads, by their names in it."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for name, value in _read(step, 0, set()):
        plain = isinstance(value, Tensor | type | FunctionType) or inspect.ismodule(value)
        if plain or not hasattr(value, "__dict__"):
            continue
        tensors = {id(item) for _, item, _ in walk(value) if isinstance(item, Tensor)}
        if not tensors <= known:
            found.setdefault(name, value)
            known |= set() if isinstance(value, Optimizer) else tensors
    return found


def _read(step: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the cells and globals of a function, and of functions among them."""
    if isinstance(step, Jitted):
        if step.owner is not None:
            yield type(step.owner).__name__.lower(), step.owner
        step = step.function
    step = inspect.unwrap(step) if callable(step) else step
    if inspect.ismethod(step):
        yield type(step.__self__).__name__.lower(), step.__self__
        step = step.__func__
    if not isinstance(step, FunctionType):
        if callable(step) and not isinstance(step, type | Tensor):
            yield type(step).__name__.lower(), step
        return
    if id(step) in seen or depth > DEEPEST:
        return
    seen.add(id(step))
    values = {name: step.__globals__[name] for name in step.__code__.co_names
              if name in step.__globals__}  # fmt: skip
    for name, cell in zip(step.__code__.co_freevars, step.__closure__ or (), strict=False):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name, value in values.items():
        yield name, value
        if isinstance(value, FunctionType | Jitted):
            yield from _read(value, depth + 1, seen)


class Tree:
    """The objects in some models that hold tensors, with dotted names.

    names: by `id`. classes: of all of them, with bases. tensors: buffer → (name, module); tensors
    of an optimizer have no module.
    """

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.names: dict[int, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.tensors: dict[Buffer, tuple[str, str]] = {}
        classes: set[str] = set()
        # optimizers last: the parameters that they hold then have names already
        ordered = sorted(models.items(), key=lambda item: isinstance(item[1], Optimizer))
        several = sum(not isinstance(model, Optimizer) for model in models.values()) > 1
        for top, model in ordered:
            optimizer = isinstance(model, Optimizer)
            prefix = top if optimizer or several else ""
            for name, value, _ in walk(model, prefix + "." if prefix else ""):
                if isinstance(value, Tensor):
                    node = target_of(value.raw)
                    if node.op is Op.BUFFER:
                        module = "" if optimizer else name.rpartition(".")[0] or "model"
                        self.tensors.setdefault(node.arg, (name, module))
                elif hasattr(value, "__dict__") and not optimizer:
                    self._add(name, value, classes)
        self.classes = frozenset(classes)

    def _add(self, name: str, value: Any, classes: set[str]) -> None:
        if id(value) in self.names:
            return
        own = {key: item for key, item in vars(value).items() if isinstance(item, Tensor)}
        if not any(isinstance(item, Tensor) for _, item, _ in walk(value)):
            return
        self.names[id(value)] = name or "model"
        classes.update(kind.__name__ for kind in type(value).__mro__)
        self.rows.append({
            "name": name or "model", "kind": type(value).__name__,
            "tensors": [[key, list(item.shape), item.dtype.name] for key, item in own.items()],
        })  # fmt: skip
