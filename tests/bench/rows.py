"""Normalisations, losses, reductions, embeddings and updates: work on rows, bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, jit, nn
from tests.bench.measure import Row
from tests.bench.peers import jax_work, numpy_work, torch_work


def rows(threads: int) -> Iterator[Row]:
    """All rows of the family; arrays are freed with their rows."""
    for shape in ((4096, 4096), (32768, 256)):
        yield softmax(shape, threads)
    yield layer_norm(threads)
    yield layer_norm_gradient(threads)
    yield cross_entropy(threads)
    for axis in (0, 1, 2):
        yield sum_along(axis, threads)
    yield transpose(threads)
    yield small_axis(threads)
    yield gather(threads)
    yield scatter_add(threads)
    yield adam(threads)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def softmax(shape: tuple[int, int], threads: int) -> Row:
    """Softmax along the last axis."""
    a = _normal(*shape)
    x = Tensor(a).realize()
    ours = jit(lambda x: x.softmax(-1).realize())

    def jax_softmax(a: Any) -> Any:
        import jax

        return jax.nn.softmax(a, axis=-1)

    return Row(
        f"softmax {_times(shape)}", lambda: ours(x),
        {**torch_work(lambda a: a.softmax(-1), a, threads=threads, compiled=True),
         **jax_work(jax_softmax, a)},
        bytes=8 * a.size, goal=1.5,
    )  # fmt: skip


def _torch_norm(a: Any, w: Any, b: Any) -> Any:
    import torch

    return torch.nn.functional.layer_norm(a, (768,), w, b)


def _jax_norm(a: Any, w: Any, b: Any) -> Any:
    centred = a - a.mean(-1, keepdims=True)
    return centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5 * w + b


def layer_norm(threads: int) -> Row:
    """Layer norm, forward, with weight and bias."""
    a, w, b = _normal(8192, 768), _normal(768), _normal(768)
    x, weight, bias = (Tensor(array).realize() for array in (a, w, b))
    ours = jit(lambda x: (x.layernorm() * weight + bias).realize())

    return Row(
        "layer norm 8192 × 768", lambda: ours(x),
        {**torch_work(_torch_norm, a, w, b, threads=threads, compiled=True),
         **jax_work(_jax_norm, a, w, b)},
        bytes=8 * a.size, goal=1.3,
    )  # fmt: skip


def layer_norm_gradient(threads: int) -> Row:
    """Layer norm, forward and the three gradients."""
    a, w, b, g = _normal(8192, 768), _normal(768), _normal(768), _normal(8192, 768)
    x, weight, bias, outer = (Tensor(array).realize() for array in (a, w, b, g))

    def step(x: Tensor, outer: Tensor) -> tuple[Tensor, ...]:
        y = x.layernorm() * weight + bias
        gradients = (y * outer).sum().gradient(x, weight, bias)
        Tensor.realize(*gradients)
        return tuple(gradients)

    ours = jit(step)

    def torch_step(a: Any, w: Any, b: Any, g: Any) -> Any:
        import torch

        leaves = [leaf.detach().requires_grad_() for leaf in (a, w, b)]
        return torch.autograd.grad(_torch_norm(*leaves), leaves, g)

    def jax_step(a: Any, w: Any, b: Any, g: Any) -> Any:
        import jax

        return jax.vjp(_jax_norm, a, w, b)[1](g)

    return Row(
        "layer norm 8192 × 768, forward and backward", lambda: ours(x, outer),
        {**torch_work(torch_step, a, w, b, g, threads=threads, compiled=True),
         **jax_work(jax_step, a, w, b, g)},
        bytes=12 * a.size, goal=1.3,
    )  # fmt: skip


def cross_entropy(threads: int) -> Row:
    """Loss and gradient for a GPT-2's logits."""
    a = _normal(2048, 50257)
    labels = np.random.default_rng(1).integers(0, 50257, 2048)
    x, y = Tensor(a).realize(), Tensor(labels.astype(np.int32)).realize()

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss = x.cross_entropy(y)
        (gradient,) = loss.gradient(x)
        Tensor.realize(loss, gradient)
        return loss, gradient

    ours = jit(step)

    def torch_step(a: Any, labels: Any) -> Any:
        import torch

        leaf = a.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(leaf, labels)
        return loss, *torch.autograd.grad(loss, (leaf,))

    def jax_step(a: Any, labels: Any) -> Any:
        import jax

        def loss(a: Any) -> Any:
            chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(a), labels[:, None], 1)
            return -chosen.mean()

        return jax.value_and_grad(loss)(a)

    return Row(
        "cross-entropy 2048 × 50257, forward and backward", lambda: ours(x, y),
        {**torch_work(torch_step, a, labels, threads=threads, compiled=True),
         **jax_work(jax_step, a, labels)},
        bytes=8 * a.size, goal=2.5,
    )  # fmt: skip


