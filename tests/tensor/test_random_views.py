"""Random programs of views and writes, compared with numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest

from minigrad import Tensor, jit
from minigrad.errors import ShapeError


class Play:
    """numpy arrays and Tensors to which the same operations are applied, step by step."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.pairs: list[tuple[np.ndarray, Tensor]] = []

    def start(self) -> None:
        shape = self.choice.choice([(6,), (3, 4), (2, 3, 2)])
        a = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) + len(self.pairs)
        made = self.choice.choice([lambda: Tensor(a), lambda: Tensor(a) + 0])
        self.pairs.append((a, made()))

    def pick(self):
        return self.choice.choice(self.pairs)

    def key(self, shape):
        """A basic index."""
        items = []
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
        (a, x), (_, y) = self.pick(), self.pick()
        kind = self.choice.randrange(3)
        if kind == 0:
            self.pairs.append((a * 3 + 1, x * 3 + 1))
        elif kind == 1:
            self.pairs.append((a.copy(), x.clone()))
        else:
            y.realize()

    def write(self) -> None:
        (a, x), (b, y) = self.pick(), self.pick()
        number, kind = self.choice.randrange(1, 5), self.choice.randrange(6)
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
        elif a.dtype == b.dtype and a.shape[a.ndim - b.ndim :] == b.shape and a.ndim >= b.ndim:
            x.assign(y)
            a[...] = b

    def go(self, steps: int) -> None:
        self.start()
        for _ in range(steps):
            move = self.choice.choices(
                [self.view, self.write, self.compute, self.drop, self.start], [5, 6, 2, 1, 0.3]
            )[0]
            try:
                move()
            except ShapeError as error:
                assert "that is gone" in str(error)
            if self.choice.random() < 0.3:
                self.check(*self.pick())
        for pair in self.pairs:
            self.check(*pair)

    def drop(self) -> None:
        if len(self.pairs) > 1:
            self.pairs.pop(self.choice.randrange(len(self.pairs)))

    def check(self, a, x) -> None:
        assert x.shape == a.shape
        np.testing.assert_array_equal(x.numpy(), a)


@pytest.mark.parametrize("start", range(0, 100, 20))
def test_random_programs(on_device, start):
    for seed in range(start, start + 20):
        print("seed", seed)
        play = Play(seed)
        play.go(25)


def jitted_play(seed: int, turns: int) -> None:
    """A captured step writes to closed-over views in every call; others are written in between."""
    play = Play(seed)
    play.start()
    play.pairs[0][1].realize()
    while len(play.pairs) < 6:
        play.view()
    arrays, tensors = zip(*play.pairs, strict=True)
    writes = [
        (play.choice.randrange(6), play.choice.randrange(1, 5), play.choice.randrange(2))
        for _ in range(3)
    ]

    @jit
    def step(y):
        for place, number, kind in writes:
            x = tensors[place]
            x.assign(x * number + y.cast(x.dtype) if kind else x + number)
        return [x * 2 for x in tensors]

    outside = random.Random(seed)
    for turn in range(turns):
        results = step(Tensor(turn))
        for place, number, kind in writes:
            a = arrays[place]
            a[...] = a * number + np.array(turn).astype(a.dtype) if kind else a + number
        kept = [a * 2 for a in arrays]
        a, x = outside.choice(play.pairs)
        a += 1
        x += 1
        for result, wanted in zip(results, kept, strict=True):
            np.testing.assert_array_equal(result.numpy(), wanted)
        for pair in outside.sample(play.pairs, 3):
            play.check(*pair)


@pytest.mark.parametrize("seed", range(12))
def test_random_captured_steps(on_device, seed):
    jitted_play(seed, 6)
