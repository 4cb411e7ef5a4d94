"""Contractions: matrix products of all sizes and layouts, with epilogues, and in other dtypes.

Several small products are measured in a row: ours in one captured call, JAX's in one compiled
function, numpy's and PyTorch's by one call each. So each library's own overhead per call is
included. `python -m tests.bench.random_products` compares random shapes with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, dtypes, jit
from tests.bench.measure import Row, Work
from tests.bench.peers import installed, jax_work, numpy_work, torch_work

Function = Callable[..., Any]
generator = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random float32."""
    return generator.standard_normal(shape, dtype=np.float32)


def captured(function: Function, *arrays: np.ndarray) -> Work:
    """`function` of our tensors, captured."""
    tensors = [Tensor(array).realize() for array in arrays]
    step = jit(lambda *xs: function(*xs).realize())
    return lambda: step(*tensors)


def product(
    name: str, function: Function, *arrays: np.ndarray, threads: int, flops: float = 0.0,
    nbytes: float = 0.0, goal: float | None = None,
) -> Row:  # fmt: skip
    """A row for a function that is written the same way for all libraries."""
    peers = {
        **numpy_work(function, *arrays),
        **torch_work(function, *arrays, threads=threads),
        **jax_work(function, *arrays),
    }
    return Row(name, captured(function, *arrays), peers, flops, nbytes, goal, reads_only=True)


def rows(threads: int) -> Iterator[Row]:
    """Every contraction of the table, large and small."""
    yield from squares(threads)
    yield from layouts(threads)
    yield from vectors(threads)
    yield from epilogues(threads)
    yield from batches(threads)
    yield from other_dtypes(threads)


def squares(threads: int) -> Iterator[Row]:
    """Products of n × n matrices."""
    for n in (512, 1024, 2048):
        a, b = normal(n, n), normal(n, n)
        yield product(f"{n}³", lambda a, b: a @ b, a, b, threads=threads, flops=2 * n**3, goal=1.05)
    turned, b = normal(1024, 1024), normal(1024, 1024)
    yield product(
        "1024³, Aᵀ·B", lambda a, b: a.T @ b, turned, b, threads=threads, flops=2 * 1024**3,
        goal=1.05,
    )  # fmt: skip
    for n, count in ((64, 16), (128, 8), (256, 4)):
        yield in_a_row(f"{n}³", count, (n, n), (n, n), threads, lambda a, b: a @ b, 2 * n**3, 1.0)


def in_a_row(
    name: str, count: int, left: tuple[int, ...], right: tuple[int, ...], threads: int,
    function: Function, flops: float, goal: float,
) -> Row:  # fmt: skip
    """`count` products of different matrices, one after the other."""
    pairs = [(normal(*left), normal(*right)) for _ in range(count)]
    ours = [(Tensor(a).realize(), Tensor(b).realize()) for a, b in pairs]
    step = jit(lambda *xs: Tensor.realize(*(function(a, b) for a, b in each(xs))))
    flat = [x for pair in ours for x in pair]
    peers: dict[str, Work] = {"numpy": lambda: [function(a, b) for a, b in pairs]}
    if installed("torch"):
        import torch

        tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]
        peers["torch"] = lambda: [function(a, b) for a, b in tensors]
    everything = [x for pair in pairs for x in pair]
    peers |= jax_work(lambda *xs: [function(a, b) for a, b in each(xs)], *everything)
    return Row(f"{count} × {name} in a row", lambda: step(*flat), peers, count * flops, 0.0, goal)


