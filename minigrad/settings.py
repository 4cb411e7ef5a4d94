"""The few settings, in one table.

Each setting is an environment variable `MINIGRAD_<NAME>` outside and a keyword of `Context` inside:

    with Context(DEBUG=2):
        loss.realize()

Settings are per thread: a thread starts from the environment, never from another thread's context.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from threading import get_ident, local
from types import MappingProxyType
from typing import Any, Self

from minigrad.errors import SettingError

DEFAULTS: Mapping[str, int | str] = MappingProxyType({
    "DEBUG": 0,  # 1 summary, 2 kernels with times, 3 schedule, 4 loop nests, 5 IR and assembly
    "DEVICE": "CPU",  # where tensors live unless told otherwise
    "CL_PLATFORM": "",  # part of the name or version of the OpenCL platform to use
    "CL_SUBDEVICES": 0,  # 2 or more: divides a CPU of OpenCL into so many devices of equal parts
    "THREADS": 0,  # 0: as many as affinity and cgroup quota allow
    "CACHE": "",  # folder of the kernel cache; empty: the user's cache folder
    "TUNE": 0,  # n: measures the model's n best ways for each product, and keeps one
    "FUSE": 1,  # 0: every operation is a kernel of its own
    "PATIENCE": 60,  # seconds until a rank that keeps others waiting counts as hung; 0: never
    "GUARD": 0,  # 1: unreadable pages after every buffer
    "INT8": -1,  # bytes per vector element in products with quantized matrices; 0: float32
    "WINOGRAD": 1,  # 0: convolutions are computed as sums, without Winograd's method
    "BOUNDS": 1,  # 0: an index out of range reads 0 or writes nothing, without an error
})  # fmt: skip

# What a thread is doing: settings that only code changes; those in OWN only code of minigrad.
MODES: Mapping[str, bool] = MappingProxyType({
    "TRAINING": False,  # layers such as dropout behave as in training
    "GRADIENTS": True,  # results depend on leaves, else they are constants
    "RECORDING": False,  # it captures a step
    "EXPLAINED": False,  # its step is being explained
})
OWN = ("RECORDING", "EXPLAINED")

# Besides its arguments, these settings and the modes determine which program a function runs. A
# captured step is only replayed if none of them has changed.
DECIDING = ("DEBUG", "DEVICE", "FUSE", "GUARD", "BOUNDS", "TUNE", "WINOGRAD", *MODES)


def _from_environment() -> dict[str, int | str]:
    values = dict(DEFAULTS)
    for name, default in DEFAULTS.items():
        text = os.environ.get(f"MINIGRAD_{name}")
        if text is not None:
            try:
                values[name] = type(default)(text)
            except ValueError:
                raise SettingError(f"MINIGRAD_{name}={text!r}: expected an int") from None
    return values


class _Thread(local):
    """The state of a thread.

    values: its settings and modes. gradients: one of them, which every operation reads. key: one
    number for all of the deciding state, so that one comparison shows whether any of it changed.
    """

    def __init__(self) -> None:
        self.values = {**MODES, **_from_environment()}
        self.settle()

    def settle(self) -> None:
        """Find the key of the present state."""
        state = tuple([self.values[name] for name in DECIDING])
        self.key = _keys.setdefault(state, next(_numbers))
        self.gradients = bool(self.values["GRADIENTS"])


_keys: dict[tuple[object, ...], int] = {}
_numbers = itertools.count()
thread = _Thread()


def getenv(name: str, default: Any = None) -> Any:
    """Current value of a setting in this thread, e.g. `getenv("DEBUG")`.

    With a default (tinygrad's form), a name that is not a setting is looked up in the environment,
    with the default's type.
    """
    try:
        return thread.values[name]
    except KeyError:
        if default is not None:
            return type(default)(os.environ.get(name, default))
        raise _unknown(name) from None


def _unknown(name: str) -> KeyError:
    return KeyError(f"unknown setting {name!r}: expected one of {', '.join(DEFAULTS)}")


def flag(name: str) -> int:
    """Current value of an integer setting."""
    return int(thread.values[name])


def say(text: str) -> None:
    """Print to the error stream, where it does not mix with a program's own output."""
    sys.stderr.write(text + "\n")


def _say_what_is_ignored() -> None:
    """Name environment variables that look like a setting but are not one."""
    for variable in os.environ:
        name = variable.removeprefix("MINIGRAD_")
        if name != variable and name not in DEFAULTS:
            from difflib import get_close_matches

            for alike in get_close_matches(name, DEFAULTS, 1, cutoff=0.7):
                say(f"minigrad: unknown setting {variable}; did you mean MINIGRAD_{alike}?")


_say_what_is_ignored()


def report(level: int, text: Callable[[], str]) -> None:
    """Print a text if MINIGRAD_DEBUG is at least `level`."""
    if flag("DEBUG") >= level:
        say(text())


def _check(name: str, value: object) -> None:
    """KeyError for an unknown setting, SettingError for a value of another type."""
    if name in OWN:
        raise _unknown(name)
    kind, expected = (str, "a string") if isinstance(getenv(name), str) else (int, "an int")
    if not isinstance(value, kind):
        raise SettingError(f"{name}={value!r}: expected {expected}")


def put(name: str, value: int | str) -> None:
    """Change a setting of this thread for good (scripts use it for `--device` and `--debug`)."""
    _check(name, value)
    thread.values[name] = value
    thread.settle()


@contextmanager
def having(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give an object other attribute values within a `with` block."""
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class Context(ContextDecorator):
    """Change settings inside a `with` block or a function: `with Context(DEBUG=2, FUSE=0): …`."""

    def __init__(self, **changes: int | str) -> None:
        for name, value in changes.items():
            _check(name, value)
        self.changes = changes
        self.saved: defaultdict[int, list[dict[str, int | str]]] = defaultdict(list)  # by thread

    def __enter__(self) -> Self:
        self.saved[get_ident()].append({name: thread.values[name] for name in self.changes})
        thread.values.update(self.changes)
        thread.settle()
        return self

    def __exit__(self, *_: object) -> None:
        thread.values.update(self.saved[get_ident()].pop())
        thread.settle()


class State(Context):
    """As `Context`, also for the modes in OWN: the whole state of a thread can be given."""

    def __init__(self, **changes: int | str) -> None:
        super().__init__()
        self.changes = changes
