"""Signals, weights, a sum, a threshold: all that a neuron is."""

from __future__ import annotations

from minigrad import Tensor
from minigrad.models.lessons.page import Page, alone
from minigrad.models.neuron import ACTIVATIONS, SIGNALS, THRESHOLD, WEIGHTS

TITLE = "A neuron"
SECTIONS = ("What Is a Neural Network?", "Neurons")
OTHERS = (((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), 1.5), ((0.2, 0.9, 0.4), (2.0, -1.5, 1.0), -0.5))


def neuron(signals: Tensor, weights: Tensor, threshold: float) -> Tensor:
    """What the signals amount to above the threshold, a scalar."""
    return (signals * weights).sum() - threshold


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        There is no magic in a neural network, only many simple operations with numbers. The
        simplest whole part is a **neuron**. Signals come in, each a number. Each has a **weight**:
        how much this neuron cares about it, and whether it speaks for or against. The neuron
        multiplies each signal by its weight, adds the products, and compares the sum with its
        **threshold**. The idea is from the 1940s, taken from nerve cells, which pass signals on
        through synapses.

        Say you decide whether to go for a walk. Signals: how sunny it is, how much work is left,
        how much you long for fresh air. Sun counts for it, work against it.
    """)
    signals, weights = Tensor(SIGNALS), Tensor(WEIGHTS)
    products = (signals * weights).tolist()
    names = ("sun", "work left", "longing")
    page.table(["signal", "strength", "weight", "product"],
               list(zip(names, SIGNALS, WEIGHTS, products, strict=True)))  # fmt: skip
    above = neuron(signals, weights, THRESHOLD)
    page.check("the sum of the products, minus the threshold, is the framework's answer",
               abs(sum(products) - THRESHOLD - above.item()) < 1e-6,
               f"{above.item():.3f}")  # fmt: skip

    page.say(f"""
        The sum is {sum(products):.2f}, the threshold {THRESHOLD:g}: it is exceeded by
        {above.item():.2f}, so the neuron is **active**. The threshold can also be written
        differently: adding the **bias** −{THRESHOLD:g} to the sum and comparing with 0 is the same,
        and that is how all frameworks write it.

        Real networks do not switch on and off at the threshold. An **activation function** says how
        strongly the neuron answers: the sigmoid rises smoothly from 0 to 1, ReLU passes on what is
        above the threshold and nothing else, GELU is a ReLU without the corner.
    """)
    rows = []
    for strength in (0.0, 0.5, 1.0, 1.5, 2.0):
        value = neuron(signals * strength, weights, THRESHOLD)
        answers = [bend(value).item() for bend in ACTIVATIONS.values()]
        rows.append([strength, value.item(), *answers])
    page.table(["all signals ×", "sum − threshold", *ACTIVATIONS], rows,
               "the same neuron, with weaker and stronger signals")  # fmt: skip

    page.say("""
        Now try it yourself. Find weights for which the neuron stays silent although the sun shines,
        and a threshold so low that it is active with no signal at all.
    """)
    plays = []
    for given in ((SIGNALS, WEIGHTS, THRESHOLD), *OTHERS):
        value = neuron(Tensor(given[0]), Tensor(given[1]), given[2])
        answers = [value.item(), *(bend(value).item() for bend in ACTIVATIONS.values())]
        plays.append(({"signals": given[0], "weights": given[1], "threshold": given[2]}, answers,
                      1e-5))  # fmt: skip
    page.widget("neuron", "Drag signals, weights and threshold, and watch the sum cross it.",
                {"names": names, "signals": SIGNALS, "weights": WEIGHTS, "threshold": THRESHOLD},
                plays)  # fmt: skip

    page.say("""
        What you did by hand is what training does by calculation: nobody types weights and
        thresholds in. A network is just many of these neurons, and the next lesson connects 42 of
        them so that they read your handwriting.
    """)


if __name__ == "__main__":
    alone(lesson)
