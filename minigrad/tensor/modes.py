"""What a thread is doing: training or not, recording gradients or not."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from types import TracebackType


class _Modes(threading.local):
    def __init__(self) -> None:
        self.training = False
        self.gradients = True


modes = _Modes()


class train(ContextDecorator):
    """`with Tensor.train():` — dropout drops, batch norm updates; `Tensor.train(False)` undoes it.

    Per thread; works as a decorator too.
    """

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode
        self.saved: list[bool] = []

    def __enter__(self) -> train:
        self.saved.append(modes.training)
        modes.training = self.mode
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        modes.training = self.saved.pop()


class no_grad(ContextDecorator):
    """Inside, results are constants for `backward`, and parameters may be written in place.

    Per thread; works as a decorator too.
    """

    def __init__(self) -> None:
        self.saved: list[bool] = []

    def __enter__(self) -> no_grad:
        self.saved.append(modes.gradients)
        modes.gradients = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        modes.gradients = self.saved.pop()
