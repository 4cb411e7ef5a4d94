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


USUAL = {"training": False, "gradients": True}  # what a thread begins with


class _Modes(threading.local):
    """training: whether layers behave so. gradients: whether results depend on leaves, or are
    constants. Both are to be read at will, and to be changed by `put`.

    describing: the age of nodes from which on a function shows what a step of `Tensor.scan` is;
    None where none does. unsaid: gives a
    layer that did not train, because nobody has said that it should, if it is still there.
    """

    def __init__(self) -> None:
        self.training, self.gradients = USUAL["training"], USUAL["gradients"]
        self.describing: int | None = None
        self.unsaid: Callable[[], Any] | None = None

    def put(self, name: str, mode: bool) -> None:
        """Let training or gradients be so from now on."""
        if not isinstance(mode, bool):
            raise TypeError(f"Tensor.train({mode!r}): expected True or False")
        setattr(self, name, mode)
        state_that(name, mode is not USUAL[name])


modes = _Modes()


class _Mode(ContextDecorator):
    """A mode of this thread for a block or a function; alone it changes nothing, and says so."""

    used = False
    name: str  # of what it changes in `modes`

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
                f"Tensor.{name}() alone changes nothing; expected a block, with Tensor.{name}():, "
                f"or a decorator, @Tensor.{name}()", stacklevel=2
            )  # fmt: skip


class train(_Mode):
    """`with Tensor.train():` — dropout drops, batch norm updates; `Tensor.train(False)` undoes it.

    Per thread; works as a decorator too.
    """

    name = "training"

    def __init__(self, mode: bool = True) -> None:
        super().__init__(mode)


class no_grad(_Mode):
    """Inside, results are constants for `backward`, and parameters may be written in place.

    Per thread; works as a decorator too.
    """

    name = "gradients"

    def __init__(self) -> None:
        super().__init__(False)


class Context(settings.Context):
    """Settings inside a `with` block: `with Context(DEBUG=2): …`.

    TRAINING=1 (tinygrad's) is `Tensor.train()`, too.
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
