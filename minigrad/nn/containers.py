"""Lists and dicts of layers, and layers one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Self, TypeVar, overload

from minigrad.nn.module import Layer, Parameter
from minigrad.nn.tree import Member, members
from minigrad.tensor import Tensor

Function = Callable[[Tensor], Tensor]
_T = TypeVar("_T")


class _List(Layer, MutableSequence[_T]):
    """A list whose items have their places as names."""

    _refused = ()

    def __init__(self, items: Iterable[_T] = ()) -> None:
        self.layers: list[_T] = []
        self.extend(items)

    @overload
    def __getitem__(self, place: int) -> _T: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> _T | Self:
        if isinstance(place, slice):
            return type(self)(self.layers[place])
        return self.layers[place]

    def __setitem__(self, place: Any, item: Any) -> None:
        for each in item if isinstance(place, slice) else (item,):
            self._adopt(each)
        self.layers[place] = item

    def __delitem__(self, place: int | slice) -> None:
        del self.layers[place]

    def __len__(self) -> int:
        return len(self.layers)

    def insert(self, index: int, item: _T) -> None:
        """Put an item before a place."""
        self._adopt(item)
        self.layers.insert(index, item)

    def append(self, item: _T) -> Self:  # type: ignore[override]
        """Put an item at the end; gives the list, as PyTorch's."""
        self.insert(len(self), item)
        return self

    def _members(self) -> Iterator[Member]:
        return members(self.layers)

    def _shown(self) -> Iterator[tuple[str, Any]]:
        return ((name, item) for name, item, _ in self._members())


class ModuleList(_List[Any]):
    """A list of modules; it is not called itself. Slices are ModuleLists."""


class ParameterList(_List[Tensor]):
    """A list of parameters; what is no Tensor becomes one."""

    def insert(self, index: int, item: Any) -> None:
        """Put a parameter before a place."""
        super().insert(index, Parameter(item))


class Sequential(_List[Function]):
    """Layers one after the other; functions such as `Tensor.relu` are layers too.

    Lists among the arguments count as their items; one dict gives the layers' names.
    """

    def __init__(self, *layers: Function | Iterable[Function] | Mapping[str, Function]) -> None:
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else {}
        self.names = {id(layer): name for name, layer in named.items()}
        super().__init__(named.values())
        for layer in () if named else layers:
            if isinstance(layer, (list, tuple)):
                self.extend(layer)
            else:
                self.append(layer)  # type: ignore[arg-type]

    def insert(self, index: int, item: Function) -> None:
        """Put a layer in before another."""
        if not callable(item):
            raise TypeError(f"Sequential of {item!r}: expected layers or functions of a tensor")
        super().insert(index, item)

    def __call__(self, x: Tensor) -> Tensor:
        """The last layer's result."""
        for layer in self.layers:
            x = layer(x)
        return x

    def _members(self) -> Iterator[Member]:
        for place, layer, kind in super()._members():
            yield self.names.get(id(layer), place), layer, kind


class ModuleDict(Layer, MutableMapping[str, Any]):
    """Modules by name; it is not called itself."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # a Mapping's compare what is in it

    def __init__(self, modules: Any = ()) -> None:
        self.items_by_name: dict[str, Any] = {}
        self.update(modules)

    def __getitem__(self, name: str) -> Any:
        return self.items_by_name[name]

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("items_by_name", {})
        if name not in found:
            raise AttributeError(f"ModuleDict has no {name!r}; it has {', '.join(found)}")
        return found[name]

    def __setitem__(self, name: str, module: Any) -> None:
        self._adopt(module)
        self.items_by_name[name] = module

    def __delitem__(self, name: str) -> None:
        del self.items_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_by_name)

    def __len__(self) -> int:
        return len(self.items_by_name)

    def _members(self) -> Iterator[Member]:
        return members(self.items_by_name)
