"""One iteration of training in its four stages, with all the numbers; and then many of them."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.train import parameter_count

TITLE = "The four stages of training"
SECTIONS = ("Training", "What the Training Process Looks Like")
SENTENCES = (
    "Cat sat on the windowsill", "Dog lay on the carpet", "Bird sat on the roof",
    "Mouse hid under the carpet", "Plum is purple and sweet", "Cat hid under the roof",
    "Dog sat on the carpet", "Bird lay under the windowsill",
)  # fmt: skip
RATE, KEPT = 0.3, (0, 1, 2, 5, 10, 20, 40, 80, 150)
WIDTH = 16  # numbers of a word's vector
PARTS = ("forward", "loss", "backward", "update")


def iteration(
    model: GPT, ids: Tensor, targets: Tensor
) -> tuple[Tensor, float, list[Tensor], list[float]]:
    """One step: (logits, loss, gradients, milliseconds of each stage)."""
    clock, params = [time.perf_counter()], nn.state.get_parameters(model)
    logits = model(ids).realize()
    clock.append(time.perf_counter())
    loss = logits.cross_entropy(targets, axis=-1)
    value = float(loss.item())
    clock.append(time.perf_counter())
    gradients = list(loss.gradient(*params))
    Tensor.realize(*gradients)
    clock.append(time.perf_counter())
    with Tensor.no_grad():
        for param, gradient in zip(params, gradients, strict=True):
            param.assign(param - gradient * RATE)
        Tensor.realize(*params)
    clock.append(time.perf_counter())
    taken = [1e3 * (b - a) for a, b in pairwise(clock)]
    return logits, value, gradients, taken


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        **Training** finds the parameters. It needs nothing but text: at each place, the next word
        is known. First the text is **sliced** into examples, an input and the word that should
        follow.
    """)
    known = sorted({word for line in SENTENCES for word in line.split()})
    words = {word: number for number, word in enumerate(known)}
    rows = np.array([[words[word] for word in line.split()] for line in SENTENCES], np.int32)
    first = SENTENCES[0].split()
    page.table(["input", "→ target"],
               [[" ".join(first[:n]), first[n]] for n in range(1, len(first))])  # fmt: skip
    examples = rows.shape[0] * (rows.shape[1] - 1)
    page.check("a sentence of n words gives n − 1 examples",
               examples == sum(len(line.split()) - 1 for line in SENTENCES),
               f"{examples} examples of {len(SENTENCES)} sentences")  # fmt: skip

    page.say("""
        Step 0: a model whose parameters are random numbers. It has the blocks of earlier lessons,
        but it is tiny, so that you can see all of it at work.
    """)
    Tensor.manual_seed(1)
    model = GPT(GPTConfig(layers=1, heads=2, dim=WIDTH, context=rows.shape[1] - 1,
                          vocabulary=len(words)))  # fmt: skip
    ids, targets = Tensor(rows[:, :-1].copy()), Tensor(rows[:, 1:].copy())
    for _ in range(3):  # another model of its kind, that compiling counts in no stage's time
        iteration(GPT(model.config), ids, targets)
    page.table(["", "count"], [["words it knows", len(words)],
                               ["parameters", parameter_count(model)]])  # fmt: skip

    page.say("""
        Then each iteration has four stages.

        - **Forward pass**: the model is given the inputs and says how probable it finds each word.
        - **Loss**: how bad that was. It is −log of the probability that the right word was given:
          0 if the model was sure and right, large if it was sure and wrong.
        - **Backward pass**: from the last layer to the first, how the loss would change with each
          parameter: the **gradients**.
        - **Update**: every parameter takes a small step against its gradient.

        We watch it after “Cat sat”, where the text goes on with “on”. If the text had gone on with
        “purple”, which never follows there, the loss would grow as the model learns.
    """)
    on, purple = words["on"], words["purple"]
    records: list[dict[str, Any]] = []
    losses, times = [], []
    for step in range(KEPT[-1] + 1):
        before = model.wte.weight.numpy()[on].copy()
        logits, loss, gradients, taken = iteration(model, ids, targets)
        losses.append(loss)
        times.append(taken)
        if step in KEPT:
            chances = logits[0, 1].softmax(0).numpy()
            order = np.argsort(-chances)[:6]
            each = [float(logits[0, 1].cross_entropy(Tensor(word)).item())
                    for word in (on, purple)]  # fmt: skip
            records.append({
                "step": step, "mean": loss, "milliseconds": taken,
                "words": [known[i] for i in order], "chances": chances[order],
                "on": chances[on], "purple": chances[purple], "losses": each,
                "before": before, "gradient": gradients[0].numpy()[on],
                "after": model.wte.weight.numpy()[on].copy(),
            })  # fmt: skip
    at_start = records[0]["losses"][0]
    page.check("at the start, the loss is near log of the vocabulary, as for a blind guess",
               abs(at_start - math.log(len(words))) < 0.6,
               f"{at_start:.2f}, log {len(words)} = {math.log(len(words)):.2f}")
    page.check("the loss falls", losses[-1] < losses[0] / 2, f"{losses[0]:.3f} → {losses[-1]:.3f}")
    final = records[-1]["losses"]
    page.check("“purple” would now be a far bigger surprise than “on”",
               final[1] > final[0] + 2, f"loss of on {final[0]:.2f}, of purple {final[1]:.2f}")
    usual = [float(np.median(part)) for part in zip(*times, strict=True)]
    page.table(["stage", "milliseconds"], list(zip(PARTS, usual, strict=True)),
               "median of an iteration")  # fmt: skip

    page.say("""
        Step through the stages of one iteration, and choose earlier and later ones.
    """)
    plays = [({"record": number}, [*record["losses"], *record["after"]], 1e-5)
             for number, record in enumerate(records)]  # fmt: skip
    page.widget("stages", "Go through the four stages; then choose a later iteration.",
                {"records": records, "rate": RATE}, plays)  # fmt: skip

    page.say("""
        And again, and again. GPT-3 saw hundreds of billions of tokens in this way, on a cluster of
        thousands of GPUs with its own network; in all these months nothing else happens.
    """)
    page.chart("the loss falls", "iteration", "loss, all examples",
               {"loss": list(enumerate(losses))})  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
