"""Pictures of a trained network (matplotlib, without a window)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.graph.symbolic import ceildiv
from minigrad.models import neuron
from minigrad.models.console import check_writable, require
from minigrad.models.digits import DIGITS, Digits
from minigrad.models.errors import InputError, failing_as
from minigrad.models.metrics import Metrics

if TYPE_CHECKING:
    from minigrad.models.mlp import MLP


BLUE, LIGHT_BLUE, ORANGE, GREY = "#2171b5", "#9ecae1", "#d94801", "#737373"
MOST_LABELS = 60  # more labels at an axis overlap


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure without a window, in inches; InputError if it is not installed."""
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def check_picture(path: str | None) -> None:
    """InputError if a picture could not be drawn or written: better now than after training."""
    if path is not None:
        if Path(path).suffix.lower() != ".png":
            raise InputError(f"--picture: expected a file name ending in .png, got {path}")
        require("matplotlib")
        check_writable(Path(path))


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG completely or not at all; InputError if it cannot be written."""
    with failing_as(f"cannot write the picture {path}"):
        nn.state.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def whole_steps(axis: Any) -> None:
    """Put ticks of a matplotlib axis at integers only."""
    axis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))


def draw_losses(axes: Any, metrics: Metrics) -> None:
    """Draw the training loss, its running mean for long runs, and the validation loss."""
    steps, losses = metrics.curve("loss")
    reach = len(losses) // 80
    axes.plot(steps, losses, color=LIGHT_BLUE, linewidth=0.6 if reach else 1.2,
              label="training, each batch")  # fmt: skip
    if reach:
        # centred: a mean of previous values only would lie above a falling curve
        width = 2 * reach + 1
        means = np.convolve(losses, np.full(width, 1 / width), "valid")
        label = f"mean of {width} batches, centred"
        axes.plot(steps[reach:-reach], means, color=BLUE, label=label)
    axes.plot(*metrics.curve("val_loss"), "o-", color=ORANGE, label="validation")
    axes.set(xlabel="step", ylabel="loss, nats")
    whole_steps(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend()


def save_curves(metrics: Metrics, path: Path, title: str) -> None:
    """Write a PNG of the loss curves."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    draw_losses(axes, metrics)
    axes.set_title(title)
    save_figure(figure, path)


def draw_mlp(model: MLP, digits: Digits, metrics: Metrics, path: Path) -> None:
    """Write a PNG: weights of the first 16 neurons as images, one digit's activations, the losses.

    The first layer must take images of 28 × 28; InputError if the file cannot be written.
    """
    figure = new_figure(14, 8)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.3))
    draw_weights(left, model.layers[0].weight.numpy()[:16], silent(model, digits))
    upper, lower = right.subfigures(2, 1)
    draw_way(upper, model, digits)
    draw_losses(lower.subplots(), metrics)
    save_figure(figure, path)


def silent(model: MLP, digits: Digits) -> list[bool]:
    """For each neuron of the first layer, whether no digit activates it."""
    with Tensor.no_grad():
        highest = model.layers[0](Tensor(digits.images[:1000])).max(0)
    return [bool(value <= 0) for value in highest.tolist()]