def each(flat: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Neighbours, as pairs."""
    return zip(flat[::2], flat[1::2], strict=True)


def layouts(threads: int) -> Iterator[Row]:
    """Rectangles, with either operand transposed."""
    for m, k, n in ((2048, 384, 1536), (2048, 1536, 384)):
        a, b, flops = normal(m, k), normal(k, n), 2 * m * k * n
        name = f"{m}×{k}×{n}"
        yield product(
            f"{name}, A·B", lambda a, b: a @ b, a, b, threads=threads, flops=flops, goal=1.05
        )
        turned = np.ascontiguousarray(b.T)
        yield product(
            f"{name}, A·Bᵀ", lambda a, b: a @ b.T, a, turned, threads=threads, flops=flops,
            goal=1.05,
        )  # fmt: skip
        turned = np.ascontiguousarray(a.T)
        yield product(
            f"{name}, Aᵀ·B", lambda a, b: a.T @ b, turned, b, threads=threads, flops=flops,
            goal=1.05,
        )  # fmt: skip
    a, b = normal(256, 768), normal(768, 50257)
    flops = 2 * 256 * b.size
    yield product(
        "256×768×50257, A·B", lambda a, b: a @ b, a, b, threads=threads, flops=flops, goal=1.0
    )
    turned = np.ascontiguousarray(b.T)
    yield product(
        "256×768×50257, A·Bᵀ", lambda a, b: a @ b.T, a, turned, threads=threads, flops=flops,
        goal=1.0,
    )  # fmt: skip


def vectors(threads: int) -> Iterator[Row]:
    """A vector, or a few rows, times a matrix in both layouts."""
    for n in (3072, 50257):
        weight, turned = normal(768, n), normal(n, 768)
        for m in (1, 4):
            x = normal(m, 768)
            for name, function, matrix in (
                ("x·W", lambda x, w: x @ w, weight),
                ("x·Wᵀ", lambda x, w: x @ w.T, turned),
            ):
                yield product(
                    f"{m}×768×{n}, {name}", function, x, matrix, threads=threads,
                    flops=2 * m * weight.size, nbytes=4 * (weight.size + m * n), goal=1.0,
                )  # fmt: skip


def epilogues(threads: int) -> Iterator[Row]:
    """gelu(x·W + b)."""
    x, w, b = normal(2048, 384), normal(384, 1536), normal(1536)

    def torch_gelu(x, w, b):
        import torch

        return torch.nn.functional.gelu(torch.addmm(b, x, w), approximate="tanh")

    def jax_gelu(x, w, b):
        import jax

        return jax.nn.gelu(x @ w + b, approximate=True)

    peers = {
        **torch_work(torch_gelu, x, w, b, threads=threads, compiled=True),
        **jax_work(jax_gelu, x, w, b),
    }
    yield Row(
        "gelu(x·W + b) 2048×384×1536", captured(lambda x, w, b: (x @ w + b).gelu(), x, w, b),
        peers, 2 * x.shape[0] * w.size, 0.0, 1.25,
    )  # fmt: skip


def batches(threads: int) -> Iterator[Row]:
    """Attention heads, and gradients of weights."""
    for heads, t in ((48, 256), (48, 64)):
        q, k = normal(heads, t, 64), normal(heads, t, 64)
        flops = 2 * heads * t * t * 64
        yield product(
            f"{heads} × q·kᵀ of {t}×64×{t}", lambda q, k: q @ k.swapaxes(1, 2)
            if hasattr(q, "swapaxes") else q @ k.transpose(1, 2), q, k,
            threads=threads, flops=flops, goal=1.0,
        )  # fmt: skip
        p, v = normal(heads, t, t), normal(heads, t, 64)
        yield product(
            f"{heads} × p·v of {t}×{t}×64", lambda p, v: p @ v, p, v,
            threads=threads, flops=flops, goal=1.0,
        )  # fmt: skip
    for batch in (32, 512):
        yield in_a_row(
            f"xᵀ·g 784×{batch}×16", 8, (batch, 784), (batch, 16), threads,
            lambda x, g: x.T @ g, 2 * 784 * 16 * batch, 1.0,
        )  # fmt: skip


def other_dtypes(threads: int) -> Iterator[Row]:
    """float64, float16 and bfloat16 (the last two with sums in float32); int8 with exact sums."""
    n = 1024
    a, b = generator.standard_normal((n, n)), generator.standard_normal((n, n))
    double = Row(
        f"{n}³ float64", captured(lambda a, b: a @ b, a, b),
        {**numpy_work(lambda a, b: a @ b, a, b),  # JAX would convert it to float32
         **torch_work(lambda a, b: a @ b, a, b, threads=threads)},
        4 * n**3, 0.0, 1.05,
    )  # fmt: skip
    yield double
    for name, dtype in (("float16", dtypes.float16), ("bfloat16", dtypes.bfloat16)):
        x, y = (Tensor(z.astype(np.float32)).cast(dtype).realize() for z in (a, b))
        step = jit(lambda x, y: (x @ y).realize())
        halves = [z.numpy() for z in (x, y)]
        peers = jax_work(lambda a, b: a @ b, *halves)
        if installed("torch"):
            import torch

            torch.set_num_threads(threads)
            p, q = (torch.from_numpy(z).to(getattr(torch, name)) for z in (a, b))
            peers["torch"] = lambda p=p, q=q: p @ q
        yield Row(
            f"{n}³ {name}", lambda step=step, x=x, y=y: step(x, y), peers, 2 * n**3, 0.0, 1.0
        )  # fmt: skip
    bytes_ = [generator.integers(-128, 128, (n, n)).astype(np.int8) for _ in range(2)]
    peers = {}
    if installed("torch"):
        whole = [torch.from_numpy(z) for z in bytes_]
        peers["torch"] = lambda: torch._int_mm(*whole)
    exact = captured(lambda a, b: a.matmul(b, dtype=dtypes.int32), *bytes_)
    yield Row(f"{n}³ int8", exact, peers, 2 * n**3, 0.0, 1 / 1.2)
