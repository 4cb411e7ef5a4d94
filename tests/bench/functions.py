"""Functions as programs use them, most with their gradients, to find slow ones.

Each is compared with PyTorch's (and torch.compile's) on the same arrays. None was tuned on its own:
a row far below 1 shows a kind of loop that no recipe knows yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor, jit
from minigrad.nn import functional
from tests.bench.measure import Row
from tests.bench.peers import Work, installed, torch_work

IMAGES, MATRIX, HEADS = (8, 64, 56, 56), (1024, 1024), (4, 8, 256, 64)


class Case(NamedTuple):
    """ours and theirs: functions of tensors of these shapes; numbers: bounds of integer ones."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    numbers: Mapping[int, int] = {}
    gradients: bool = True


def turned(x: Any, c: Any, s: Any, stack: Callable[..., Any]) -> Any:
    """Rotary positions, of neighbouring pairs."""
    a, b = x[..., ::2], x[..., 1::2]
    return stack([a * c - b * s, a * s + b * c]).flatten(-2)


def swapped(x: Any, c: Any, s: Any, cat: Callable[..., Any]) -> Any:
    """Rotary positions, of halves."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return cat([a * c - b * s, a * s + b * c])


def windows(x: Any) -> Any:
    """Softmax over the channels of 8 × 8 pixels, as in a Swin transformer's windows."""
    parts = x.reshape(8, 64, 7, 8, 7, 8).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(-1, 64, 64).softmax(-1)


def cases() -> dict[str, Case]:
    """The cases, by name."""
    import torch
    from torch.nn import functional as F

    rotary = (HEADS, (256, 32), (256, 32))
    return {
        "rotary positions, neighbours": Case(
            lambda *t: turned(*t, lambda parts: Tensor.stack(parts, dim=-1)),
            lambda *t: turned(*t, lambda parts: torch.stack(parts, -1)), rotary),
        "rotary positions, halves": Case(
            lambda *t: swapped(*t, lambda parts: Tensor.cat(parts, dim=-1)),
            lambda *t: swapped(*t, lambda parts: torch.cat(parts, -1)), rotary),
        "stack, last": Case(lambda x, y: Tensor.stack([x, y], dim=-1),
                            lambda x, y: torch.stack([x, y], -1), (IMAGES, IMAGES)),
        "cat, last": Case(lambda x, y: Tensor.cat([x, y], dim=-1),
                          lambda x, y: torch.cat([x, y], -1), (IMAGES, IMAGES)),
        "pad, reflect": Case(lambda x: x.pad((2, 2, 2, 2), mode="reflect"),
                             lambda x: F.pad(x, (2, 2, 2, 2), mode="reflect"), (IMAGES,)),
        "flip": Case(lambda x: x.flip(-1), lambda x: x.flip(-1), (IMAGES,)),
        "nearest, 2 ×": Case(lambda x: x.interpolate(scale_factor=2),
                             lambda x: F.interpolate(x, scale_factor=2), (IMAGES,)),
        "bilinear, 2 ×": Case(
            lambda x: x.interpolate(scale_factor=2, mode="linear"),
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (IMAGES,)),
        "bilinear, 1.5 ×": Case(
            lambda x: x.interpolate(scale_factor=1.5, mode="linear"),
            lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), (IMAGES,)),
        "max pool 3 × 3, 2": Case(lambda x: x.max_pool2d(3, stride=2, padding=1),
                                  lambda x: F.max_pool2d(x, 3, 2, 1), (IMAGES,)),
        "max pool 3 × 3, 2, of 14²": Case(
            lambda x: x.max_pool2d(3, stride=2, padding=1), lambda x: F.max_pool2d(x, 3, 2, 1),
            ((8, 256, 14, 14),)),
        "mean pool 2 × 2": Case(lambda x: x.avg_pool2d(2), lambda x: F.avg_pool2d(x, 2), (IMAGES,)),
        "group norm": Case(lambda x: x.reshape(8, 8, -1).layernorm().reshape(*IMAGES),
                           lambda x: F.group_norm(x, 8), (IMAGES,)),
        "softmax of channels": Case(lambda x: x.softmax(1), lambda x: x.softmax(1), (IMAGES,)),
        "windows, softmax": Case(windows, windows, (IMAGES,)),
        "layer norm": Case(lambda x: x.layernorm(), lambda x: F.layer_norm(x, (1024,)), (MATRIX,)),
        "cumsum, last": Case(lambda x: x.cumsum(-1), lambda x: x.cumsum(-1), (MATRIX,)),
        "cumsum, first": Case(lambda x: x.cumsum(0), lambda x: x.cumsum(0), (MATRIX,)),
        "cummax, last": Case(lambda x: x.cummax(-1)[0], lambda x: x.cummax(-1)[0], (MATRIX,), {},
                             False),
        "variance of rows": Case(lambda x: x.var(-1), lambda x: x.var(-1), (MATRIX,)),
        "logsumexp": Case(lambda x: x.logsumexp(-1), lambda x: x.logsumexp(-1), (MATRIX,)),
        "rows by number": Case(lambda x, i: x[i], lambda x, i: x[i], (MATRIX, (4096,)), {1: 1024}),
        "gather, last": Case(lambda x, i: x.gather(1, i), lambda x, i: x.gather(1, i),
                             (MATRIX, MATRIX), {1: 1024}),
        "scatter, first": Case(
            lambda x, i, v: x.scatter(0, i, v), lambda x, i, v: x.scatter(0, i, v),
            (MATRIX, MATRIX, MATRIX), {1: 1024}),
        "sums of reversed rows": Case(lambda x: x.flip(-1).sum(-1), lambda x: x.flip(-1).sum(-1),
                                      (MATRIX,), {}, False),
        "scatter_add, first": Case(
            lambda x, i: Tensor.zeros(*MATRIX).scatter_add(0, i, x),
            lambda x, i: torch.zeros(*MATRIX).scatter_add(0, i, x), (MATRIX, MATRIX), {1: 1024},
            gradients=False),
        "cross-entropy": Case(lambda x, t: x.cross_entropy(t), F.cross_entropy,
                              ((4096, 1000), (4096,)), {1: 1000}),
        "top 5 of 1,000": Case(lambda x: x.topk(5)[0], lambda x: x.topk(5)[0], ((256, 1000),)),
        "top 5 of 100": Case(lambda x: x.topk(5)[0], lambda x: x.topk(5)[0], ((64, 100),)),
        "sort of long integers": Case(lambda x: x.sort(0)[0], lambda x: x.sort(0)[0],
                                      ((1_000_000,),), {0: 1 << 60}, False),
        "sort": Case(lambda x: x.sort(-1)[0], lambda x: x.sort(-1)[0], (MATRIX,)),
        "argmax": Case(lambda x: x.argmax(-1), lambda x: x.argmax(-1), (MATRIX,), {}, False),
        "product of rows that were gathered": Case(
            lambda x, w: x.permute(1, 0, 2, 3).reshape(8, 256, 384) @ w,
            lambda x, w: x.permute(1, 0, 2, 3).reshape(8, 256, 384) @ w,
            ((2, 8, 128, 384), (384, 768))),
        "attention, causal": Case(
            lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (HEADS,) * 3),
        "transposed convolution 4 × 4, 2": Case(
            lambda x, w: x.conv_transpose2d(w, stride=2, padding=1),
            lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
            ((8, 64, 28, 28), (64, 32, 4, 4))),
        "batch norm of a convolution": Case(
            lambda x, w, s, b: functional.batch_norm(
                x.conv2d(w, padding=1), None, None, s, b, True).relu(),
            lambda x, w, s, b: F.batch_norm(
                F.conv2d(x, w, padding=1), None, None, s, b, True).relu(),
            ((4, 16, 64, 64), (16, 16, 3, 3), (16,), (16,))),
        "convolution 1 × 9, dilation 2": Case(
            lambda x, w: x.conv2d(w, padding=8, dilation=2),
            lambda x, w: F.conv1d(x, w, padding=8, dilation=2), ((8, 64, 1024), (64, 64, 9))),
    }  # fmt: skip


