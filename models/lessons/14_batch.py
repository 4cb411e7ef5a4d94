"""How many examples to look at before each step, and how often to look at the same ones."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.regression import gradient_noise, loss, points
from minigrad.models.sizing import activation_bytes, bytes_text

TITLE = "Batches and epochs"
SECTIONS = ("Training Data",)
TOKENS, BATCH = 300e9, 3.2e6  # that GPT-3 saw, and in a batch (Brown et al. 2020)


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        A step of training needs the gradient of the error over the examples. Over which? All of
        them would be exact, but far too slow. A single one is quick, but its gradient is right only
        for itself. So we take a handful, a **batch**, and a new one for each step.

        How wrong is the gradient of a batch? We measure it for the line through a cloud of points,
        where the exact gradient is known: many batches of each size, and how far their gradients
        are from that of all points.
    """)
    data = points(2000, 0.5, 3)
    noise = gradient_noise(data, page.pick(2000, 500), 3)
    first = noise[0][1]
    page.chart("how noisy the gradient of a batch is", "examples in a batch",
               "distance from the exact gradient",
               {"measured": noise, "1/√batch": [(n, first / n**0.5) for n, _ in noise]},
               log="xy")  # fmt: skip
    off = {n: away * n**0.5 / first - 1 for n, away in noise}
    page.check("noise falls as 1/√batch, within 20 %", max(map(abs, off.values())) < 0.2,
               ", ".join(f"{n}: {by:+.0%}" for n, by in off.items()))  # fmt: skip

    page.say("""
        So four times as many examples halve the noise. The first few examples help most, and at
        some point another thousand only cost time.

        Draw batches yourself. Each arrow is the step that one batch would take; the thick one is
        the step that all points would take.
    """)
    k = Tensor((0.0, 0.0), requires_grad=True)
    (exact,) = loss(k, Tensor(data.x), Tensor(data.y)).gradient(k)
    few = [range(first, first + 4) for first in (0, 100)]
    plays: list[tuple[dict[str, object], object, float]] = [({"all": True}, exact, 1e-4)]
    for places in few:
        (own,) = loss(k, Tensor(data.x[places]), Tensor(data.y[places])).gradient(k)
        plays.append(({"places": list(places)}, own, 1e-4))
    page.widget("noise", "Choose a batch size and draw twenty batches.",
                {"x": data.x, "y": data.y, "sizes": [n for n, _ in noise],
                 "measured": [away for _, away in noise]}, plays)  # fmt: skip

    page.say(f"""
        Larger batches also need memory: what the backward pass needs of every example must be
        kept. GPT-3 was trained with {BATCH / 1e6:g} million tokens in a batch. No machine holds
        what that would keep; it is spread over many, or over time.
    """)
    gpt3 = GPTConfig.preset("gpt3")
    windows = round(BATCH / gpt3.context)
    page.table(["batch", "tokens", "kept for the backward pass"],
               [[f"{n:,} text" + "s" * (n > 1), n * gpt3.context,
                 bytes_text(activation_bytes(gpt3, n))]
                for n in (1, 16, windows)], "GPT-3, texts of 2,048 tokens")  # fmt: skip
    page.check("GPT-3's whole training took fewer than 100,000 steps", TOKENS / BATCH < 100_000,
               f"{TOKENS / 1e9:.0f} billion tokens / {BATCH / 1e6:g} million = "
               f"{TOKENS / BATCH:,.0f} steps")  # fmt: skip

    page.say("""
        When every example has been seen once, an **epoch** is over. Then the order is shuffled, and
        it begins again. Large language models see most of their text once: there is so much of it.
        Good texts are shown several times. So are all examples in **fine-tuning**: a model that has
        learned from much text goes on with a few examples of one task, in small steps, so that it
        does not forget. The next lesson shows what happens when a model sees the same examples too
        often.
    """)
    order = [np.random.default_rng((1, epoch)).permutation(12) for epoch in range(3)]
    page.table(["epoch", *(f"batch {n}" for n in range(1, 4))],
               [[epoch + 1, *(" ".join(map(str, row[n : n + 4] + 1)) for n in (0, 4, 8))]
                for epoch, row in enumerate(order)], "12 examples in batches of 4")  # fmt: skip
    page.check("an epoch contains each example once", all(len(set(row)) == 12 for row in order),
               "12 of 12 in each of 3")  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
