"""Index keys that mix everything numpy allows: ints, slices, None, …, several arrays, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from minigrad import Tensor

from .layouts import Shape

STEPS = (None, 1, 2, -1, -2, 3, -3)


def _slice(draw: Any, n: int) -> slice:
    bound = st.none() | st.integers(-n - 2, n + 2)
    return slice(draw(bound), draw(bound), draw(st.sampled_from(STEPS)))


def _integers(draw: Any, n: int, shape: Shape) -> Any:
    """An array, or a list, of indices into an axis of n elements; it broadcasts with the others."""
    cut = shape[draw(st.integers(0, len(shape))) :]
    count = int(np.prod(cut, dtype=np.int64))
    values = draw(st.lists(st.integers(-n, n - 1), min_size=count, max_size=count))
    array = np.array(values, np.int32).reshape(cut)
    return array.tolist() if cut and draw(st.integers(0, 3)) == 0 else array


def _mask(draw: Any, shape: Shape) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return np.array(bits, np.bool_).reshape(shape)


@st.composite
def mixed(draw: Any) -> tuple[Shape, tuple[Any, ...]]:
    """A shape and a key that numpy accepts for it."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    common = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    key: list[Any] = []
    axis = 0
    while axis < len(shape) and draw(st.integers(0, 9)):
        n = shape[axis]
        kind = draw(st.sampled_from(("int", "slice", "none", "array", "array", "mask")))
        if kind == "none":
            key.append(None)
            continue
        if kind == "mask":
            wide = draw(st.integers(1, min(2, len(shape) - axis)))
            key.append(_mask(draw, shape[axis : axis + wide]))
            axis += wide
            continue
        if kind == "int":
            key.append(draw(st.integers(-n, n - 1)))
        else:
            key.append(_slice(draw, n) if kind == "slice" else _integers(draw, n, common))
        axis += 1
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), Ellipsis)
    return shape, tuple(key)


def accepted(given: tuple[Shape, tuple[Any, ...]]) -> bool:
    """Whether numpy can broadcast the key's arrays, including masks."""
    try:
        np.empty(given[0])[given[1]]
    except IndexError:
        return False
    return True


def of(x: Any, key: tuple[Any, ...]) -> tuple[Any, ...]:
    """The key for x: if x is a Tensor, its arrays become tensors on the same device."""
    if not isinstance(x, Tensor):
        return key
    return tuple(
        Tensor(item, device=x.device) if isinstance(item, np.ndarray) else item for item in key
    )
