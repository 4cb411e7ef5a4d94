"""What a thread is doing: training or not, recording gradients or not."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, Self, TypeVar

from minigrad import settings
from minigrad.settings import state_that

F = TypeVar("F", bound=Callable[..., Any])


USUAL = {"training": False, "gradients": True}  # the modes of a new thread


class _Modes(threading.local):
    """The modes of a thread: read them directly, change them by `put`.

    training: layers behave as in training. gradients: results depend on leaves, else they are
    constants. describing: while `Tensor.scan` calls its step function, the age from which on nodes
    belong to the step; else None. unsaid: returns a layer that did not train because no mode was
    set, if that layer still exists.
    """

    def __init__(self) -> None:
        self.training, self.gradients = USUAL["training"], USUAL["gradients"]
        self.describing: int | None = None
        self.unsaid: Callable[[], Any] | None = None

    def put(self, name: str, mode: bool) -> None:
        """Set training or gradients."""
        if not isinstance(mode, bool):
            raise TypeError(f"Tensor.train({mode!r}): expected True or False")
        setattr(self, name, mode)
        state_that(name, mode is not USUAL[name])


modes = _Modes()


class _Mode(ContextDecorator):
    """A mode of this thread for a block or a function; never entered, it has no effect, and warns.
    """

    used = False
    name: str  # the attribute of `modes` that it changes

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self.saved: list[bool] = []

    def __call__(self, function: F) -> F:
        self.used = True
        return super().__call__(function)

    def __enter__(self) -> Self:
        self.used = True
        self.saved.append(getattr(modes, self.name))
        modes.put(self.name, self.mode)
        return self

    def __exit__(self, *_: object) -> None:
        modes.put(self.name, self.saved.pop())

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not self.used and not ending():
            name = type(self).__name__
            warnings.warn(
                f"Tensor.{name}() alone changes nothing; write `with Tensor.{name}():`, or the "
                f"decorator @Tensor.{name}()", stacklevel=2
            )  # fmt: skip


class train(_Mode):
    """`with Tensor.train():` dropout drops, batch norm updates; `Tensor.train(False)` undoes it.

    Per thread; also a decorator.
    """

    name = "training"

    def __init__(self, mode: bool = True) -> None:
        super().__init__(mode)


class no_grad(_Mode):
    """Inside, results are constants for `backward`, and parameters may be written in place.

    Per thread; also a decorator.
    """

    name = "gradients"

    def __init__(self) -> None:
        super().__init__(False)


class Context(settings.Context):
    """Settings inside a `with` block: `with Context(DEBUG=2): …`.

    TRAINING=1 (tinygrad's) also means `Tensor.train()`.
    """

    def __init__(self, *, TRAINING: int | None = None, **changes: int | str) -> None:
        super().__init__(**changes)
        self.mode = None if TRAINING is None else train(bool(TRAINING))

    def __enter__(self) -> Context:
        super().__enter__()
        if self.mode is not None:
            self.mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.mode is not None:
            self.mode.__exit__()
        super().__exit__(*error)
