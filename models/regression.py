"""Gradient descent made visible: a line through points, y = k0 + k1·x.

    python models/regression.py                      # numbers, and the picture regression.png

Three learning rates move over the same loss surface: one that arrives, one that is slow, one that
overshoots. Then: how noisy a batch's gradient is, and how much faster backpropagation is than
changing one parameter after the other to see whether the loss improves.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.compile import best_of_rounds
from minigrad.graph.symbolic import ceildiv
from minigrad.models import console, pictures
from minigrad.models.mlp import MLP

Array = np.ndarray[Any, np.dtype[np.float32]]

TRUTH = (1.0, 2.0)  # k0, k1
RATES = {"arrives": 0.3, "crawls": 0.01, "overshoots": 1.05}
BATCHES = (1, 4, 16, 64, 256)
MOST_DRAWN = 5000  # points; more make a picture slow and blurred
MOST_NOISE = 1000.0  # with much more, float32 cannot tell the losses near the line apart


@dataclass(frozen=True)
class Points:
    """x and y, (count,) float32 each."""

    x: Array
    y: Array


def points(count: int, noise: float, seed: int) -> Points:
    """Points at the line k0 + k1·x, x in −1 … 1, with normal `noise` in y."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, count)
    y = TRUTH[0] + TRUTH[1] * x + noise * generator.standard_normal(count)
    return Points(x.astype(np.float32), y.astype(np.float32))


