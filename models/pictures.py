"""Pictures of a trained network (matplotlib, without a window)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from minigrad import Tensor, nn
from minigrad.models.console import require
from minigrad.models.digits import Digits
from minigrad.models.metrics import Metrics, draw_losses, save_figure


class Perceptron(Protocol):
    """What can be drawn: `minigrad.models.mlp.MLP`."""

    layers: list[nn.Linear]

    def hidden(self, x: Tensor) -> list[Tensor]:
        """What each hidden layer answers."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Logits."""
        ...


def draw_mlp(model: Perceptron, digits: Digits, metrics: Metrics, path: Path) -> None:
    """A PNG: the weights of the first 16 neurons as images, one digit's way through, the losses.

    The first layer must take images of 28 × 28; InputError where the file cannot be written.
    """
    require("matplotlib").use("Agg")
    pyplot = require("matplotlib.pyplot")
    figure = pyplot.figure(figsize=(13, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))

    weights = model.layers[0].weight.numpy()[:16]
    left.suptitle("first layer: what each neuron looks for (blue: ink counts for it)")
    for axes, row in zip(left.subplots(4, 4).flat, weights, strict=False):
        limit = abs(row).max() or 1.0
        axes.imshow(row.reshape(28, 28), cmap="RdBu", vmin=-limit, vmax=limit)
    for axes in left.axes:
        axes.set_axis_off()

    upper, lower = right.subfigures(2, 1)
    with Tensor.no_grad():
        image = Tensor(digits.images[:1])
        answers = [answer.numpy()[0] for answer in model.hidden(image)]
        answers.append(model(image).softmax(1).numpy()[0])
    panels = upper.subplots(1, len(answers) + 1)
    panels[0].imshow(digits.images[0].reshape(28, 28), cmap="gray_r")
    panels[0].set_title(f"a {digits.labels[0]}")
    panels[0].set_axis_off()
    for number, (axes, answer) in enumerate(zip(panels[1:], answers, strict=True), 1):
        last = number == len(answers)
        axes.barh(range(len(answer)), answer, color="#d94801" if last else "#2171b5")
        axes.set_yticks(range(len(answer)))
        axes.invert_yaxis()
        axes.set_title("probabilities" if last else f"layer {number}")
    draw_losses(lower.subplots(), metrics)
    save_figure(figure, path)
    pyplot.close(figure)
