"""Inputs of operations: their ranges of values, and special values at the edges.

An `Input` is a small description (shape, dtype, domain, layout, seed) from which its methods build
the numpy value and the Tensor. Hypothesis draws and shrinks such descriptions, and a failing test
prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from minigrad import Tensor

from .layouts import LAYOUTS, Shape

NUMPY_DTYPES: dict[str, Any] = {
    name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    for name in (
        "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
        "float16", "bfloat16", "float32", "float64",
    )
}  # fmt: skip
FLOATS = ("float32", "float64", "float16", "bfloat16")
SIGNED = ("int32", "int64", "int8", "int16")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTS = SIGNED + UNSIGNED
NUMBERS = FLOATS + INTS
ALL = (*NUMBERS, "bool")


def is_float(name: str) -> bool:
    """True for the float dtypes (numpy alone would not count bfloat16)."""
    return name in FLOATS


@dataclass(frozen=True)
class Domain:
    """A range of values. `sample(generator, size, dtype, argument)` gives float64 or integers.

    dtype: the dtype that the domain requires (bool for masks, int32 for indices), if any.
    zero: whether 0 is in it. special: whether NaN, infinities, −0 and extreme integers are.
    """

    sample: Callable[[np.random.Generator, int, str, int], np.ndarray]
    dtype: str | None = None
    zero: bool = True
    special: bool = True


def _any(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    if is_float(dtype):
        return g.normal(size=size) * 2
    if dtype == "bool":
        return g.integers(0, 2, size)
    return g.integers(-20 if dtype in SIGNED else 0, 21, size)


def _uniform(low: float, high: float) -> Callable[..., np.ndarray]:
    def sample(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
        if is_float(dtype):
            return g.uniform(low, high, size)
        if dtype == "bool":
            return g.integers(0, 2, size)
        bottom = 0 if dtype in UNSIGNED else int(np.ceil(low))
        return g.integers(max(bottom, int(np.ceil(low))), int(high) + 1, size)

    return sample


def _nonzero(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    if dtype == "bool":
        return np.ones(size, np.int64)
    sign = np.where(g.integers(0, 2, size) == 1, 1, -1)
    if is_float(dtype):
        return sign * g.uniform(0.4, 3, size)
    return (sign if dtype in SIGNED else 1) * g.integers(1, 8, size)


def _wide(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Integers over their whole range; floats over many orders of magnitude."""
    if is_float(dtype):
        return g.normal(size=size) * 10 ** g.uniform(-4, 4, size)
    if dtype == "bool":
        return g.integers(0, 2, size)
    limits = np.iinfo(dtype)
    return g.integers(limits.min, limits.max, size, dtype=dtype, endpoint=True)


