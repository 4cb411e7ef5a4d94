"""Draws from given weights, and random orders."""

from __future__ import annotations

import sys
from typing import Any, Self

from minigrad.dtype import DType, dtypes
from minigrad.errors import DTypeError, ShapeError
from minigrad.graph.symbolic import Affine
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import show
from minigrad.tensor.random import _draw


class Sampling(Composed):
    """Random choices: lazy, and drawn anew by each call as in `Random`."""

    __slots__ = ()

    def randint_like(self, low: int = 0, high: int = 10, **options: Any) -> Self:
        """Integers in low … high − 1; shape, dtype and device of self.

        >>> Tensor([1, 2]).randint_like(3, 4).tolist()
        [3, 3]
        """
        options = {"dtype": self.dtype, "device": self.raw.device, **options}
        return self.randint(self.shape, low=low, high=high, **options)

    @classmethod
    def randperm(
        cls, n: int, *, dtype: DType | str | None = None, device: str | None = None
    ) -> Self:  # fmt: skip
        """0 … n − 1 in a random order, each order as likely as any other; int32.

        >>> Tensor.randperm(3).sort()[0].tolist()
        [0, 1, 2]
        """
        if n < 0:
            raise ShapeError(f"randperm({n}): expected an int ≥ 0")
        first, second = (cls._of(word) for word in _draw("randperm", (n,), device))
        keys = (first.cast(dtypes.uint64) << 32) | second.cast(dtypes.uint64)
        order = keys.argsort(0)  # int32
        return cls._made((order if dtype is None else order.cast(dtype)).node, None, drawn=True)

    def multinomial(self, num_samples: int = 1, replacement: bool = False) -> Self:
        """Positions (int32) drawn with probabilities in proportion to the weights in self.

        self is (categories,), or (rows, categories) for draws of each row; weights are finite, ≥ 0
        and in no row all 0 (DomainError, when that is computed). Without replacement no category is
        drawn twice, and one of weight 0 only when no others are left.

        >>> Tensor([0.0, 1.0]).multinomial().tolist()
        [1]
        """
        self._check_draws(num_samples, replacement)
        rows = self._weights()
        draw = rows._with_replacement if replacement else rows._without_replacement
        drawn = draw(num_samples)
        return self._made((drawn.squeeze(0) if self.ndim == 1 else drawn).node, None, drawn=True)

    def _weights(self) -> Self:
        """(rows, categories) in float64, each ≥ 0 and in each row one > 0."""
        rows = self.detach().cast(dtypes.float64)
        rows = rows.unsqueeze(0) if self.ndim == 1 else rows
        limits = sys.float_info
        rows = rows._within("multinomial", "no weight", "finite numbers ≥ 0", 0.0, limits.max)
        largest = rows.max(1, keepdim=True)._within(
            "multinomial", "the largest weight of a row", "one > 0", limits.min, limits.max
        )
        return (largest > 0).where(rows, 0)  # which it is: so the draws depend on it

    def _check_draws(self, count: int, replacement: bool) -> None:
        if self.ndim not in (1, 2) or any(isinstance(e, Affine) or not e for e in self.shape):
            raise ShapeError(
                f"multinomial of weights of shape {show(self.shape)}; expected (categories,) or "
                "(rows, categories)"
            )
        if self.dtype.is_bool:
            raise DTypeError("multinomial of bool weights: expected numbers; use .float()")
        if count < 1 or (not replacement and count > self.shape[-1]):  # type: ignore[operator]
            limit = "1 or more" if replacement else f"1 … {self.shape[-1]} without replacement"
            raise ValueError(f"multinomial(num_samples={count}): expected {limit}")

    def _with_replacement(self, count: int) -> Self:
        """The first category whose running sum exceeds a uniform part of the total."""
        until = self.cumsum(1)
        total = until[:, -1:]
        words = _draw("multinomial", (self.shape[0], count), self.raw.device)
        shares = (self._unit(*words) * total).unsqueeze(-1)
        place = (until.unsqueeze(1) <= shares).sum(-1, dtype=dtypes.int32)
        # rounding may have made a share the total itself
        return place.minimum((until < total).sum(-1, keepdim=True, dtype=dtypes.int32))

    def _without_replacement(self, count: int) -> Self:
        """Of exponential waiting times of these rates the shortest (Efraimidis, Spirakis 2006)."""
        words = _draw("multinomial", self.shape, self.raw.device)
        waiting = -self._unit(*words).log() / self
        if count == 1:
            return waiting.argmin(1, keepdim=True)
        return waiting.topk(count, 1, largest=False)[1]

    def _unit(self, first: Any, second: Any) -> Self:
        """float64 between 0 and 1, never one of the two."""
        high = self._new(first).cast(dtypes.float64)
        low = (self._new(second) >> 12).cast(dtypes.float64)
        return (high * 2.0**20 + low + 0.5) * 2.0**-52
