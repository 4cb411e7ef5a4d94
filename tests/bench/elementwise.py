"""Elementwise work on large arrays: bound by memory, or by the vector math of a GELU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minigrad import Tensor, jit
from tests.bench.measure import Row
from tests.bench.peers import jax_work, numpy_work, torch_work

MILLION = 1 << 20


def rows(threads: int) -> Iterator[Row]:
    """add, gelu and a fused sum over 16M floats."""
    generator = np.random.default_rng(0)
    a, b, c = (generator.standard_normal(16 * MILLION, dtype=np.float32) for _ in range(3))
    x, y, z = (Tensor(array).realize() for array in (a, b, c))

    add = jit(lambda x, y: (x + y).realize())
    yield Row(
        "add 16M", lambda: add(x, y),
        {**torch_work(lambda a, b: a + b, a, b, threads=threads, compiled=True),
         **numpy_work(lambda a, b: a + b, a, b), **jax_work(lambda a, b: a + b, a, b)},
        bytes=12 * a.size, goal=1.3,
    )  # fmt: skip

    gelu = jit(lambda x: x.gelu().realize())

    def torch_gelu(a):
        import torch

        return torch.nn.functional.gelu(a, approximate="tanh")

    def jax_gelu(a):
        import jax

        return jax.nn.gelu(a, approximate=True)

    yield Row(
        "gelu (tanh) 16M", lambda: gelu(x),
        {**torch_work(torch_gelu, a, threads=threads, compiled=True), **jax_work(jax_gelu, a)},
        bytes=8 * a.size, goal=3.0,
    )  # fmt: skip

    fused = jit(lambda x, y, z: (x * y + z).relu().sum().realize())
    yield Row(
        "Σ relu(a·b + c) 16M", lambda: fused(x, y, z),
        {**torch_work(lambda a, b, c: (a * b + c).relu().sum(), a, b, c, threads=threads,
                      compiled=True),
         **jax_work(lambda a, b, c: ((a * b + c) * (a * b + c > 0)).sum(), a, b, c)},
        bytes=12 * a.size, goal=1.2, reads_only=True,
    )  # fmt: skip
