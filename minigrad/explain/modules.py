"""The models that a step uses, and what is in them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from minigrad.device import Buffer
from minigrad.graph.node import Op
from minigrad.jit.jitted import Jitted
from minigrad.jit.outside import Walk
from minigrad.nn.module import walk
from minigrad.nn.optim import Optimizer
from minigrad.tensor import Tensor


def models_of(step: Any) -> dict[str, Any]:
    """Objects with tensors that a step reads, by their names in it; a method's own object first."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for name, value in _read(step):
        plain = isinstance(value, Tensor | type | FunctionType) or inspect.ismodule(value)
        if plain or not hasattr(value, "__dict__"):
            continue
        tensors = {id(item) for _, item, _ in walk(value) if isinstance(item, Tensor)}
        if not tensors <= known:
            found.setdefault(name, value)
            known |= set() if isinstance(value, Optimizer) else tensors
    return found


def _read(step: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of a step's own object, and of what its code reads (see jit/outside.py)."""
    function, instance, own = step, None, getattr(step, "__self__", step)
    if isinstance(step, Jitted):
        function, instance = step.function, step.instance
        own = getattr(function, "__self__", function) if step.owner is None else step.owner
    if not isinstance(own, FunctionType):
        yield type(own).__name__.lower(), own
    for read in Walk(function, instance, {}, {}).read.values():
        yield read.label, read.value


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
                    node = value.raw.src[0] if value.raw.op is Op.ASSIGN else value.raw
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
