"""One training step of a small MLP, against numpy by hand, PyTorch and JAX.

784-16-16-10, ReLU, batches of 32 and 512, SGD, float32, the loss read after each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, jit, nn
from tests.bench.measure import Row
from tests.bench.peers import compiles, installed

SIZES, RATE = (784, 16, 16, 10), 0.01
Step = Callable[[], float]
Arrays = list[np.ndarray]


def rows(threads: int) -> Iterator[Row]:
    """One row for each of two batch sizes; the first losses of all libraries are equal."""
    for batch in (32, 512):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(batch, SIZES[0])).astype(np.float32)
        y = rng.integers(0, SIZES[-1], batch).astype(np.int32)
        weights = [
            (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32)
            for a, b in itertools.pairwise(SIZES)
        ]
        given = x, y, weights, [np.zeros(extent, np.float32) for extent in SIZES[1:]]
        steps = {"minigrad": ours(*given), "numpy": by_numpy(*given)}
        if installed("torch"):
            steps["torch"] = by_torch(*given, threads)
        if compiles():
            steps["torch.compile"] = by_torch(*given, threads, compiled=True)
        if installed("jax"):
            steps["jax"] = by_jax(*given)
        losses = {name: [step() for _ in range(10)] for name, step in steps.items()}
        for name, found in losses.items():
            np.testing.assert_allclose(found, losses["numpy"], rtol=1e-4, err_msg=name)
        flops = 2.0 * batch * sum(3 * w.size for w in weights) - 2.0 * batch * weights[0].size
        name = f"MLP step {'-'.join(map(str, SIZES))}, batch {batch}"
        yield Row(name, steps.pop("minigrad"), steps, flops)


def ours(x_: np.ndarray, y_: np.ndarray, weights_: Arrays, biases_: Arrays) -> Step:
    """minigrad's step: one captured function."""
    weights, biases = [Tensor(w) for w in weights_], [Tensor(b) for b in biases_]
    optimizer = nn.optim.SGD([*weights, *biases], lr=RATE)
    x, y = Tensor(x_), Tensor(y_)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = logits(x, weights, biases, Tensor.relu).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

    return lambda: step(x, y).item()


def logits(x: Any, weights: Any, biases: Any, relu: Callable[[Any], Any]) -> Any:
    """The network, written the same way for all libraries."""
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = relu(x @ w + b)
    return x @ weights[-1] + biases[-1]


def by_numpy(x: np.ndarray, y: np.ndarray, weights_: Arrays, biases_: Arrays) -> Step:
    """The same in numpy, by hand."""
    weights, biases = [w.copy() for w in weights_], [b.copy() for b in biases_]
    rows = np.arange(len(x))

    def step() -> float:
        inputs = [x]
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        found = inputs[-1] @ weights[-1] + biases[-1]
        found -= found.max(1, keepdims=True)
        exponentials = np.exp(found)
        sums = exponentials.sum(1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - found[rows, y]).mean())
        gradient = exponentials / sums
        gradient[rows, y] -= 1
        gradient /= len(x)
        for layer in (2, 1, 0):
            before = gradient @ weights[layer].T * (inputs[layer] > 0) if layer else gradient
            weights[layer] -= RATE * (inputs[layer].T @ gradient)
            biases[layer] -= RATE * gradient.sum(0)
            gradient = before
        return loss

    return step


def by_torch(
    x_: np.ndarray, y_: np.ndarray, weights_: Arrays, biases_: Arrays, threads: int,
    compiled: bool = False,
) -> Step:  # fmt: skip
    """The same in PyTorch; if compiled, its loss under torch.compile."""
    import torch

    torch.set_num_threads(threads)
    weights = [torch.tensor(w, requires_grad=True) for w in weights_]
    biases = [torch.tensor(b, requires_grad=True) for b in biases_]
    optimizer = torch.optim.SGD([*weights, *biases], lr=RATE)
    x, y = torch.tensor(x_), torch.tensor(y_, dtype=torch.int64)

    def loss_of() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits(x, weights, biases, torch.relu), y)

    loss_now = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_now()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def by_jax(x: np.ndarray, y: np.ndarray, weights: Arrays, biases: Arrays) -> Step:
    """The same in JAX: one compiled function of the parameters."""
    import jax

    x_, y_, parameters = jax.tree.map(jax.numpy.asarray, (x, y, (weights, biases)))

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        scores = jax.nn.log_softmax(logits(x, *parameters, jax.nn.relu))
        return -jax.numpy.take_along_axis(scores, y[:, None], 1).mean()

    @jax.jit
    def update(parameters: Any, x: Any, y: Any) -> Any:
        loss, found = jax.value_and_grad(loss_of)(parameters, x, y)
        return loss, jax.tree.map(lambda p, g: p - RATE * g, parameters, found)

    def step() -> float:
        nonlocal parameters
        loss, parameters = update(parameters, x_, y_)
        return float(loss)

    return step
