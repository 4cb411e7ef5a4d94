"""Layers: plain classes with `__call__`; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from minigrad.errors import ShapeError
from minigrad.tensor import Tensor


class _Blank(threading.local):
    wanted = False


_blank = _Blank()


@contextmanager
def blank() -> Iterator[None]:
    """Layers that this thread makes meanwhile have zeros where they would draw random numbers.

    For whoever sets the parameters himself: nothing is drawn, and zeros cost nothing before
    somebody looks at them.
    """
    before, _blank.wanted = _blank.wanted, True
    try:
        yield
    finally:
        _blank.wanted = before


def uniform(shape: tuple[int, ...], inputs: int) -> Tensor:
    """A parameter uniform in ±1/√inputs, as PyTorch initialises linear and convolution layers."""
    if _blank.wanted:
        return Tensor.zeros(*shape, requires_grad=True)
    bound = 1 / math.sqrt(max(inputs, 1))
    return Tensor.uniform(*shape, low=-bound, high=bound, requires_grad=True)


class Linear:
    """x·Wᵀ + b. weight (out_features, in_features), bias (out_features,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.weight = uniform((out_features, in_features), in_features)
        self.bias = uniform((out_features,), in_features) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if x.shape[-1:] != self.weight.shape[1:]:
            raise ShapeError(
                f"Linear of {x.shape}: expected (…, {self.weight.shape[1]}), the layer's inputs"
            )
        return x.linear(self.weight.transpose(), self.bias)


class Embedding:
    """A table of vectors. weight (num_embeddings, embedding_dim), normal with deviation 1."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        make = Tensor.zeros if _blank.wanted else Tensor.randn
        self.weight = make(num_embeddings, embedding_dim, requires_grad=True)

    def __call__(self, index: Tensor) -> Tensor:
        """Integers (…) → (…, embedding_dim); BoundsError where one is no row."""
        return index._rows_of(self.weight, "Embedding")


class Dropout:
    """In training, elements are 0 with probability p and divided by 1 − p otherwise."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout({p}): expected a probability in 0 … 1")
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return x.dropout(self.p)


Layer = Callable[[Tensor], Tensor]


class Sequential:
    """Layers one after the other; functions such as `Tensor.relu` are layers too."""

    def __init__(self, *layers: Layer | Sequence[Layer]) -> None:
        self.layers: list[Layer] = []
        for layer in layers:
            if isinstance(layer, (list, tuple)):
                self.layers.extend(layer)
            else:
                self.layers.append(layer)  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        """The last layer's result."""
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, place: int) -> Layer:
        return self.layers[place]
