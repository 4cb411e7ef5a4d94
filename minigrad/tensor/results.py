"""What methods give that have several results: tuples whose parts have PyTorch's names."""

from __future__ import annotations

import dis
import sys
import warnings
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from minigrad.hints import hint

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


_TAKES_A_PART = [dis.opmap["LOAD_CONST"], dis.opmap.get("BINARY_SUBSCR")]
_FAR = 24  # bytes after a call's own, in which its caches lie (at most 8) and two instructions


def warn_of_no_pair(name: str, dim: Any) -> None:
    """Warn where `name`, which calls this, is x.max(dim)[0] or [1] in the user's line.

    PyTorch's max gives a pair there; here it would silently be a row of the values.
    """
    frame = sys._getframe(3)  # whoever called the method, which checks its arguments first
    if not isinstance(dim, int) or frame.f_globals.get("__name__", "").startswith("minigrad."):
        return
    code = frame.f_code.co_code[frame.f_lasti + 2 :][:_FAR]
    steps = [step for step in zip(code[::2], code[1::2], strict=True) if step[0]]
    if [kind for kind, _ in steps[:2]] == _TAKES_A_PART:
        part = frame.f_code.co_consts[steps[0][1]]
        if part in (0, 1):
            said = f"{name}({dim})[{part}] is row {part} of the values"
            warnings.warn(f"{said}; {hint('v, i, j = x.max(1)')}", stacklevel=4)
