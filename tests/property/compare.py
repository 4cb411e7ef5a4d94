"""When two results agree: equal dtype, shape, NaNs and infinities, and values close enough.

A `Tolerance` says how close, in units of the dtype's rounding error, never as a bare number: a
bound that holds for float32 then holds for float16 and float64, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

REFERENCE = "REF"  # the device whose results define those of all others
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# The smallest normal number: below it, an error is counted in units of the smallest step.
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
LEVEL = 16  # rounding errors per level of a sum: equal terms are all rounded in one direction


@dataclass(frozen=True)
class Tolerance:
    """How far two float results may differ.

    ulps: rounding errors relative to each element. scale: rounding errors relative to the largest
    magnitude among operands and results, where a sum may cancel. terms: for a sum of n terms in any
    order, so many more, in the accumulator's precision (float32 for the two half types), times n of
    that magnitude or, if less, LEVEL times log₂ n of it, for a sum in levels (see
    minigrad/loops/assemble.py), plus √n of the operands' magnitude, for terms of either sign.
    All 0: bit for bit, including the sign of zero if `signed_zero`.
    """

    ulps: float = 0
    scale: float = 0
    terms: float = 0
    signed_zero: bool = True

    @property
    def exact(self) -> bool:
        """True if the results must be equal."""
        return not (self.ulps or self.scale or self.terms)

    def bound(
        self, expected: np.ndarray, dtype: str, magnitude: float, operand: float, summands: float
    ) -> np.ndarray:
        """The largest allowed difference of each element.

        magnitude: the largest of operands and results; operand: the largest of operands.
        """
        epsilon = EPSILON[dtype]
        accumulator = min(epsilon, EPSILON["float32"])
        relative = self.ulps * epsilon * np.maximum(np.abs(expected), TINY[dtype])
        absolute = self.scale * epsilon * magnitude
        in_order = summands * magnitude
        in_levels = math.log2(1 + summands) * magnitude + math.sqrt(summands) * operand
        absolute += self.terms * accumulator * min(in_order, LEVEL * in_levels)
        return np.asarray(relative + absolute)


EXACT = Tolerance()


def name_of(array: np.ndarray) -> str:
    """The dtype's name in minigrad."""
    return str(array.dtype)


def largest(*arrays: np.ndarray) -> float:
    """The largest finite magnitude in any of the arrays, at least 1."""
    most = 1.0
    for array in arrays:
        values = np.abs(np.asarray(array, np.float64))
        finite = values[np.isfinite(values)]
        if finite.size:
            most = max(most, float(finite.max()))
    return most


def _describe(actual: np.ndarray, expected: np.ndarray, wrong: np.ndarray, what: str) -> str:
    places = np.argwhere(wrong)
    lines = [f"{what}: {len(places)} of {wrong.size} elements of shape {wrong.shape} differ"]
    for place in places[:4]:
        index = tuple(int(i) for i in place)
        lines.append(f"  at {index}: got {actual[index]!r}, expected {expected[index]!r}")
    return "\n".join(lines)


def _same_bits(actual: np.ndarray, expected: np.ndarray, signed_zero: bool) -> np.ndarray:
    """Equal, with NaN equal to NaN and, if `signed_zero`, −0 different from +0."""
    if name_of(expected) not in EPSILON:
        return np.asarray(actual == expected)
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    signs = (np.signbit(a) == np.signbit(e)) | (not signed_zero)
    return np.asarray((np.isnan(a) & np.isnan(e)) | ((a == e) & signs))


def difference(
    actual: np.ndarray,
    expected: np.ndarray,
    tolerance: Tolerance,
    operands: tuple[np.ndarray, ...] = (),
    summands: float = 1,
) -> str | None:
    """The difference between the two, or None. Dtypes must be the same; integers must be equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    dtype = name_of(expected)
    if actual.shape != expected.shape or name_of(actual) != dtype:
        return f"got {actual.shape} {name_of(actual)}, expected {expected.shape} {dtype}"
    if dtype not in EPSILON or tolerance.exact:
        wrong = ~_same_bits(actual, expected, tolerance.signed_zero)
        return _describe(actual, expected, wrong, "not equal") if wrong.any() else None
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        finite = np.isfinite(a) & np.isfinite(e)
        same = (np.isnan(a) & np.isnan(e)) | (a == e)
        operand = largest(*(o for o in operands if name_of(o) in EPSILON))
        magnitude = max(largest(expected), operand)
        near = np.abs(a - e) <= tolerance.bound(e, dtype, magnitude, operand, summands)
    wrong = ~(same | (finite & near))
    if not wrong.any():
        return None
    worst = float(np.max(np.where(finite & wrong, np.abs(a - e), 0), initial=0))
    return _describe(actual, expected, wrong, f"too far (largest difference {worst:.3g})")
