"""One training step of a small MLP beside numpy and PyTorch: `python tests/bench/mlp_step.py`.

784-16-16-10, ReLU, batch 32 (or what the argument says), SGD, fp32, one thread, the loss read after
each step. Rounds are interleaved, and medians compared. Start it with MINIGRAD_DEBUG=2 for the
kernels' own times.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("MINIGRAD_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minigrad import Tensor, jit, nn

SIZES, RATE = (784, 16, 16, 10), 0.01
BATCH = int(sys.argv[1]) if sys.argv[1:] else 32
ROUNDS, STEPS = 7, 300
Step = Callable[[], float]

rng = np.random.default_rng(0)
X = rng.normal(size=(BATCH, SIZES[0])).astype(np.float32)
Y = rng.integers(0, SIZES[-1], BATCH).astype(np.int32)
WEIGHTS = [
    (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32)
    for a, b in itertools.pairwise(SIZES)
]
BIASES = [np.zeros(extent, np.float32) for extent in SIZES[1:]]


def ours() -> Step:
    """minigrad's step: one captured function."""
    weights, biases = [Tensor(w) for w in WEIGHTS], [Tensor(b) for b in BIASES]
    optimizer = nn.optim.SGD([*weights, *biases], lr=RATE)
    x, y = Tensor(X), Tensor(Y)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        h = (x @ weights[0] + biases[0]).relu()
        h = (h @ weights[1] + biases[1]).relu()
        loss = (h @ weights[2] + biases[2]).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

    return lambda: step(x, y).item()


def by_numpy() -> Step:
    """The same by hand."""
    weights, biases = [w.copy() for w in WEIGHTS], [b.copy() for b in BIASES]
    rows = np.arange(BATCH)

    def step() -> float:
        inputs = [X]
        for w, b in zip(weights, biases, strict=True):
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        logits = inputs[-2] @ weights[-1] + biases[-1]
        logits -= logits.max(1, keepdims=True)
        exponentials = np.exp(logits)
        sums = exponentials.sum(1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - logits[rows, Y]).mean())
        gradient = exponentials / sums
        gradient[rows, Y] -= 1
        gradient /= BATCH
        for layer in (2, 1, 0):
            before = gradient @ weights[layer].T * (inputs[layer] > 0) if layer else gradient
            weights[layer] -= RATE * (inputs[layer].T @ gradient)
            biases[layer] -= RATE * gradient.sum(0)
            gradient = before
        return loss

    return step


def by_torch() -> Step | None:
    """The same in PyTorch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    weights = [torch.tensor(w, requires_grad=True) for w in WEIGHTS]
    biases = [torch.tensor(b, requires_grad=True) for b in BIASES]
    optimizer = torch.optim.SGD([*weights, *biases], lr=RATE)
    x, y = torch.tensor(X), torch.tensor(Y, dtype=torch.int64)

    def step() -> float:
        optimizer.zero_grad()
        h = (x @ weights[0] + biases[0]).relu()
        h = (h @ weights[1] + biases[1]).relu()
        loss = torch.nn.functional.cross_entropy(h @ weights[2] + biases[2], y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    """Print the table."""
    steps = {"minigrad": ours(), "numpy": by_numpy(), "PyTorch": by_torch()}
    known = {name: step for name, step in steps.items() if step is not None}
    losses = {name: [step() for _ in range(10)] for name, step in known.items()}
    for name, found in losses.items():
        np.testing.assert_allclose(found, losses["numpy"], rtol=1e-4, err_msg=name)
    times: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(ROUNDS):
        for name, step in known.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[name].append((time.perf_counter() - started) / STEPS * 1e6)
    fastest = statistics.median(times["minigrad"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:10s} {middle:7.1f} µs a step  {middle / fastest:5.2f}× minigrad's time")


if __name__ == "__main__":
    main()
