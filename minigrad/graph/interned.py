"""Tables: in which equal things are one object while in use, or that forget; properties found once.
"""

from __future__ import annotations

import weakref

# WeakValueDictionary of the standard library uses this to remove dead entries: one step of C.
from _weakref import _remove_dead_weakref  # type: ignore[attr-defined]
from collections.abc import Callable
from typing import Any, Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class _Link(weakref.ref[T]):
    """A weak reference that has its key."""

    __slots__ = ("key",)
    key: Any


class Interned(dict[Any, _Link[T]]):
    """Objects by key, held weakly: `get` gives a key's link, which may be dead.

    There is no lock, because any allocation may run a `__del__` or a signal handler on the same
    thread, which may make objects, too, and would wait for itself. Instead each change of the table
    is one operation of dict, which nothing interrupts; the second to come takes what is there.
    """

    __slots__ = ("_forget",)

    def __init__(self) -> None:
        def forget(link: Any, remove: Any = _remove_dead_weakref) -> None:
            remove(self, link.key)

        self._forget = forget

    def put(self, key: Any, made: T) -> None:
        """Make an object the one of a key, instead of another one."""
        link = _Link(made, self._forget)
        link.key = key
        self[key] = link

    def settle(self, key: Any, made: T) -> T:
        """The living object of a key: `made`, unless another one was made meanwhile."""
        link = _Link(made, self._forget)
        link.key = key
        while (known := self.setdefault(key, link)) is not link:
            other = known()
            if other is not None:
                return other
            _remove_dead_weakref(self, key)
        return made


class Bounded(dict[K, T]):
    """What is known of at most so many keys: to note one more, all others are forgotten."""

    __slots__ = ("most",)

    def __init__(self, most: int) -> None:
        self.most = most

    def __setitem__(self, key: K, value: T) -> None:
        if len(self) >= self.most and key not in self:
            self.clear()
        super().__setitem__(key, value)


class kept(Generic[T]):
    """A property that never changes, computed at its first use.

    The standard library's has a lock, which a fork could leave locked.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self._name = compute, compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, one: Any, owner: type) -> T:
        value = one.__dict__[self._name] = self._compute(one)
        return value
