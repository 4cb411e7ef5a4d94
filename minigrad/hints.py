"""Names that users of PyTorch, numpy and tinygrad type, and what to type here: reads `hints.md`.

Error messages end with the right thing to type. The file is read when the first one is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

# The owners that the names in the table stand for.
OWNERS = {"x": "Tensor", "loss": "Tensor", "model": "Module", "optimizer": "Optimizer",
          "F": "functional", "dtype": "DType"}  # fmt: skip
_answering: set[tuple[str, str]] = set()  # owners and names of attributes that only give a hint
_ROW = re.compile(r"^\| `(.+?)` \| (.+) \|$", re.MULTILINE)


@lru_cache(maxsize=None)
def table() -> dict[str, str]:
    """What users type → what to type here."""
    return dict(_ROW.findall(Path(__file__).with_suffix(".md").read_text("utf-8")))


def hint(typed: str) -> str:
    """What to type instead."""
    return table()[typed]


def of_argument(name: str) -> str | None:
    """What to do instead of using an argument that a function does not have, if the table says."""
    return next((how for typed, how in table().items() if typed.startswith(f"f(x, {name}=")), None)


def missing(owner: str, name: str, known: Iterable[str] = ()) -> AttributeError:
    """The error for a name that is not here: with the table's hint, or with similar names."""
    if name.startswith("_"):  # lookups for protocols are frequent
        return AttributeError(f"{owner} has no {name!r}", name=name)
    how = _by_name().get((owner, name))
    if how is None and owner == "minigrad":  # PyTorch's functions are methods here, or dtypes
        is_here = hasattr(sys.modules["minigrad.tensor"].Tensor, name)
        how = f"Tensor.{name}" if is_here else _by_name().get(("Tensor", name))
        if dtype := getattr(sys.modules["minigrad.dtype"].dtypes, name, None):
            how = f'dtypes.{dtype.name}, or "{dtype.name}"'
    if how is None and name.endswith("_") and name[:-1] in known:
        how = f"x.copy_(x.{name[:-1]}(…)) writes it to x"
    if how is not None:
        return AttributeError(f"{owner} has no {name!r} here: {how}", name=name)
    from difflib import get_close_matches

    alike = get_close_matches(name, [one for one in known if not one.startswith("_")], 3)
    more = f"; did you mean {' or '.join(alike)}?" if alike else ""
    return AttributeError(f"{owner} has no {name!r}{more}", name=name)


class Missing:
    """An attribute that is not here, and says so. Lookups of other attributes cost nothing more."""

    def __init__(self, owner: str, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, instance: Any, kind: Any) -> NoReturn:
        raise missing(self.owner, self.name, [self.name[:-1]])


def put_hints(owner: str, kind: type, more: Iterable[str] = ()) -> None:
    """Give a class hints for the names of other libraries in the table, and for some more."""
    for name in (*(name for of, name in _by_name() if of == owner), *more):
        if not hasattr(kind, name):
            type.__setattr__(kind, name, Missing(owner, name))
            _answering.add((owner, name))


def present(owner: str, names: Iterable[str]) -> list[str]:
    """The names without those that only give a hint."""
    return [name for name in names if (owner, name) not in _answering]


@lru_cache(maxsize=None)
def _by_name() -> dict[tuple[str, str], str]:
    found = ((re.match(r"(\w+)\.(\w+)", typed), text) for typed, text in table().items())
    return {(OWNERS.get(m[1], m[1]), m[2]): text for m, text in found if m}


class _Room(ModuleType):
    """A module whose name is a function's in PyTorch."""

    _typed: str

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError(f"{self.__name__} is a module, not a function: {hint(self._typed)}")


def answer(module: str, typed: str) -> None:
    """Let a module say what to type to whoever calls it; typed: the table's row."""
    room: Any = sys.modules[module]
    room.__class__, room._typed = _Room, typed


class _Finder:
    """Let imports say what to type instead of a name that a package lacks. The last finder."""

    @staticmethod
    def find_spec(name: str, *more: object) -> None:
        owner, _, last = name.rpartition(".")
        if owner.partition(".")[0] == "minigrad" and " here: " in (
            text := str(missing(owner.rpartition(".")[2], last))
        ):
            raise ModuleNotFoundError(text)  # without its name: `from` would ignore it


sys.meta_path.append(_Finder)


def hint_names(module: dict[str, Any], known: Iterable[str] | None = None) -> None:
    """Let a module (its globals) say what to type instead of a name that it lacks.

    known: the names to suggest; all of the module's unless given.
    """

    def __getattr__(name: str) -> Any:
        raise missing(module["__name__"].rpartition(".")[2], name, known or module)

    module["__getattr__"] = __getattr__
