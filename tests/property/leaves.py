"""The data of random programs: typical values, and values that have found bugs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]
Generator = np.random.Generator

# Around the block sizes of recipes: vectors, blocks of rows, panels, pieces of k.
LARGE = (63, 64, 65, 95, 97, 127, 128, 129, 191, 193, 255, 256, 257, 383, 385, 511, 513)
# Around block sizes of long axes: running sums, parts of a long sum, chunks of a sort.
LONG = (1023, 4095, 4096, 4097, 16385, 32767, 32769, 1 << 17, (1 << 18) + 3)

# Values behind masks: any reader's result shows them. 1e30 is finite, but its square is not.
POISON = (np.nan, np.inf, -np.inf, 1e30, -1e30)


def _eighths(g: Generator, shape: Shape) -> np.ndarray:
    """Multiples of 1/8 up to 4: exact in every float dtype."""
    return g.integers(-32, 33, shape) / 8


def _ties(g: Generator, shape: Shape) -> np.ndarray:
    """Few different values, most of them exactly 0."""
    return g.choice((-1, -0.5, 0, 0, 0, 0.5, 1), shape)


def _rows(g: Generator, shape: Shape) -> np.ndarray:
    """Equal rows, some of them replaced by zeros; norms and deviations of those are 0."""
    values = np.broadcast_to(_eighths(g, shape[-1:]), shape).copy()
    if len(shape) > 1 and shape[-2]:
        values[..., g.integers(0, 3) :: 3, :] = 0
    return values


def _equal(g: Generator, shape: Shape) -> np.ndarray:
    """0.1 in float32 everywhere: a running sum of many is soon too large to add one exactly."""
    return np.full(shape, np.float64(np.float32(0.1)))


def _parts(g: Generator, shape: Shape) -> np.ndarray:
    """Numbers in 0 … 1 that use all the bits of a float32."""
    return g.random(shape, np.float32).astype(np.float64)


def _offset(g: Generator, shape: Shape) -> np.ndarray:
    """Eighths far from 0: their variance is small compared with the square of their mean."""
    return _eighths(g, shape) + 1000


FLOATS: dict[str, Callable[[Generator, Shape], np.ndarray]] = {
    "eighths": _eighths, "ties": _ties, "rows": _rows, "equal": _equal, "parts": _parts,
    "offset": _offset,
}  # fmt: skip
BOUNDS = {"eighths": 4.0, "ties": 1.0, "rows": 4.0, "equal": 1.0, "parts": 1.0, "offset": 1004.0}
# Kinds whose values have few bits, so that their sums, casts and comparisons are exact.
EXACT_KINDS = ("eighths", "ties", "rows")


def floats(generator: Generator, shape: Shape, kind: str) -> np.ndarray:
    """Values of a kind; "poison:n": eighths, with POISON in the rows (elements) from n on."""
    name, _, number = kind.partition(":")
    if name != "poison":
        return FLOATS[name](generator, shape)
    values = _eighths(generator, shape).astype(np.float64)
    hidden = values[..., int(number) :, :] if len(shape) > 1 else values[int(number) :]
    hidden[...] = np.resize(POISON, hidden.shape)
    return values


def integers(generator: Generator, shape: Shape, limit: int, kind: str) -> np.ndarray:
    """Indices 0 … limit − 1; kind "ends": also −limit … −1, with both ends included."""
    if kind != "ends":
        return generator.integers(0, limit, shape)
    values = generator.integers(-limit, limit, shape)
    if values.size:
        values.flat[0], values.flat[-1] = limit - 1, -limit
    return values
