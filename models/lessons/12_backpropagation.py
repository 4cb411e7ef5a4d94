"""One backward pass tells every parameter which way to go. Without it, only guessing is left."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.models.digits import load_digits
from minigrad.models.lessons.page import Page, alone
from minigrad.models.mlp import MLP, SIZES
from minigrad.models.regression import perturb_or_propagate

TITLE = "Backpropagation"
SECTIONS = ("Backpropagation",)
FORWARDS = 3  # forward passes that a pass forward and backward costs: backward, each product twice
Curve = list[tuple[float, float]]


def by_chance(images: Tensor, labels: Tensor, seconds: float) -> Curve:
    """Change all weights at random; keep it where the loss got better: (seconds, loss)."""
    Tensor.manual_seed(1)
    model = MLP(SIZES)
    params = nn.state.get_parameters(model)

    @jit
    def tried(best: Tensor) -> Tensor:
        with Tensor.no_grad():
            shifts = [Tensor.randn(*param.shape) * 0.01 for param in params]
            kept = [param.clone() for param in params]
            for param, shift in zip(params, shifts, strict=True):
                param.assign(param + shift)
            loss = model.loss(images, labels)
            better = loss < best
            for param, before in zip(params, kept, strict=True):
                param.assign(better.where(param, before))
            Tensor.realize(loss, *params)
            return loss.minimum(best).realize()

    return _timed(tried, model.loss(images, labels), seconds)


def by_gradient(images: Tensor, labels: Tensor, seconds: float) -> Curve:
    """Gradient descent on the same examples: (seconds, loss)."""
    Tensor.manual_seed(1)
    model = MLP(SIZES)
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=0.3)

    @jit
    def step(_: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach().realize()

    with Tensor.train():
        return _timed(step, model.loss(images, labels), seconds)


def _timed(step: Callable[[Tensor], Tensor], loss: Tensor, seconds: float) -> Curve:
    """Steps for so many seconds; the first ones, which compile, stop the clock."""
    value = loss.detach().realize()
    curve = [(0.0, float(value.item()))]
    for number in range(1_000_000):
        begin = time.perf_counter()
        value = step(value)
        now = float(value.item())
        spent = curve[-1][0] + (time.perf_counter() - begin if number > 2 else 0.0)
        curve.append((min(spent, seconds), now))
        if spent >= seconds:
            break
    return curve


def thinned(curve: Curve, count: int = 120) -> Curve:
    """Some points of a curve, its ends among them."""
    places = np.unique(np.geomspace(1, len(curve), count).astype(int)) - 1
    return [curve[place] for place in places]


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Training wants to know, for each of the 13,002 parameters of the network that reads digits:
        if it were a little larger, would the error grow or shrink, and how fast? That list of
        numbers is the **gradient**.

        You can find it without any theory. **Nudge** one parameter, run the network, see what the
        loss does, put it back; then the next. That is one forward pass for each parameter.
        **Backpropagation** goes through the network once, from the error at the output back to the
        input, layer by layer, and knows all of them.
    """)
    both = perturb_or_propagate(SIZES, 32, 1)
    passes = both.parameters + 1
    page.table(["method", "passes through the network", "milliseconds"], [
        ["nudge every parameter", passes, both.blind * 1e3],
        ["backpropagation", "1 forward, 1 backward", both.backward * 1e3],
    ], "one gradient of 13,002 numbers")  # fmt: skip
    page.check("both find the same direction", both.cosine > 0.99, f"cosine {both.cosine:.4f}")
    page.check("backpropagation needs at least 1,000 times fewer passes",
               passes / FORWARDS > 1000,
               f"{passes:,} against the cost of {FORWARDS}: "
               f"{passes / FORWARDS:,.0f} times fewer")  # fmt: skip

    page.say(f"""
        Here that is {both.blind / both.backward:,.0f} times the time. And it grows with the model:
        for GPT-3's 175 billion parameters, one gradient by nudging would be 175 billion passes,
        for **each** of its training steps.

        Or we do without a gradient, as the article says: change all parameters **at random**, check
        whether the error improved, and keep the change or undo it. Here both methods learn the same
        500 digits, for the same time.
    """)
    training, _ = load_digits()
    images, labels = Tensor(training.images[:500]), Tensor(training.labels[:500])
    seconds = page.pick(6.0, 1.5)
    curves = {"random changes": by_chance(images, labels, seconds),
              "backpropagation": by_gradient(images, labels, seconds)}
    lowest = {name: min(loss for _, loss in curve) for name, curve in curves.items()}
    page.check("in the same time, backpropagation gets far lower",
               lowest["backpropagation"] < lowest["random changes"] / 2,
               ", ".join(f"{name} {loss:.3f}" for name, loss in lowest.items()))  # fmt: skip
    steps = [[name, len(curve) - 1, lowest[name]] for name, curve in curves.items()]
    page.table(["method", "steps", "lowest loss"], steps, f"after {seconds} seconds each")

    page.say("""
        Random changes do work, a little. With 13,002 numbers that must all be right together, a
        random change that helps is small; with billions there is practically none. This is the
        difference between months and centuries.
    """)
    thin = {name: thinned(curve) for name, curve in curves.items()}
    moments = [curve[len(curve) // 2][0] for curve in thin.values()]
    page.widget("race", "Let the clock run, and watch both.",
                {"curves": thin, "seconds": seconds},
                [({"seconds": moment}, [_at(curve, moment) for curve in thin.values()], 1e-6)
                 for moment in (*moments, seconds)])  # fmt: skip

    page.say("""
        How it works inside is no secret: each operation knows its own derivative, and by the
        **chain rule** derivatives of operations that follow one another are multiplied. In minigrad
        there is one short rule for each operation (`minigrad/graph/gradient.py`). Try it on the
        smallest network there is: one weight, one bias, a sigmoid, and a square for the loss.
    """)
    moves = []
    for x, w, b, goal in ((1.0, 0.5, 0.0, 1.0), (2.0, -1.0, 0.5, 0.0), (-1.0, 1.5, 1.0, 1.0)):
        weight, bias = Tensor(w, requires_grad=True), Tensor(b, requires_grad=True)
        loss = ((weight * x + bias).sigmoid() - goal).square()
        by_w, by_b = loss.gradient(weight, bias)
        moves.append(({"x": x, "w": w, "b": b, "goal": goal},
                      [loss.item(), by_w.item(), by_b.item()], 1e-5))  # fmt: skip
    page.widget("chain", "Change the numbers; follow the derivative from right to left.", {}, moves)


def _at(curve: Curve, moment: float) -> float:
    """The loss of the last point that is not later."""
    return [loss for when, loss in curve if when <= moment][-1]


if __name__ == "__main__":
    alone(lesson)
