"""Random programs of views and writes, also of captured steps, compared with numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from property.views import Play

from minigrad import Tensor, jit


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
