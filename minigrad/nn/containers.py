"""Modules that hold other modules in a list or by name."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from itertools import chain
from typing import Any, Self, TypeVar

from minigrad.hints import missing
from minigrad.nn.members import Kind, Member, members
from minigrad.nn.module import Layer, Module, Parameter, checked_name, checked_part
from minigrad.tensor import Tensor
from minigrad.tensor.observed import observe
from minigrad.tensor.pytree import Same

Function = Callable[[Tensor], Tensor]
_T = TypeVar("_T")


class _Container(Layer):
    """A layer of items with names, which are also attributes."""

    _refused = ("numpy", "torch")
    _items: dict[Any, Any]  # by name; an item without one has its position, an int

    @property
    def _settings(self) -> dict[str, Any]:
        own = {name: value for name, value in super()._settings.items() if name != "_items"}
        return own | {
            name: Same(weakref.ref(item) if isinstance(item, (Module, Tensor)) else item)
            for name, item in self._shown()
        }

    def _hold(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Hold these (name, item) pairs; positions are counted again."""
        observe(self, "_settings", written=True)
        self._items = {}
        for place, (name, item) in enumerate(items):
            self._adopt(item)
            self._items[place if isinstance(name, int) else name] = item

    def _members(self) -> Iterator[Member]:
        own = (member for member in super()._members() if member[0] != "_items")
        return chain(own, members(self._items))  # a subclass may hold more than its items

    def _shown(self) -> Iterator[tuple[str, Any]]:
        return ((str(name), item) for name, item in self._items.items())

    def __getattr__(self, name: str) -> Any:
        found = {} if name.startswith("_") else dict(self._shown())
        if name not in found:
            raise missing("Module", name, found)
        return found[name]

    def __len__(self) -> int:
        return len(self._items)

    def add_module(self, name: str, module: Any) -> None:
        """Hold an item under a name, instead of the item with that name, or at the end."""
        checked_name(f"{type(self).__name__}.add_module", name)
        known = {str(key): key for key in self._items}
        self._hold({**self._items, known.get(name, name): self._item(module)}.items())

    def _item(self, item: Any) -> Any:
        """The object to hold for a given item; checks it."""
        return item if item is None else checked_part(type(self).__name__, item)

    register_module = add_module


class _List(_Container, MutableSequence[_T]):
    """A list whose items are named by their positions, or have names of their own."""

    def __init__(self, items: Iterable[_T] = ()) -> None:
        self._items = {}
        if not isinstance(items, Iterable):
            raise TypeError(f"{type(self).__name__}: expected a list, got {items!r}")
        self.extend(items)

    @property
    def layers(self) -> list[_T]:
        """The items."""
        observe(self, "_settings")
        return [*self._items.values()]

    def __iter__(self) -> Iterator[_T]:
        return iter(self.layers)

    def __getitem__(self, place: int | slice) -> Any:
        if not isinstance(place, slice):
            return self.layers[place]
        part = type(self)()
        part._hold([*self._items.items()][place])
        return part

    def __setitem__(self, place: Any, item: Any) -> None:
        found = [*self._items.items()]
        if isinstance(place, slice):
            found[place] = [(0, self._item(each)) for each in item]
        else:
            found[place] = (found[place][0], self._item(item))
        self._hold(found)

    def __delitem__(self, place: int | slice) -> None:
        found = [*self._items.items()]
        del found[place]
        self._hold(found)

    def insert(self, index: int, item: _T) -> None:
        """Insert an item before a position."""
        self[index:index] = [item]

    def append(self, item: _T) -> Self:  # type: ignore[override]
        """Append an item; returns the list, as in PyTorch."""
        self.insert(len(self), item)
        return self


class ModuleList(_List[Any]):
    """A list of modules that belong to another; it is not called itself. Slices are ModuleLists."""


class ParameterList(_List[Tensor]):
    """A list of parameters; values that are not Tensors become Tensors."""

    def _item(self, item: Any) -> Tensor:
        return Parameter(item)

    def _members(self) -> Iterator[Member]:
        held = {id(item) for item in self._items.values()}  # parameters even if frozen
        for name, item, kind in super()._members():
            yield name, item, Kind.PARAMETER if id(item) in held else kind


class Sequential(_List[Function]):
    """Layers applied one after the other; functions such as `Tensor.relu` are layers, too.

    Lists among the arguments count as their items; a dict gives the layers names, which are also
    attributes. A layer that is assigned to a new name becomes the last one.
    """

    def __init__(self, *layers: Function | Iterable[Function] | Mapping[str, Function]) -> None:
        super().__init__()
        for layer in layers:
            if isinstance(layer, Mapping):
                for name, each in layer.items():
                    self.add_module(name, each)
            else:
                self.extend(layer if isinstance(layer, (list, tuple)) else [layer])  # type: ignore[list-item]

    def _item(self, item: Any) -> Any:
        return checked_part("Sequential", item)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module):
            self.add_module(name, value)
        else:
            super().__setattr__(name, value)

    def __call__(self, x: Tensor) -> Tensor:
        """The result of the last layer."""
        for layer in self:
            x = layer(x)
        return x


class ModuleDict(_Container, MutableMapping[str, Any]):
    """Modules by name; it is not called itself. The names are part of those of parameters.

    modules: a dict, or (name, module) pairs.
    """

    __eq__, __hash__ = object.__eq__, object.__hash__  # a Mapping would compare contents

    def __init__(self, modules: Any = ()) -> None:
        self._items = {}
        self.update(modules)

    def update(self, modules: Any = (), /, **named: Any) -> None:
        """Hold the items of a dict, or of (name, item) pairs, and keyword arguments."""
        try:
            found = dict(modules, **named)
        except (TypeError, ValueError):
            said = f"ModuleDict: expected a dict of names and layers, got {modules!r:.60}"
            raise TypeError(said) from None
        super().update(found)

    def __getitem__(self, name: str) -> Any:
        observe(self, "_settings")
        return self._items[name]

    def __setitem__(self, name: str, module: Any) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        observe(self, "_settings", written=True)
        del self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)
