"""What a thread is doing: training or not, recording gradients or not."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, Self, TypeVar

from minigrad.settings import Context

F = TypeVar("F", bound=Callable[..., Any])


class _Modes(threading.local):
    """What else a thread is doing; its other modes are settings.

    describing: while `Tensor.scan` calls its step function, the age from which on nodes belong to
    the step; else None. unsaid: returns a layer that did not train because no mode was set, if that
    layer still exists. blank: new layers get zeros (`nn.blank`).
    """

    describing: int | None = None
    unsaid: Callable[[], Any] | None = None
    blank = False


modes = _Modes()


class _Mode(Context):
    """A mode of this thread for a block or a function; never entered, it has no effect, and warns.
    """

    used = True

    def __init__(self, **changes: bool) -> None:
        super().__init__(**changes)
        self.used = False

    def __call__(self, function: F) -> F:
        self.used = True
        return super().__call__(function)

    def __enter__(self) -> Self:
        self.used = True
        return super().__enter__()

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

    def __init__(self, mode: bool = True) -> None:
        if not isinstance(mode, bool):
            raise TypeError(f"Tensor.train({mode!r}): expected True or False")
        super().__init__(TRAINING=mode)


class no_grad(_Mode):
    """Inside, results are constants for `backward`, and parameters may be written in place.

    Per thread; also a decorator.
    """

    def __init__(self) -> None:
        super().__init__(GRADIENTS=False)
