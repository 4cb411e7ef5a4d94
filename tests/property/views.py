"""Random programs of views and writes, compared with numpy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.errors import ShapeError


class Play:
    """numpy arrays and Tensors to which the same operations are applied, step by step."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.pairs: list[tuple[np.ndarray, Tensor]] = []

    def start(self) -> None:
        """A new array, in memory or computed."""
        shape = self.choice.choice([(6,), (3, 4), (2, 3, 2)])
        a = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) + len(self.pairs)
        made = self.choice.choice([lambda: Tensor(a), lambda: Tensor(a) + 0])
        self.pairs.append((a, made()))

    def pick(self) -> tuple[np.ndarray, Tensor]:
        """One of the pairs."""
        return self.choice.choice(self.pairs)

    def key(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """A basic index."""
        items: list[Any] = []
        for extent in shape[: self.choice.randint(0, len(shape))]:
            kind = self.choice.random()
            if kind < 0.25 and extent:
                items.append(self.choice.randrange(-extent, extent))
            else:
                ends = [self.choice.choice([None, *range(-extent, extent + 1)]) for _ in "ab"]
                items.append(slice(*ends, self.choice.choice([None, 1, 2, -1, -2])))
        if self.choice.random() < 0.2:
            items.insert(0, None)
        return (*items, ...)

    def view(self) -> None:
        """A view of one of them."""
        a, x = self.pick()
        kind = self.choice.randrange(6)
        if kind <= 2:
            key = self.key(a.shape)
            b, y = a[key], x[key]
        elif kind == 3:
            order = self.choice.sample(range(a.ndim), a.ndim)
            b, y = a.transpose(order), x.permute(*order)
        elif kind == 4:
            b = a.reshape(self.choice.choice([(-1,), (1, *a.shape), a.shape[::-1]]))
            if not np.shares_memory(a, b):  # ours is a view where numpy has to copy
                return
            y = x.reshape(b.shape)
        else:
            other = np.uint32 if a.dtype == np.int32 else np.int32
            b, y = a.view(other), x.bitcast(other.__name__)
        self.pairs.append((b, y))

    def compute(self) -> None:
        """A new value, a copy, or a realization."""
        (a, x), (_, y) = self.pick(), self.pick()
        kind = self.choice.randrange(4)
        if kind == 0:
            self.pairs.append((a * 3 + 1, x * 3 + 1))
        elif kind == 1:
            self.pairs.append((a.copy(), x.clone()))
        elif kind == 2:
            y.realize()
        else:
            Tensor.realize(*(tensor for _, tensor in self.pairs))

    def write(self) -> None:
        """A write to one of them, or to a part of it."""
        (a, x), (b, y) = self.pick(), self.pick()
        number, kind = self.choice.randrange(1, 5), self.choice.randrange(7)
        if kind == 0:
            x += number
            np.add(a, number, a)
        elif kind == 1:
            x *= number
            np.multiply(a, number, a)
        elif kind == 2:
            key = self.key(a.shape)
            x[key] += number
            a[key] += number
        elif kind == 3 and a.ndim and len(a) > 1:
            places = [0, -1]
            x[places] = number
            a[places] = number
        elif kind == 4:
            x.set_data(a * 2)
            a[...] = a * 2
        elif a.dtype != b.dtype:
            return
        elif kind == 6:
            self.write_part(a, x)
        elif a.shape[a.ndim - b.ndim :] == b.shape and a.ndim >= b.ndim:
            x.assign(y)
            a[...] = b

    def write_part(self, a: np.ndarray, x: Tensor) -> None:
        """From elements of one of equal shape; they may lie in the same memory."""
        alike = [p for p in self.pairs if (p[0].shape, p[0].dtype) == (a.shape, a.dtype)]
        b, y = self.choice.choice(alike)
        if not a.ndim or not len(a):
            return
        i, j = (self.choice.randrange(len(a)) for _ in "ab")
        kind = self.choice.randrange(4)
        if kind == 0:
            x -= y
            np.subtract(a, b, a)
        elif kind == 1:
            x[i] = y[j]
            a[i] = b[j].copy()
        elif kind == 2:
            x[1:] = y[:-1]
            a[1:] = b[:-1].copy()
        else:
            x[: i + 1] = y[: i + 1] + 1
            a[: i + 1] = b[: i + 1] + 1

    def go(self, steps: int) -> None:
        """Random steps; then, and now and then between, the values must be equal."""
        self.start()
        for _ in range(steps):
            move = self.choice.choices(
                [self.view, self.write, self.compute, self.drop, self.start], [5, 6, 2, 1, 0.3]
            )[0]
            try:
                move()
            except ShapeError as error:
                assert "no longer exists" in str(error)
            if self.choice.random() < 0.3:
                self.check(*self.pick())
        for pair in self.pairs:
            self.check(*pair)

    def drop(self) -> None:
        """One of them is forgotten."""
        if len(self.pairs) > 1:
            self.pairs.pop(self.choice.randrange(len(self.pairs)))

    def check(self, a: np.ndarray, x: Tensor) -> None:
        """Equal shapes and values."""
        assert x.shape == a.shape
        np.testing.assert_array_equal(x.numpy(), a)
