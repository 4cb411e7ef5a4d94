"""More parameters help, up to a point; and what goes wrong beyond it."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad.models.digits import Digits, load_digits
from minigrad.models.lessons.page import Page, alone
from minigrad.models.metrics import Metrics
from minigrad.models.mlp import MLP, dead_neurons, evaluate, train
from minigrad.models.train import parameter_count

TITLE = "Size, dead neurons, overfitting"
SECTIONS = ("Model Size, Quality, and MoE",)
FEW = 200  # digits that can be learned by heart
BATCH = 500  # digits: few steps an epoch, as there are many sizes to train
RATES = (1e-3, 3e-2, 2e-1)


def quality(neurons: int, epochs: int, training: Digits, validation: Digits) -> list[float]:
    """A network of one hidden layer: its parameters, loss on what it saw, and on new digits."""
    Tensor.manual_seed(1)
    model = MLP((784, neurons, 10))
    train(model, training, validation, epochs, BATCH, 5e-3, 1, Metrics(), patience=5, quiet=True)
    return [parameter_count(model), evaluate(model, training)[0], evaluate(model, validation)[0]]


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Larger models are better models: that is the short history of recent years. Is that true,
        and up to which size? We train networks that read digits, with one hidden layer of more and
        more neurons, each until it no longer improves on new digits.
    """)
    training, validation = load_digits()
    widths = page.pick((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3776), (1, 16, 256))
    found = [quality(n, page.pick(60, 20), training, validation) for n in widths]
    sizes = [int(row[0]) for row in found]
    page.chart("loss against size", "parameters", "loss",
               {"new digits": [(row[0], row[2]) for row in found],
                "digits it learned from": [(row[0], row[1]) for row in found]},
               log="x")  # fmt: skip
    new = [row[2] for row in found]
    middle = len(new) // 2
    early, late = new[0] - new[middle], new[middle] - min(new[middle:])
    page.check("the curve falls, then flattens: the second half brings little",
               early > 0 and late < early / 5,
               f"loss {new[0]:.2f} → {new[middle]:.2f} up to {sizes[middle]:,} parameters, then "
               f"{min(new[middle:]):.2f} with up to {sizes[-1]:,}")  # fmt: skip

    page.say(f"""
        From {sizes[0]:,} to {sizes[middle]:,} parameters the loss falls by {early:.2f}; from there
        to {sizes[-1]:,}, by {late:.2f}. This is **saturation**: {len(training):,} digits contain no
        more than a smaller network can learn. With more examples the bend moves to the right, so
        models and their training texts have grown together.

        Large networks have two troubles of their own. The first: **overfitting**. Instead of
        finding what makes a three a three, the network **memorises** the examples. To see it
        plainly, a network gets only {FEW} digits, again and again.
    """)
    Tensor.manual_seed(1)
    few, metrics = Digits(training.images[:FEW], training.labels[:FEW]), Metrics()
    model = MLP((784, 64, 10))
    epochs = page.pick(120, 40)
    train(model, few, validation, epochs, 20, 3e-3, 1, metrics, quiet=True)
    history = metrics.history
    seen = [float(np.mean([h["loss"] for h in history if h["epoch"] == e]))
            for e in range(1, epochs + 1)]  # fmt: skip
    fresh = [float(h["val_loss"]) for h in history if h["val_loss"] is not None]
    page.chart("learning by heart", "epoch", "loss",
               {"the 200 digits": list(enumerate(seen, 1)),
                "new digits": list(enumerate(fresh, 1))})  # fmt: skip
    gaps = [b - a for a, b in zip(seen, fresh, strict=True)]
    page.check("the gap between what it saw and what is new grows",
               gaps[-1] > gaps[4] + 0.1 and seen[-1] < 0.1,
               f"{gaps[4]:.2f} after 5 epochs, {gaps[-1]:.2f} after {epochs}")  # fmt: skip

    page.say("""
        Move through the epochs: where would you have stopped? Training holds some examples back, as
        we did, and watches those. Four things help: stopping in time, more examples, a smaller
        network, or **dropout**: in each step some randomly chosen neurons are left out, so that the
        network cannot rely on a single one.
    """)
    best = int(np.argmin(fresh))
    page.widget("overfit", "Choose an epoch, and a size.",
                {"seen": seen, "fresh": fresh, "sizes": sizes, "new": new,
                 "old": [row[1] for row in found]},
                [({"epoch": epoch + 1, "size": size}, [seen[epoch], fresh[epoch], new[size]], 1e-9)
                 for epoch, size in ((0, 0), (best, 1), (epochs - 1, len(new) - 1))])  # fmt: skip

    page.say("""
        The second trouble: **dead neurons**. A neuron whose sum is below its threshold for every
        input always answers 0. Its gradient is 0, too, so it never learns to do anything else. It
        is multiplied like any other and costs electricity. Steps that are too large kill neurons.
    """)
    rows, dead = [], []
    for rate in RATES:
        Tensor.manual_seed(1)
        model = MLP((784, 64, 10))
        accuracy = train(model, few, validation, 20, 20, rate, 1, Metrics(), quiet=True)
        ((count, all_of_them),) = dead_neurons(model, validation)
        dead.append(count)
        rows.append([rate, f"{count} of {all_of_them}", f"{accuracy:.0%}"])
    page.table(["learning rate", "dead neurons", "new digits read correctly"], rows)
    page.check("large steps leave more neurons dead than small ones", dead[-1] > dead[0],
               f"{dead[0]} at {RATES[0]:g}, {dead[-1]} at {RATES[-1]:g}")  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
