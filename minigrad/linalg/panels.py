"""Matrix algorithms as programs: captured once per shape, then replayed.

A matrix is processed in panels of a few columns; the effect of a panel on all others is a product.
The panels are a scan, and each step has the columns of one panel. Columns differ only in their
number, which is read from memory, so all of them share the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from typing import Any

from minigrad.dtype import promote
from minigrad.graph.node import device_of
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import ceildiv
from minigrad.jit import jit
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import broadcast_shape
from minigrad.tensor.history import has_history
from minigrad.tensor.modes import no_grad
from minigrad.tensor.sharding import layout_of

PANEL = 16  # columns: float32 numbers in a vector of 512 bits

Function = Callable[..., tuple[Tensor, ...]]
Step = Callable[[Tensor, Tensor, int], tuple[Tensor, Any]]


def at_once(function: Function, *values: Tensor, **numbers: int) -> tuple[Tensor, ...]:
    """function(*values, **numbers), computed at once by the program for these shapes and numbers.

    Values are (…, rows, columns), with leading extents that broadcast. `function` gets (batch,
    rows, columns) in at least float32, and its results begin with the batch. Results have the
    common dtype of the values.
    """
    device_of("linalg", [value.raw for value in values])
    with no_grad():
        given = [value.contiguous() for value in values]
        given[0].realize(*given[1:])
        # on a mesh a program is specific to a layout
        known = tuple((value.shape, value.dtype, layout_of(value.raw)) for value in given)
        return _captured(function, given[0].raw.device, known, tuple(numbers.items()))(*given)


def stored(x: Tensor) -> Tensor:
    """The values of x as memory of their own, for a gradient rule.

    The x that a rule is given is a graph from the leaves, which would be computed again.
    """
    with no_grad():
        return x.clone() if has_history(x.raw) else x.contiguous()


@lru_cache(maxsize=64)
def _captured(
    function: Function, device: str, known: Any, numbers: tuple[tuple[str, int], ...]
) -> Function:
    leading = broadcast_shape("linalg", *(shape[:-2] for shape, *_ in known))
    batch, dtype = numel(leading), reduce(promote, [dtype for _, dtype, _ in known])

    def flat(value: Tensor) -> Tensor:
        matrix = value.shape[-2:]
        return value._wide().expand((*leading, *matrix)).reshape((batch, *matrix))

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        with no_grad():
            found = function(*map(flat, values), **dict(numbers))
            whole = (one.reshape((*leading, *one.shape[1:])) for one in found)
            results = tuple(one.cast(dtype).contiguous() for one in whole)
            results[0].realize(*results[1:])
        return results

    return jit(call)


def missing(columns: int) -> int:
    """How many columns are missing to fill the last panel; one to begin one, if there are none."""
    return -columns % min(columns, PANEL) if columns else 1


def by_panels(step: Step, s: Tensor, columns: int) -> tuple[Tensor, Any]:
    """s after a step for each panel of its first columns, and the steps' second results, stacked.

    A step is given s, the number (1,) of the panel's first column, and the panel's width.
    """
    width = max(min(columns, PANEL), 1)
    firsts = s.arange(ceildiv(columns, width), device=s.device) * width
    return Tensor.scan(lambda s, first: step(s, first, width), s, firsts.unsqueeze(1))


def numbers(k: Tensor, count: int) -> Iterator[Tensor]:
    """k, k + 1, … k + count − 1, in memory: constants would give each column its own kernels."""
    for _ in range(count):
        yield k
        k = (k + 1).contiguous()


def columns_at(x: Tensor, k: Tensor, count: int = 1) -> Tensor:
    """Columns k … k + count − 1 of x (batch, n, m)."""
    places = (k + x.arange(count, device=x.device)).reshape(1, 1, count)
    return x._at(2, places.expand(x.shape[0], x.shape[1], count))


def rows_at(x: Tensor, k: Tensor, count: int = 1) -> Tensor:
    """Rows k … k + count − 1 of x (batch, n, m)."""
    places = (k + x.arange(count, device=x.device)).reshape(1, count, 1)
    return x._at(1, places.expand(x.shape[0], count, x.shape[2]))


def inverse_of_triangle(r: Tensor) -> Tensor:
    """The inverse of upper triangular matrices (…, n, n), by products of blocks of doubling size.

    A 0 on the diagonal counts as infinite: its row of the inverse is 0.
    """
    n = r._known_shape()[-1]
    place = r.arange(n, device=r.device)
    row, column = place.unsqueeze(1), place
    on = row.eq(column)
    inverse = on.where(r.eq(0).where(0.0, 1 / (on & r.ne(0)).where(r, 1.0)), 0.0)
    size = 1
    while size < n:
        above = (row // size).eq(column // size - 1) & (row // size % 2).eq(0)
        inverse = inverse - inverse @ (above.where(r, 0.0) @ inverse)
        size *= 2
    return inverse
