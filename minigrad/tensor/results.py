"""Results of methods that return several tensors: named tuples with PyTorch's field names."""

from __future__ import annotations

import dis
import sys
import warnings
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from minigrad.hints import hint

T = TypeVar("T")  # Tensor, or array_api's Array


class Found(NamedTuple, Generic[T]):
    """Elements and their positions along a dimension."""

    values: T
    indices: T


class QRResult(NamedTuple, Generic[T]):
    """The result of `qr`."""

    Q: T
    R: T


class SVDResult(NamedTuple, Generic[T]):
    """The result of `svd`."""

    U: T
    S: T
    Vh: T


class EighResult(NamedTuple, Generic[T]):
    """The result of `eigh`."""

    eigenvalues: T
    eigenvectors: T


class LstsqResult(NamedTuple, Generic[T]):
    """The result of `lstsq`."""

    solution: T
    residuals: T
    rank: T
    singular_values: T


class SlogdetResult(NamedTuple, Generic[T]):
    """The result of `slogdet`."""

    sign: T
    logabsdet: T


def _missing(result: Any, name: str) -> NoReturn:
    parts = " or ".join(f".{part}" for part in result._fields)
    raise AttributeError(f"a result of several tensors has no {name!r}; use {parts}", name=name)


for _kind in (Found, QRResult, SVDResult, EighResult, LstsqResult, SlogdetResult):
    _kind.__getattr__ = _missing  # type: ignore[union-attr]


_TAKES_A_PART = [dis.opmap["LOAD_CONST"], dis.opmap.get("BINARY_SUBSCR")]
UNPACKS = dis.opmap["UNPACK_SEQUENCE"]  # v, i = x
_FAR = 24  # bytes of the call's caches (at most 8) and of two instructions


def warn_of_no_pair(name: str, dim: Any) -> None:
    """Warn if the user's line, which called method `name`, is x.max(dim)[0] or v, i = x.max(dim).

    PyTorch's max returns a pair there; here these would silently be rows of the values.
    """
    frame = sys._getframe(3)  # the method's caller: a frame between checks arguments
    if not isinstance(dim, int) or frame.f_globals.get("__name__", "").startswith("minigrad."):
        return
    code = frame.f_code.co_code[frame.f_lasti + 2 :][:_FAR]
    steps = [step for step in zip(code[::2], code[1::2], strict=True) if step[0]]
    said = ""
    if [kind for kind, _ in steps[:2]] == _TAKES_A_PART:
        part = frame.f_code.co_consts[steps[0][1]]
        if part in (0, 1):
            said = f"{name}({dim})[{part}] is row {part} of the values"
    elif steps[:1] == [(UNPACKS, 2)]:
        said = f"a, b = {name}({dim}) gives two rows of the values"
    if said:
        warnings.warn(f"{said}; {hint('v, i, j = x.max(1)')}", stacklevel=4)
