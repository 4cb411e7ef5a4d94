"""Layers of few lines; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigrad.errors import ShapeError
from minigrad.nn import functional as F
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import check_share
from minigrad.tensor.templates import templated

_linear = templated(F.linear)

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


def uniform(shape: tuple[int, ...], inputs: float) -> Tensor:
    """A parameter uniform in ±1/√inputs, as PyTorch initialises linear and convolution layers."""
    if _blank.wanted:
        return Tensor.zeros(*shape, requires_grad=True)
    bound = 1 / math.sqrt(inputs or 1)
    return Tensor.uniform(*shape, low=-bound, high=bound, requires_grad=True)


class Linear(Layer):
    """x·Wᵀ + b. weight (out_features, in_features), bias (out_features,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.weight = uniform((out_features, in_features), in_features)
        self.bias = uniform((out_features,), in_features) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if x.shape[-1:] != self.weight.shape[1:]:
            raise ShapeError(
                f"Linear of {x.shape}: expected (…, {self.weight.shape[1]}), the layer's inputs"
            )
        return _linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Embedding(Layer):
    """A table of vectors. weight (num_embeddings, embedding_dim), normal with deviation 1.

    padding_idx: a row that is zeros at first and gets no gradient.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"Embedding({num_embeddings}, {embedding_dim}, padding_idx={padding_idx}): "
                "expected one of the rows"
            )
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        make = Tensor.zeros if _blank.wanted else Tensor.randn
        self.weight = make(num_embeddings, embedding_dim, requires_grad=True)
        if self.padding_idx is not None:
            rows = Tensor.arange(num_embeddings).unsqueeze(1)
            with Tensor.no_grad():
                self.weight.assign(rows.eq(self.padding_idx).where(0.0, self.weight))

    def __call__(self, index: Tensor) -> Tensor:
        """Integers (…) → (…, embedding_dim); BoundsError where one is no row."""
        rows = index._rows_of(self.weight, "Embedding")
        if self.padding_idx is None:
            return rows
        return index.eq(self.padding_idx).unsqueeze(-1).where(rows.detach(), rows)

    def extra_repr(self) -> str:
        """The sizes."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Dropout(Layer):
    """In training, elements are 0 with probability p and divided by 1 − p otherwise."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        check_share(type(self).__name__, p=p)
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x.dropout(self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Dropout2d(Dropout):
    """`Dropout` of whole channels of images (…, channels, height, width)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape."""
        return F.dropout2d(x, self.p, Tensor.training)


class Identity(Layer):
    """What it is given; arguments are accepted and not used."""

    _refused = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, x: Tensor) -> Tensor:
        """x."""
        return x


class PReLU(Layer):
    """x, and weight·x below 0; weight (num_parameters,): one slope, or one for each channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.num_parameters = num_parameters
        self.weight = Tensor.full((num_parameters,), init, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x.prelu(self.weight)

    def extra_repr(self) -> str:
        """The number of slopes."""
        return f"num_parameters={self.num_parameters}"
