"""What a thread is doing: training or not, recording gradients or not."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator

from minigrad import settings
from minigrad.settings import state_that


class _Modes(threading.local):
    """training, gradients: to be read at will, and to be changed by the methods.

    describing: whether a function runs to show what a step of `Tensor.scan` is.
    """

    def __init__(self) -> None:
        self.training = False
        self.gradients = True
        self.describing = False

    def train(self, mode: bool) -> None:
        """Behave as in training from now on, or not."""
        self.training = mode
        state_that("training", mode)

    def record(self, mode: bool) -> None:
        """Let results depend on leaves from now on, or be constants."""
        self.gradients = mode
        state_that("no_grad", not mode)


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
        modes.train(self.mode)
        return self

    def __exit__(self, *_: object) -> None:
        modes.train(self.saved.pop())


class no_grad(ContextDecorator):
    """Inside, results are constants for `backward`, and parameters may be written in place.

    Per thread; works as a decorator too.
    """

    def __init__(self) -> None:
        self.saved: list[bool] = []

    def __enter__(self) -> no_grad:
        self.saved.append(modes.gradients)
        modes.record(False)
        return self

    def __exit__(self, *_: object) -> None:
        modes.record(self.saved.pop())


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
