"""42 neurons in three layers, 13,002 weights and biases, and they read handwriting."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad.models.digits import load_digits
from minigrad.models.lessons.page import Page, alone
from minigrad.models.metrics import Metrics
from minigrad.models.mlp import MLP, SIZES, evaluate, train
from minigrad.models.train import parameter_count

TITLE = "Layers that read digits"
SECTIONS = ("Layers and Weights", "Concrete Example — Multi-Layer Perceptron (MLP)")


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Put neurons side by side and you have a **layer**: each of them gets the same signals, but
        has its own weights. Put layers one after another and you have a **network**: the answers of
        one layer are the signals of the next. Signals enter at the **input layer**, the answer
        leaves at the **output layer**, the layers between are called **hidden**.

        Our network reads a picture of 28 × 28 = 784 points. Two hidden layers of 16 neurons follow,
        and ten outputs, one for each digit. Every line between two neurons is a weight, and every
        neuron also has a bias. These numbers are the network's **parameters**.
    """)
    Tensor.manual_seed(1)
    model = MLP(SIZES)
    counts = [parameter_count(layer) for layer in model.layers]
    page.table(["layer", "weights", "biases", "parameters"],
               [[f"{a} → {b}", a * b, b, count] for a, b, count in
                zip(SIZES[:-1], SIZES[1:], counts, strict=True)])  # fmt: skip
    page.check("12,560 + 272 + 170 parameters are 13,002",
               counts == [12_560, 272, 170] and parameter_count(model) == 13_002,
               " + ".join(f"{count:,}" for count in counts) + f" = {sum(counts):,}")  # fmt: skip

    page.say("""
        At first the 13,002 numbers are random, and so are the answers: about one digit in ten is
        right. **Training**, which later lessons take apart, shows the network digits that people
        wrote. After every few digits it changes every number a little, so that the answers would
        have been better.
    """)
    training, validation = load_digits()
    _, before = evaluate(model, validation)
    metrics = Metrics()
    accuracy = train(model, training, validation, page.pick(15, 6), 32, 3e-3, 1, metrics,
                     quiet=True)  # fmt: skip
    history = metrics.history
    page.chart("learning to read", "digits seen", "share of new digits read correctly",
               {"accuracy": [(0, before), *((32 * h["step"], h["val_accuracy"]) for h in history
                                            if h.get("val_accuracy") is not None)]})  # fmt: skip
    page.check("on digits that it never saw, it is right far more often than by chance",
               before < 0.3 and accuracy > 0.85,
               f"{before:.1%} before training, {accuracy:.1%} after")  # fmt: skip

    page.say(f"""
        Now **draw a digit**. All 13,002 numbers are in this page, and your browser does the
        multiplications at each stroke. It was right for {accuracy:.0%} of {len(validation):,}
        digits that it had never seen, so expect mistakes, and look at what it takes your digit for.

        Neurons light up as they become active. Point at one of the first hidden layer (or reach it
        with the Tab key) to see what it looks for: its 784 weights as a picture, blue where ink
        counts for it, orange where ink counts against it. The shapes are not pretty strokes and
        loops: training asks only for the right answer.
    """)
    places = [int(np.flatnonzero(validation.labels == digit)[0]) for digit in range(10)]
    images = validation.images[places]
    with Tensor.no_grad():
        logits = model(Tensor(images)).numpy()
        hidden = [answer.numpy() for answer in model.hidden(Tensor(images))]
    data = {
        "layers": [{"weight": layer.weight, "bias": layer.bias} for layer in model.layers],
        "examples": images,
    }
    plays = [({"example": digit}, [*logits[digit], *hidden[1][digit]], 1e-5) for digit in range(10)]
    page.widget("digits", "Draw a digit with mouse, finger or arrow keys, or choose an example.",
                data, plays)  # fmt: skip

    page.say("""
        The answer is the largest output. **Softmax**, which you will meet again, turns the outputs
        into probabilities: it makes every number positive, and their sum 1.
    """)
    right = int((logits.argmax(1) == np.arange(10)).sum())
    page.check("most of the ten examples are read correctly", right >= 7, f"{right} of 10")


if __name__ == "__main__":
    alone(lesson)
