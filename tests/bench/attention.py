"""Causal attention, forward and with all gradients: 12 heads of 64, and the heads of a small GPT's
step; and its memory.

Compared with PyTorch's flash kernel (`F.scaled_dot_product_attention`). The limit counts the
multiply-adds of the lower triangle: 2 products forward, 5 more backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from minigrad import Tensor, jit
from tests.bench.measure import Row
from tests.bench.peers import jax_work, torch_work

HEADS, DEPTH = 12, 64
SHAPES = ((12, 4, 64, 32), (1, HEADS, 256, DEPTH), (1, HEADS, 2048, DEPTH))  # (B, H, T, D)


def rows(threads: int) -> Iterator[Row]:
    """Some shapes, forward, and forward with the gradients of queries, keys and values."""
    for shape in SHAPES:
        batch, heads, length, depth = shape
        name = f"causal attention, {batch * heads} heads, d {depth}, T {length}"
        generator = np.random.default_rng(0)
        arrays = [generator.standard_normal(shape, dtype=np.float32) for _ in range(4)]
        tensors = [Tensor(array).realize() for array in arrays]
        swapped = [np.ascontiguousarray(array.swapaxes(1, 2)) for array in arrays]  # JAX's order
        product = 2 * batch * heads * depth * length * (length + 1) / 2
        forward = jit(_forward)
        yield Row(
            name, partial(forward, *tensors[:3]),
            {**torch_work(_torch_forward, *arrays[:3], threads=threads),
             **jax_work(_jax_forward, *swapped[:3])},
            flops=2 * product, goal=1.5,
        )  # fmt: skip
        both = jit(_with_gradients)
        yield Row(
            f"the same, forward and backward, T {length}", partial(both, *tensors),
            {**torch_work(_torch_with_gradients, *arrays, threads=threads),
             **jax_work(_jax_with_gradients, *swapped)},
            flops=7 * product, goal=1.5,
        )  # fmt: skip


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.scaled_dot_product_attention(k, v, is_causal=True).realize()


def _with_gradients(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> list[Tensor]:
    result = q.scaled_dot_product_attention(k, v, is_causal=True)
    outputs = [result, *result.gradient(q, k, v, gradient=seed)]
    Tensor.realize(*outputs)
    return outputs


def _torch_forward(q, k, v):
    import torch

    with torch.no_grad():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _torch_with_gradients(q, k, v, seed):
    import torch

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    result = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
    result.backward(seed)
    return result, *(leaf.grad for leaf in leaves)


def _jax_forward(q, k, v):
    import jax

    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _jax_with_gradients(q, k, v, seed):
    import jax

    result, backward = jax.vjp(_jax_forward, q, k, v)
    return result, backward(seed)


def memory(lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)) -> None:
    """Print the largest memory that tensors and the program's arena took, for each length."""
    from minigrad import GlobalCounters

    for length in lengths:
        tensors = [Tensor.ones(1, HEADS, length, DEPTH).contiguous().realize() for _ in range(4)]
        GlobalCounters.reset()
        before = GlobalCounters.mem_used
        _with_gradients(*tensors)
        most = GlobalCounters.mem_peak - before
        times = most / (4 * HEADS * length * DEPTH)
        print(f"T {length}: {most / 2**20:.1f} MiB beyond the inputs, {times:.2f} × one input")


if __name__ == "__main__":
    memory()
