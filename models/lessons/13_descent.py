"""Down the mountain, step by step: y = k0 + k1·x."""

from __future__ import annotations

import numpy as np

from minigrad.models.lessons.page import Page, alone, shown
from minigrad.models.regression import RATES, TRUTH, best, descend, points

TITLE = "Gradient descent"
SECTIONS = ("Gradient Descent",)
START, STEPS = (-2.0, -2.0), 40


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        This is the smallest problem that shows everything: a straight line through a cloud of
        points, y = k0 + k1·x. Two parameters: the height k0 and the slope k1. For each choice of
        the two there is a loss, the mean square of the distances between line and points. Think of
        it as a landscape: k0 to the east, k1 to the north, the loss is the height. Training looks
        for the bottom of the valley.
    """)
    data = points(100, 0.5, 1)
    k0, k1 = best(data)
    page.table(["", "k0", "k1"], [["the line that made the points", *TRUTH],
                                  ["the bottom, by a formula that only lines have", k0, k1]])

    page.say(f"""
        You stand on the slope in fog. The **gradient** says which way is up, and how steep: two
        numbers here, the derivatives of the loss by k0 and by k1. You take a step the other way:

        k ← k − learning rate · gradient

        The **learning rate** is a hyperparameter, and everything depends on it. From k0 = k1 =
        {shown(START[0])}:
    """)
    paths = {name: descend(data, rate, STEPS, START) for name, rate in RATES.items()}
    bottom = descend(data, 0.0, 0, (k0, k1))[0][2]
    page.table(["learning rate", "it …", "loss at first", f"loss after {STEPS} steps"],
               [[RATES[name], name, path[0][2], path[-1][2]] for name, path in paths.items()])
    page.chart("the loss, step by step", "step", "loss above the bottom",
               {f"{RATES[name]}: {name}": [(i, place[2] - bottom + 1e-7) for i, place in
                                           enumerate(path)] for name, path in paths.items()},
               log="y")  # fmt: skip
    ends = {name: path[-1][2] for name, path in paths.items()}
    page.check("it arrives", ends["arrives"] - bottom < 1e-3,
               f"{ends['arrives'] - bottom:.1e} above the bottom")  # fmt: skip
    page.check("with small steps it crawls: on its way, but still far off",
               bottom + 0.5 < ends["crawls"] < paths["crawls"][0][2],
               f"{paths['crawls'][0][2]:.2f} → {ends['crawls']:.2f}, bottom {bottom:.2f}")
    page.check("with large steps it overshoots: the loss grows",
               ends["overshoots"] > 10 * paths["overshoots"][0][2],
               f"{paths['overshoots'][0][2]:.1f} → {ends['overshoots']:.3g}")  # fmt: skip

    page.say("""
        Click anywhere on the map to start there (or use the sliders), and move the learning rate.
        Find the one that arrives fastest, and the one above which nothing arrives at all.
    """)
    x, y = data.x.astype(np.float64), data.y.astype(np.float64)
    moments = {"x": x.mean(), "y": y.mean(), "xx": (x * x).mean(), "xy": (x * y).mean(),
               "yy": (y * y).mean()}  # fmt: skip
    plays = [({"k0": START[0], "k1": START[1], "rate": RATES[name]},
              [*path[1], *path[-1]], 1e-3) for name, path in paths.items()]  # fmt: skip
    page.widget("descent", "Click a start on the map, and choose a learning rate.",
                {"moments": {name: float(value) for name, value in moments.items()},
                 "bottom": [k0, k1], "steps": STEPS, "x": data.x, "y": data.y,
                 "rates": sorted({0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0, 1.05,
                                  1.2, *RATES.values()})}, plays)  # fmt: skip

    page.say("""
        GPT-3's landscape has 175 billion directions instead of two, and no formula knows its
        bottom. But the rule is the same line of text: against the gradient, a small step. That it
        works in such landscapes was a surprise to everybody.
    """)


if __name__ == "__main__":
    alone(lesson)