def draw_weights(figure: Any, weights: Any, dead: list[bool]) -> None:
    """Draw the weights of each neuron as an image; its number is the same as in the bars."""
    figure.suptitle("layer 1: what each neuron looks for (blue: ink raises its sum)")
    for number, (axes, row) in enumerate(zip(figure.subplots(4, 4).flat, weights, strict=False)):
        limit = abs(row).max() or 1.0
        axes.imshow(row.reshape(28, 28), cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set_title(f"neuron {number}{', dead' * dead[number]}", fontsize=9, pad=2)
    for axes in figure.axes:
        axes.set_axis_off()


def draw_way(figure: Any, model: MLP, digits: Digits) -> None:
    """Draw the first digit, each layer's activations for it, and the probabilities."""
    with Tensor.no_grad():
        image = Tensor(digits.images[:1])
        answers = [answer.numpy()[0] for answer in model.hidden(image)]
        answers.append(model(image).softmax(1).numpy()[0])
    panels = figure.subplots(1, len(answers) + 1)
    panels[0].imshow(digits.images[0].reshape(28, 28), cmap="gray_r")
    panels[0].set_title(digits.names[digits.labels[0]])
    panels[0].set_axis_off()
    for number, (axes, answer) in enumerate(zip(panels[1:], answers, strict=True), 1):
        last = number == len(answers)
        axes.barh(range(len(answer)), answer, color=ORANGE if last else BLUE)
        axes.set_yticks(range(len(answer)), digits.names if last else None)
        axes.invert_yaxis()
        axes.set_title("output" if last else f"layer {number}")
        axes.set_xlabel("probability" if last else "activation")
        axes.set_ylabel(("digit" if digits.names == DIGITS else "") if last else "neuron")


def draw_neuron(path: Path) -> None:
    """Write a PNG: the sum of the signals against the threshold, and the activation functions."""
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    draw_activations(right, draw_sum(left))
    save_figure(figure, path)


def draw_sum(axes: Any) -> float:
    """Draw the weighted signals on top of each other; returns the sum above the threshold."""
    total, names = 0.0, []
    for place, (signal, weight) in enumerate(zip(neuron.SIGNALS, neuron.WEIGHTS, strict=True)):
        product = signal * weight
        axes.bar(place, product, bottom=total, color=BLUE if product >= 0 else ORANGE)
        text = f"{product:+.2f}".replace("-", "−")
        axes.text(place, max(total, total + product), text, ha="center", va="bottom")
        total += product
        names.append(f"signal {signal:g}\n× weight {weight:g}".replace("-", "−"))
    axes.bar(len(names), total, color=GREY)
    axes.text(len(names), total, f"{total:.2f}", ha="center", va="bottom")
    axes.axhline(neuron.THRESHOLD, color="black", linestyle="--", linewidth=1,
                 label=f"threshold {neuron.THRESHOLD:g}")  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names) + 1), [*names, "sum"])
    axes.margins(y=0.12)
    above = total - neuron.THRESHOLD
    axes.set(ylabel="sum of weighted signals",
             title=f"sum − threshold = {above:.2f}: {'active' if above > 0 else 'silent'}")
    axes.legend(loc="lower center")
    return above


def draw_activations(axes: Any, total: float) -> None:
    """Draw each activation over sum − threshold, and where this neuron is."""
    sums = np.linspace(-4, 4, 161, dtype=np.float32)
    for name, bend in neuron.ACTIVATIONS.items():
        answer = bend(Tensor([total])).item()
        (line,) = axes.plot(sums, bend(Tensor(sums)).numpy(), label=f"{name}: {answer:.3f}")
        axes.plot(total, answer, "o", color=line.get_color())
    axes.axvline(total, color=GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="sum − threshold", ylabel="activation",
             title=f"answers of the neuron at {total:.2f}")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def readable(name: str) -> str:
    """A token as the picture's font can show it; missing characters become escapes, \\u4f60."""
    fonts = require("matplotlib.font_manager")
    font = fonts.get_font(fonts.findfont(fonts.FontProperties()))
    known = (c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
             for c in name)  # fmt: skip
    return "".join(known).replace("$", r"\$")  # no mathematics in a token


def draw_attention(weights: Any, names: list[str], path: Path, title: str) -> None:
    """Write a PNG: rows are the tokens that attend, columns those attended to.

    The first token can attend only to itself, so its row does not set the scale. Shares are small
    in a long text, so the colour scale enlarges small ones. Later tokens, which cannot be attended
    to, are grey, unlike a share of 0.
    """
    size = min(3 + 0.35 * len(names), 16)
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    others = weights[1:] if len(weights) > 1 else weights
    scale = require("matplotlib.colors").PowerNorm(0.5, 0, max(float(others.max()), 1e-9))
    later = np.triu(np.ones(weights.shape, bool), 1)
    axes.set_facecolor("#e8e8e8")
    image = axes.imshow(np.ma.array(weights, mask=later), cmap="Blues", norm=scale)
    every = ceildiv(len(names), MOST_LABELS)
    places = range(0, len(names), every)
    labels = [readable(names[place]) for place in places]
    axes.set_xticks(places, labels, rotation=90)
    axes.set_yticks(places, labels)
    note = f" (1 of {every} named)" if every > 1 else ""
    axes.set(xlabel=f"attended-to token{note}", ylabel=f"attending token{note}", title=title)
    figure.colorbar(image, ax=axes, label="share", format=lambda share, _: f"{100 * share:.3g}%")
    save_figure(figure, path)