def _quarters(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Multiples of 1/4: exact in every float dtype, with ties for rounding and for equality."""
    if not is_float(dtype):
        return _any(g, size, dtype, 0)
    return g.integers(-12, 13, size) / 4


def _off_quarters(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Floats that never come near a multiple of 1/4, where clips and ties have their kinks."""
    return _quarters(g, size, dtype, 0) + (0.11 if is_float(dtype) else 0)


def _nonzero_quarters(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Multiples of 1/4 without 0: divisors whose multiples are not near any of `off_quarters`."""
    values = _quarters(g, size, dtype, 0)
    return np.where(values == 0, 1, values)


def _some_zeros(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Numbers near 1 with a few zeros, so that long products stay moderate."""
    if not is_float(dtype):
        return g.integers(0, 4, size)
    return g.uniform(0.6, 1.4, size) * (g.integers(0, 8, size) > 0)


def _distinct(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """No two values are closer than the step of a finite difference; none is near zero.

    Values of two inputs differ, too, whatever their sizes: each input is offset by a random amount.
    """
    if dtype == "bool":
        return g.integers(0, 2, size)
    values = g.permutation(size) + 1
    if not is_float(dtype):
        return values if dtype in UNSIGNED else values - size // 2
    return (values - (size // 2 + g.uniform(0.6, 0.9))) * (6 / max(size, 6))


def _shift(g: np.random.Generator, size: int, dtype: str, _: int) -> np.ndarray:
    """Shift counts, including the width, larger ones, and negative ones."""
    width = np.dtype(dtype).itemsize * 8
    return g.integers(-2 if dtype in SIGNED else 0, width + 3, size)


def _index(g: np.random.Generator, size: int, dtype: str, limit: int) -> np.ndarray:
    return g.integers(0, max(limit, 1), size)


def _signed_index(g: np.random.Generator, size: int, dtype: str, limit: int) -> np.ndarray:
    return g.integers(-limit, max(limit, 1), size)


DOMAINS: dict[str, Domain] = {
    "any": Domain(_any),
    "wide": Domain(_wide),
    "positive": Domain(_uniform(0.2, 4), zero=False),
    "nonnegative": Domain(_uniform(0, 4)),
    "unit": Domain(_uniform(-0.9, 0.9)),
    "above_one": Domain(_uniform(1.2, 4), zero=False),
    "small": Domain(_uniform(-1.5, 1.5)),
    "probability": Domain(_uniform(0.05, 0.95), zero=False, special=False),
    "angle": Domain(_uniform(-1.3, 1.3)),
    "nonzero": Domain(_nonzero, zero=False),
    "quarters": Domain(_quarters),
    "distinct": Domain(_distinct, zero=False),
    "off_quarters": Domain(_off_quarters, zero=False),
    "nonzero_quarters": Domain(_nonzero_quarters, zero=False),
    "near_one": Domain(_uniform(0.6, 1.4), zero=False),
    "some_zeros": Domain(_some_zeros),
    "exponent": Domain(_uniform(-2, 3)),
    "shift": Domain(_shift, special=False),
    "mask": Domain(lambda g, size, dtype, _: g.integers(0, 2, size), dtype="bool", special=False),
    "index": Domain(_index, dtype="int32", special=False),
    "signed_index": Domain(_signed_index, dtype="int32", special=False),
}

_FLOAT_SPECIALS = (np.nan, -0.0, 0.0, np.inf, -np.inf)


def specials(dtype: str) -> list[Any]:
    """The special values of a dtype."""
    if is_float(dtype):
        return list(_FLOAT_SPECIALS)
    if dtype == "bool":
        return [True, False]
    limits = np.iinfo(dtype)
    return [limits.min, limits.max, 0, limits.max - 1, -1 if limits.min else 1]


@dataclass(frozen=True)
class Input:
    """One operand. The domain may have a number after a colon: "index:5" means indices below 5."""

    shape: Shape
    dtype: str = "float32"
    domain: str = "any"
    layout: str = "contiguous"
    seed: int = 0
    special: bool = False

    def base(self) -> np.ndarray:
        """The base array, of which the operand is a view: each time a new copy."""
        return self._drawn().copy()

    @lru_cache(1024)  # a check asks for each operand five times
    def _drawn(self) -> np.ndarray:
        name, _, number = self.domain.partition(":")
        shape = LAYOUTS[self.layout].base_shape(self.shape)
        size = int(np.prod(shape, dtype=np.int64))
        generator = np.random.default_rng([self.seed, *self.shape])
        values = DOMAINS[name].sample(generator, size, self.dtype, int(number or 0))
        array = np.asarray(values).astype(NUMPY_DTYPES[self.dtype]).reshape(shape)
        if self.special and DOMAINS[name].special:
            self._put_specials(array, generator)
        return array

    def _put_specials(self, base: np.ndarray, generator: np.random.Generator) -> None:
        """Put special values into the first and last lanes of the view, if it is writable."""
        view = LAYOUTS[self.layout].numpy_view(base, self.shape)
        aliased = np.shares_memory(view, base) and view.flags.writeable
        where = view if aliased and view.shape else base
        choices = specials(self.dtype)
        lanes = sorted({lane for lane in (0, 1, where.size - 2, where.size - 1) if lane >= 0})
        for lane in lanes[: where.size]:
            where.flat[lane] = choices[int(generator.integers(len(choices)))]

    def array(self) -> np.ndarray:
        """The operand's value."""
        return LAYOUTS[self.layout].numpy_view(self.base(), self.shape)

    def tensor(self, device: str) -> Tensor:
        """The operand as a Tensor: a lazy view of a realized base."""
        base = Tensor(self.base(), device=device)
        view: Tensor = LAYOUTS[self.layout].tensor_view(base, self.shape)
        return view