def loss(k: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean square error of the line k[0] + k[1]·x, a scalar."""
    return (k[0] + k[1] * x - y).square().mean()


def descend(data: Points, rate: float, steps: int, start: tuple[float, float]) -> list[list[float]]:
    """The path of gradient descent: (k0, k1, loss) before each step and at the end."""
    x, y = Tensor(data.x), Tensor(data.y)
    k = Tensor(start, requires_grad=True)
    path = []
    for _ in range(steps + 1):
        value = loss(k, x, y)
        (gradient,) = value.gradient(k)
        path.append([*k.tolist(), float(value.item())])
        k = (k - gradient * rate).detach().realize().requires_grad_(True)
    return path


def best(data: Points) -> tuple[float, float]:
    """The line with the smallest loss, by least squares."""
    x, y = Tensor(data.x), Tensor(data.y)
    away = x - x.mean()
    k1 = (away * y).sum() / away.square().sum()
    return float((y.mean() - k1 * x.mean()).item()), float(k1.item())


def gradient_noise(data: Points, draws: int, seed: int) -> list[tuple[int, float]]:
    """(batch size, root mean square difference of a batch's gradient from that of all points)."""
    generator = np.random.default_rng(seed)
    k = Tensor((0.0, 0.0), requires_grad=True)
    (whole,) = loss(k, Tensor(data.x), Tensor(data.y)).gradient(k)
    exact, found = whole.numpy(), []
    for size in BATCHES:
        chosen = generator.integers(0, len(data.x), (draws, size))
        x, y = Tensor(data.x[chosen]), Tensor(data.y[chosen])  # (draws, size)
        ks = Tensor(np.zeros((2, draws, 1), np.float32), requires_grad=True)
        (each,) = (ks[0] + ks[1] * x - y).square().mean(1).sum().gradient(ks)
        away = each.numpy()[:, :, 0].T - exact
        found.append((size, float(np.sqrt((away**2).sum(1).mean()))))
    return found


@dataclass(frozen=True)
class Comparison:
    """Seconds for a gradient: by one backward pass, and by one forward pass per parameter."""

    parameters: int
    backward: float
    blind: float
    cosine: float  # of the angle between the two gradients


def perturb_or_propagate(sizes: Sequence[int], batch: int, seed: int) -> Comparison:
    """The gradient of an MLP's loss on random images, computed both ways."""
    Tensor.manual_seed(seed)
    model = MLP(sizes, "sigmoid")
    generator = np.random.default_rng(seed)
    images = Tensor(generator.random((batch, sizes[0])).astype(np.float32))
    labels = Tensor(generator.integers(0, sizes[-1], batch).astype(np.int32))
    params = nn.state.get_parameters(model)
    counts = [math.prod(param._known_shape()) for param in params]

    @jit
    def backward() -> list[Tensor]:
        gradients = model.loss(images, labels).gradient(*params)
        Tensor.realize(*gradients)
        return list(gradients)

    step = 2.0**-7  # a power of two: the numbers added and divided by are exactly equal

    @jit
    def nudged(place: Tensor) -> Tensor:
        """The loss with `step` added to the parameter at a place, counting all in a row."""
        with Tensor.no_grad():
            first, weights = 0, []
            for param, count in zip(params, counts, strict=True):
                here = Tensor.arange(count).eq(place - first).reshape(param.shape)
                weights.append(param + here.float() * step)
                first += count
            x: Tensor = images
            for number in range(0, len(weights), 2):
                x = x.linear(weights[number].transpose(), weights[number + 1])
                x = x.sigmoid() if number + 2 < len(weights) else x
            return x.cross_entropy(labels).realize()

    (seconds,) = best_of_rounds([backward])
    exact = np.concatenate([g.numpy().ravel() for g in backward()])
    places = [Tensor([number]) for number in range(sum(counts))]
    for _ in range(3):  # the first calls compile and capture
        base = float(nudged(Tensor([-1])).item())
    start = time.perf_counter()
    tried = [float(nudged(place).item()) for place in places]
    blind = time.perf_counter() - start
    slopes = (np.array(tried) - base) / step
    cosine = slopes @ exact / (np.linalg.norm(slopes) * np.linalg.norm(exact))
    return Comparison(sum(counts), seconds, blind, float(cosine))


def mean_square_error(k0: Any, k1: Any, data: Points) -> Any:
    """For many lines, from the means of x, y, x², x·y and y², without an array of lines and points.
    """
    x, y = data.x.astype(np.float64), data.y.astype(np.float64)
    squares = k0**2 + k1**2 * (x * x).mean() + (y * y).mean()
    return squares + 2 * (k0 * k1 * x.mean() - k0 * y.mean() - k1 * (x * y).mean())


def draw(data: Points, paths: dict[str, list[list[float]]], noise: list[tuple[int, float]],
         path: Path) -> None:  # fmt: skip
    """Write a PNG: the points and the line, each path over the loss surface, noise by batch size.
    """
    figure = pictures.new_figure(14, 9)
    axes = figure.subplots(2, 3)
    k0, k1 = best(data)
    grid0, grid1 = np.meshgrid(np.linspace(k0 - 4, k0 + 4, 81), np.linspace(k1 - 5, k1 + 5, 81))
    surface = mean_square_error(grid0, grid1, data)
    levels = np.geomspace(surface.min() + 0.02, surface.max(), 16)
    for place, (name, steps) in zip(axes.flat, paths.items(), strict=False):
        walked = np.array(steps)
        place.contour(grid0, grid1, surface, levels=levels, colors="#a0a0a0", linewidths=0.7)
        place.plot(walked[:, 0], walked[:, 1], "o-", color="#2171b5", markersize=3, linewidth=1)
        place.plot(*walked[0, :2], "s", color="#d94801", label="start")
        place.plot(k0, k1, "*", color="#238b45", markersize=12, label="lowest loss")
        place.set(xlim=(grid0.min(), grid0.max()), ylim=(grid1.min(), grid1.max()), xlabel="k0",
                  ylabel="k1", title=f"learning rate {RATES[name]}: {name}")  # fmt: skip
        place.legend(loc="upper right")
    line, losses, scatter = axes[1]
    some = slice(None, None, ceildiv(len(data.x), MOST_DRAWN))
    line.plot(data.x[some], data.y[some], ".", color="#9ecae1", label="points")
    ends = np.array([-1.0, 1.0])
    line.plot(ends, k0 + k1 * ends, color="#238b45", label=f"y = {k0:.2f} + {k1:.2f}·x")
    line.set(xticks=np.linspace(-1, 1, 5), xlabel="x", ylabel="y")
    line.legend()
    for name, steps in paths.items():
        losses.plot([step[2] for step in steps], label=f"{RATES[name]}: {name}")
    losses.set(yscale="log", xlabel="step", ylabel="loss")
    pictures.whole_steps(losses.xaxis)
    losses.legend()
    sizes, spread = [size for size, _ in noise], [value for _, value in noise]
    scatter.loglog(sizes, spread, "o-", color="#d94801", label="measured")
    scatter.loglog(sizes, [spread[0] / size**0.5 for size in sizes], "--", color="#737373",
                   label="1/√batch")  # fmt: skip
    scatter.set(xlabel="batch size", ylabel="distance from the full gradient")
    scatter.legend()
    pictures.save_figure(figure, path)


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Fit a line to points by gradient descent, and draw each step."
    )
    add, whole = result.add_argument, console.positive_int
    add("--points", type=console.limited(int, 2, "at least 2", console.MOST), default=200,
        help="points to fit the line to; at least 2")  # fmt: skip
    add("--noise", type=console.limited(float, 0.0, "a number of at least 0", MOST_NOISE),
        default=0.5, help="standard deviation of the points from the true line")  # fmt: skip
    add("--steps", type=whole, default=40, help="steps of gradient descent")
    add("--picture", metavar="F.png", default="regression.png", help="where to save the picture")
    console.add_common_flags(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Print the numbers, draw the picture."""
    flags = parser().parse_args(arguments)
    console.apply_common_flags(flags)
    pictures.check_picture(flags.picture)
    # x and y as float64 and float32, their products, and arrays for the gradient
    console.check_fits(64 * flags.points, f"--points {flags.points}", "use fewer")
    data = points(flags.points, flags.noise, flags.seed)
    k0, k1 = best(data)
    print(f"{flags.points} points around y = {TRUTH[0]} + {TRUTH[1]}·x; least squares: "
          f"y = {k0:.4f} + {k1:.4f}·x")  # fmt: skip
    print(f"\ngradient descent, {flags.steps} steps from (−2, −2)")
    paths = {name: descend(data, rate, flags.steps, (-2.0, -2.0)) for name, rate in RATES.items()}
    for name, path in paths.items():
        print(f"  learning rate {RATES[name]:<5} {name:<11} k0 {path[-1][0]:9.3g}, "
              f"k1 {path[-1][1]:9.3g}, loss {path[0][2]:.3g} → {path[-1][2]:.3g}")  # fmt: skip
    noise = gradient_noise(data, 400, flags.seed)
    print("\ndistance between the gradient of a batch and that of all points")
    for size, away in noise:
        print(f"  batch {size:>4}  {away:.4f}")
    result = perturb_or_propagate((784, 16, 16, 10), 32, flags.seed)
    print(f"\na gradient for {result.parameters:,} parameters\n"
          f"  one backward pass          {result.backward * 1e3:10.3f} ms\n"
          f"  {result.parameters:,} forward passes      {result.blind * 1e3:10.1f} ms: "
          f"{result.blind / result.backward:,.0f} times as long, for the same direction "
          f"(cosine {result.cosine:.4f})")  # fmt: skip
    draw(data, paths, noise, Path(flags.picture))
    print(f"\nsaved picture {flags.picture}")


if __name__ == "__main__":
    sys.exit(console.run(main))