def with_gradients(case: Case, result: tuple[int, ...], threads: int, draw: Any) -> Row:
    """The same with gradients by all float arrays; the result's gradient is drawn."""
    import torch

    arrays = [draw(shape, case.numbers.get(n)) for n, shape in enumerate(case.shapes)]
    floats = [n for n in range(len(arrays)) if n not in case.numbers]

    def ours(*given: Tensor) -> None:
        y = case.ours(*given[:-1])
        Tensor.realize(y, *y.gradient(*(given[n] for n in floats), gradient=given[-1]))

    def theirs(*given: Any) -> None:
        leaves = [x.detach().requires_grad_(n in floats) for n, x in enumerate(given[:-1])]
        torch.autograd.grad(case.theirs(*leaves), [leaves[n] for n in floats], given[-1])

    return work("", ours, theirs, [*arrays, draw(result, None)], threads)


def work(name: str, ours: Any, theirs: Any, arrays: list[np.ndarray], threads: int) -> Row:
    """A row that compares both on these arrays."""
    step, tensors = jit(ours), [Tensor(array).realize() for array in arrays]

    def run() -> None:
        step(*tensors)

    found: dict[str, Work] = torch_work(theirs, *arrays, threads=threads)
    return Row(name, run, found, goal=1.0)


def rows(threads: int) -> Iterator[Row]:
    """Each function alone, then with its gradients."""
    if not installed("torch"):
        return
    generator = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], bound: int | None) -> np.ndarray:
        if bound is not None:
            return generator.integers(0, bound, shape)
        return generator.standard_normal(shape, dtype=np.float32)

    for name, case in cases().items():
        arrays = [draw(shape, case.numbers.get(n)) for n, shape in enumerate(case.shapes)]
        forward = work(name, lambda *t, f=case.ours: f(*t).realize(), case.theirs, arrays, threads)
        yield forward
        if case.gradients:
            result = case.ours(*map(Tensor, arrays)).shape
            row = with_gradients(case, result, threads, draw)
            yield Row(f"{name}, gradients", row.ours, row.peers, goal=1.0)
