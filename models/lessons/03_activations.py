"""Why something that is not a straight line must stand between two layers."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad.models.digits import Digits
from minigrad.models.lessons.page import Page, alone
from minigrad.models.metrics import Metrics
from minigrad.models.mlp import ACTIVATIONS, MLP, as_one_map, evaluate, train

TITLE = "Activation functions"
SECTIONS = ("Activations",)
SIZES = (2, 24, 24, 2)
POINTS = 200  # of each spiral


def spirals(count: int, seed: int) -> Digits:
    """Points of two spirals that wind around each other, (2·count, 2), and which they are on."""
    generator = np.random.default_rng(seed)
    far = np.sqrt(generator.uniform(0.02, 1, (2, count)))
    angle = far * 3 * np.pi + np.array([[0.0], [np.pi]])
    points = np.stack([far * np.cos(angle), far * np.sin(angle)], 2).reshape(-1, 2)
    points += generator.normal(0, 0.02, points.shape)
    order = generator.permutation(2 * count)
    labels = np.repeat([0, 1], count)
    return Digits(points[order].astype(np.float32), labels[order].astype(np.int32))


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Take the activation functions out of a network and each layer only multiplies and adds. But
        multiplying and adding twice is the same as doing it once, with other numbers: 2·(3·x) is
        6·x. So however many layers there are, **all of them collapse into one**.

        To see what that costs: points lie on two spirals, one inside the other. The network is
        given a point's two coordinates and says which spiral it is on. We train the same network
        twice, with an activation function between its layers and without.
    """)
    data, fresh = spirals(POINTS, 1), spirals(POINTS, 2)
    models, accuracy = {}, {}
    for name in ("relu", "tanh", "none"):
        Tensor.manual_seed(2)
        models[name] = MLP(SIZES, name)
        train(models[name], data, fresh, page.pick(200, 100), 16, 5e-3, 1, Metrics(), quiet=True)
        accuracy[name] = evaluate(models[name], fresh)[1]
    page.table(["activation", "points classified correctly"],
               [[name, f"{share:.1%}"] for name, share in accuracy.items()],
               "on points not used in training")  # fmt: skip
    page.check("with an activation, accuracy is at least 20 percentage points higher",
               accuracy["relu"] - accuracy["none"] >= 0.2,
               f"{accuracy['relu']:.1%} against {accuracy['none']:.1%}")  # fmt: skip

    page.say("""
        Without an activation the network can only draw one straight line through the plane: on one
        side it says blue, on the other orange. Whatever the line, much of each spiral is on the
        wrong side.

        And here is the collapse itself. The three matrices of the network without activations,
        multiplied with one another, are **one** matrix of 2 × 2 numbers, which gives the same
        answers as all three layers.
    """)
    with Tensor.no_grad():
        matrix, shift = as_one_map(models["none"])
        points = Tensor(fresh.images)
        apart = (models["none"](points) - points.linear(matrix.transpose(), shift)).abs().max()
    page.table(["", "x", "y", "shift"],
               [[name, *row, by] for name, row, by in
                zip(("first spiral", "second spiral"), matrix.tolist(), shift.tolist(),
                    strict=True)],
               "three layers without activations are this one")  # fmt: skip
    page.check("one linear map gives the same answers as the three layers, within 1e-4",
               apart.item() < 1e-4,
               f"they differ by at most {apart.item():.1e}")  # fmt: skip

    page.say("""
        Switch the activation on and off. The picture shows what the network says about each point
        of the plane; the dots are the points that it should get right.
    """)
    with Tensor.no_grad():
        answers = {name: model(Tensor(fresh.images)).numpy() for name, model in models.items()}
    plays = [({"activation": name}, [accuracy[name], *answers[name][:8].ravel()], 1e-4)
             for name in models]  # fmt: skip
    page.widget("spirals", "Switch the activation function, and see the boundary straighten.",
                {"names": list(models), "points": fresh.images, "labels": fresh.labels,
                 "layers": [[{"weight": layer.weight, "bias": layer.bias} for layer in m.layers]
                            for m in models.values()]}, plays)  # fmt: skip

    page.say("""
        Which activation you choose matters little; that there is one matters a lot. These are the
        common ones. All of them pass on strong signals and suppress weak ones.
    """)
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    page.chart("activation functions", "sum − threshold", "answer",
               {name: list(zip(x, ACTIVATIONS[name](Tensor(x)).numpy(), strict=True))
                for name in ("sigmoid", "relu", "gelu", "tanh")})  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
