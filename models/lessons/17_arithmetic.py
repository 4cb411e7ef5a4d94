"""How much memory, how many devices, how many months: nothing but multiplication."""

from __future__ import annotations

from minigrad.models.gpt_config import GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.sizing import (
    B300,
    H100,
    MONTH,
    article,
    bytes_text,
    devices,
    duration_text,
    parameters,
    seconds_of_training,
)

TITLE = "The arithmetic of large models"
SECTIONS = ("Simple Arithmetic",)
GPT4 = 1.8e12  # parameters, as is rumoured
STATE = 16  # bytes a parameter in training: 2 weight, 2 gradient, 4 master, 8 two moments
FULL = 34  # … with the activations of a large batch


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        A parameter is a number, and a number takes 2 bytes (with 16 bits, as usual today). From
        here on it is all multiplication. A **GPU** is a chip that does thousands of multiplications
        at once; NVIDIA's H100 has 80 GB of memory, the newer B300 has 288. GPT-3 has 96 blocks on
        vectors of 12,288 numbers:
    """)
    gpt3 = GPTConfig.preset("gpt3")
    p = parameters(gpt3)
    page.table(["part", "parameters"],
               [["attention", p.attention], ["feed-forward", p.feed_forward],
                ["words and places", p.embedding], ["norms", p.norms], ["all", p.total]])
    weights = 2 * p.total
    page.check("GPT-3's 175 billion parameters take 350 GB", abs(weights / 350e9 - 1) < 0.01,
               f"{p.total / 1e9:.1f} billion · 2 bytes = {weights / 1e9:.1f} GB")  # fmt: skip
    page.check("at least 5 H100s of 80 GB hold them", devices(weights, H100) == 5,
               f"{weights / 1e9:.0f} / 80 = {weights / H100:.2f}, so {devices(weights, H100)}")

    page.say(f"""
        Training needs more. Each parameter has a gradient (2 bytes), an exact copy (4), and two
        running means that the optimizer keeps (8): {STATE} bytes in place of 2. Then come the
        **activations**, all that the backward pass needs of the forward pass.
    """)
    page.table(["what", "figure", "formula"],
               [[line.what, line.figure, line.formula] for line in article(gpt3)],
               "the article's figures, computed")  # fmt: skip
    low, high = STATE * p.total, FULL * p.total
    page.check("training takes 3 to 6 TB", 2.5e12 < low < 3.1e12 and 5.5e12 < high < 6.5e12,
               f"{bytes_text(low)} … {bytes_text(high)}")  # fmt: skip
    few, many = devices(18 * p.total, H100), devices(23 * p.total, H100)
    page.check("that is 40 to 50 H100s", 38 <= few <= 42 and 48 <= many <= 52, f"{few} … {many}")
    months = 100_000 * 120 / MONTH
    page.check("100,000 iterations of two minutes are 4.6 months", abs(months - 4.6) < 0.05,
               f"{months:.2f} months")  # fmt: skip
    page.check("a B300 with 288 GB cannot hold GPT-4's state, nor GPT-3's",
               low > B300 and STATE * GPT4 > B300,
               f"{devices(low, B300)} and {devices(STATE * GPT4, B300)} of them could")

    page.say("""
        Now calculate for yourself. Set the parameters to a model that you have heard of, and the
        number of devices to what you could pay for.
    """)
    plays = []
    for config, count in (("gpt3", 1024), ("gpt2", 8), ("gpt3", 40)):
        c = GPTConfig.preset(config)
        n = parameters(c).total
        plays.append(({"parameters": n, "bits": 16, "memory": 80, "count": count, "tokens": 300},
                      [2 * n, devices(2 * n, H100), STATE * n, devices(STATE * n, H100),
                       6 * n * 300e9 / (count * 989e12 * 0.4)], 1e-6))  # fmt: skip
    exact = seconds_of_training(gpt3, 300e9, 1024, 989e12)
    rough = 6 * p.total * 300e9 / (1024 * 989e12 * 0.4)
    page.check("6 operations per parameter and token are nearly all: attention adds little",
               1 <= exact / rough < 1.1 or abs(exact / rough - 1) < 0.1,
               f"{duration_text(exact)} by the exact formula, {duration_text(rough)} by this one")
    page.widget("arithmetic", "Change parameters, devices and tokens.",
                {"parameters": p.total}, plays)  # fmt: skip

    page.say("""
        One device can do none of this. The only way to train a large model is to let many compute
        at once. How they share the work, and what they must tell one another meanwhile, is the
        subject of the last three lessons.
    """)


if __name__ == "__main__":
    alone(lesson)
