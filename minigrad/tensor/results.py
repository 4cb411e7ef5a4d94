"""What methods give that have several results: tuples whose parts have PyTorch's names."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")  # Tensor, or array_api's Array


class Found(NamedTuple, Generic[T]):
    """Elements, and their places along a dimension."""

    values: T
    indices: T


class QRResult(NamedTuple, Generic[T]):
    """What `qr` gives."""

    Q: T
    R: T


class SVDResult(NamedTuple, Generic[T]):
    """What `svd` gives."""

    U: T
    S: T
    Vh: T


class EighResult(NamedTuple, Generic[T]):
    """What `eigh` gives."""

    eigenvalues: T
    eigenvectors: T


class LstsqResult(NamedTuple, Generic[T]):
    """What `lstsq` gives."""

    solution: T
    residuals: T
    rank: T
    singular_values: T


class SlogdetResult(NamedTuple, Generic[T]):
    """What `slogdet` gives."""

    sign: T
    logabsdet: T


def _missing(result: Any, name: str) -> NoReturn:
    parts = " or ".join(f".{part}" for part in result._fields)
    raise AttributeError(f"a result of several tensors has no {name!r}: take {parts}", name=name)


for _kind in (Found, QRResult, SVDResult, EighResult, SlogdetResult):
    _kind.__getattr__ = _missing  # type: ignore[union-attr]