def _compare(
    name: str,
    function: Callable[[Any], Any],
    a: np.ndarray,
    nbytes: float,
    goal: float,
    threads: int,
    reads_only: bool = False,
) -> Row:
    """One function of one array, written the same way in every library."""
    x = Tensor(a).realize()
    ours = jit(lambda x: function(x).realize())
    peers = {
        **torch_work(function, a, threads=threads, compiled=True),
        **numpy_work(function, a), **jax_work(function, a),
    }  # fmt: skip
    return Row(name, lambda: ours(x), peers, bytes=nbytes, goal=goal, reads_only=reads_only)


def sum_along(axis: int, threads: int) -> Row:
    """A sum along one axis."""
    a = _normal(256, 256, 256)
    return _compare(
        f"sum of 256 × 256 × 256 along axis {axis}", lambda a: a.sum(axis), a,
        4 * a.size, 1.0, threads, reads_only=True,
    )  # fmt: skip


def transpose(threads: int) -> Row:
    """An elementwise chain with one transposed operand."""
    a = _normal(2048, 2048)
    return _compare(
        "a·2 + aᵀ, 2048 × 2048", lambda a: a * 2 + a.T, a, 12 * a.size, 1.0, threads
    )


def small_axis(threads: int) -> Row:
    """Norms of many short vectors."""
    a = _normal(1 << 20, 3)
    return _compare(
        "Σ x² of 1M vectors of 3", lambda a: (a * a).sum(-1), a, 16 * (1 << 20), 1.0, threads
    )


def gather(threads: int) -> Row:
    """Embedding of 8192 tokens."""
    table = _normal(50257, 768)
    tokens = np.random.default_rng(1).integers(0, 50257, 8192)
    weight, index = Tensor(table).realize(), Tensor(tokens.astype(np.int32)).realize()
    ours = jit(lambda weight, index: weight[index].realize())

    def torch_embedding(table: Any, tokens: Any) -> Any:
        import torch

        return torch.nn.functional.embedding(tokens, table)

    return Row(
        "embedding of 8192 tokens, 50257 × 768", lambda: ours(weight, index),
        {**torch_work(torch_embedding, table, tokens, threads=threads, compiled=True),
         **jax_work(lambda table, tokens: table[tokens], table, tokens)},
        bytes=8 * 8192 * 768, goal=1.0,
    )  # fmt: skip


def scatter_add(threads: int) -> Row:
    """The gradient of an embedding, in which a fifth of the tokens are one and the same."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 65, 8192)
    tokens[generator.random(8192) < 0.2] = 7
    updates = _normal(8192, 384)
    index, gradient = Tensor(tokens.astype(np.int32)).realize(), Tensor(updates).realize()
    weight = Tensor.zeros(65, 384).contiguous().realize()

    def step(weight: Tensor, index: Tensor, gradient: Tensor) -> Tensor:
        (found,) = (weight[index] * gradient).sum().gradient(weight)
        return found.realize()

    ours = jit(step)

    def torch_step(tokens: Any, updates: Any) -> Any:
        import torch

        return torch.zeros(65, 384).index_add_(0, tokens, updates)

    def jax_step(tokens: Any, updates: Any) -> Any:
        import jax

        return jax.numpy.zeros((65, 384)).at[tokens].add(updates)

    return Row(
        "gradient of an embedding, 8192 tokens, 65 × 384", lambda: ours(weight, index, gradient),
        {**torch_work(torch_step, tokens, updates, threads=threads, compiled=True),
         **jax_work(jax_step, tokens, updates)},
        bytes=4 * 8192 * 384, goal=1.0, reads_only=True,
    )  # fmt: skip


def adam(threads: int) -> Row:
    """AdamW for 12 tensors of the size of GPT-2's layers, with clipping of the gradients' norm."""
    shapes = [(768, 768), (3072, 768), (768,), (768,)] * 3
    weights = [_normal(*shape) for shape in shapes]
    gradients = [_normal(*shape) for shape in shapes]
    size = sum(w.size for w in weights)
    parameters = [Tensor(w) for w in weights]
    given = [Tensor(g).realize() for g in gradients]
    optimizer = nn.optim.AdamW(parameters, lr=1e-4)

    @jit
    def ours() -> None:
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
        nn.optim.clip_grad_norm(parameters, 1.0)
        optimizer.step()

    def torch_update(*arrays: Any) -> Callable[[], object]:
        import torch

        leaves = [torch.nn.Parameter(a) for a in arrays[: len(weights)]]
        fused = torch.optim.AdamW(leaves, lr=1e-4, fused=True)

        def step() -> None:
            for leaf, g in zip(leaves, arrays[len(weights) :], strict=True):
                leaf.grad = g
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            fused.step()

        return step

    made: list[Callable[[], object]] = []

    def torch_step(*arrays: Any) -> object:
        if not made:
            made.append(torch_update(*arrays))
        return made[0]()

    copies = [array.copy() for array in (*weights, *gradients)]
    return Row(
        f"AdamW of {len(shapes)} tensors, {size / 1e6:.1f}M, norm clipped", ours,
        torch_work(torch_step, *copies, threads=threads),
        bytes=4 * size * 8, goal=1.0,
    )  # fmt: skip
