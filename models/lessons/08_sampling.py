"""From the last token's vector to the next word: logits, softmax, and a little chance."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from minigrad import Tensor
from minigrad.models.decode import Decoder
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import language_model, names
from minigrad.models.sampling import Sampler, Sampling

TITLE = "The next word"
SECTIONS = ("Output Layer", "Model Temperature")
PROMPTS = ("The cat sat on the", "The capital of France is", "In summer I like to")
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
NAMED = 300  # of a prompt's likeliest tokens, whose words are on the page


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """What softmax makes of logits, divided by the temperature: (vocabulary,)."""
    result: np.ndarray = (Tensor(logits) / temperature).softmax().numpy()
    return result


def uncertainty(chances: np.ndarray) -> float:
    """Among how many equally likely words the choice would be as uncertain: e to the entropy."""
    some = chances[chances > 0].astype(np.float64)
    return math.exp(float(-(some * np.log(some)).sum()))


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        After the last block each token has a vector that knows of all tokens before it. To continue
        the text we need only one of them, the **last**, because the next word follows it. It is
        multiplied by the vector of every word in the vocabulary. A large product means: this word
        fits. These products are the **logits**.
    """)
    model, tokenizer = language_model()
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    logits = Decoder(model, rows).logits()
    with Tensor.no_grad():
        whole = model(Tensor([rows[0]])).numpy()[0]
    page.table(["", "numbers"], [["vectors after the last block", f"{len(rows[0])} × 576"],
                                 ["logits of all of them", f"{len(whole)} × 49,152"],
                                 ["logits that are needed", "1 × 49,152"]],
               f"“{PROMPTS[0]}”, {len(rows[0])} tokens")  # fmt: skip
    # the model's products round vectors to two bytes a number: see minigrad/nn/quantized.py
    apart = float(np.abs(whole[-1] - logits[0]).max() / np.abs(whole[-1]).max())
    page.check("the last row of all logits is what the last vector alone gives", apart < 1e-3,
               f"they differ by at most {apart:.1e} of the largest")  # fmt: skip

    page.say("""
        **Softmax** makes probabilities of them: e to the power of each, divided by their sum. Then
        a word is **sampled**, drawn by these probabilities, like a ball out of an urn.
    """)
    likeliest = [np.argsort(-row)[:NAMED].tolist() for row in logits]
    found = []
    for prompt, row, order in zip(PROMPTS, logits, likeliest, strict=True):
        chances = probabilities(row)
        words = ", ".join(f"{name} {chances[i]:.1%}" for name, i in
                          zip(names(order[:5]), order[:5], strict=True))  # fmt: skip
        found.append([prompt, words])
    page.table(["text", "likeliest next tokens"], found)
    total = float(probabilities(logits[0]).sum(dtype=np.float64))
    page.check("the probabilities of all 49,152 tokens sum to 1", abs(total - 1) < 1e-5,
               f"{total:.6f}")  # fmt: skip

    page.say("""
        The **temperature** says how bold the choice is. Before softmax all logits are divided by
        it. A low temperature makes differences larger: the likeliest word nearly always wins, and
        at 0 always. A high temperature makes them smaller: odd words get their chance.
    """)
    table = []
    for temperature in TEMPERATURES[1:]:
        spread = [uncertainty(probabilities(row, temperature)) for row in logits]
        table.append([temperature, *spread])
    page.table(["temperature", *PROMPTS], table, "as uncertain as a choice among this many words")
    page.check("the warmer, the more words are in play",
               all(a < b for one, after in pairwise(table)
                   for a, b in zip(one[1:], after[1:], strict=True)),
               " < ".join(f"{row[1]:,.1f}" for row in table))  # fmt: skip

    page.say("""
        Move the slider, then let it draw. Below are whole continuations that the model wrote at
        each temperature: at 0 it is safe and dull, at 2 it raves.
    """)
    length = page.pick(24, 6)
    bold = [Sampling(temperature) for temperature in TEMPERATURES]
    sampler = Sampler(bold * len(rows), model.config.vocabulary, seed=4)  # all at the same time
    decoder = Decoder(model, [row for row in rows for _ in TEMPERATURES], sampler=sampler)
    for _ in range(length):
        decoder.append(decoder.draw())
    taken = [row[len(start)] for row, start in zip(decoder.rows[:: len(TEMPERATURES)], rows,
                                                   strict=True)]  # fmt: skip
    page.check("at temperature 0 the likeliest word is taken",
               taken == [order[0] for order in likeliest], ", ".join(names(taken)))  # fmt: skip
    texts = [tokenizer.decode(row[len(rows[0]) :]) for row in decoder.rows]
    continued = [texts[first : first + len(TEMPERATURES)]
                 for first in range(0, len(texts), len(TEMPERATURES))]  # fmt: skip
    plays = [({"prompt": number, "temperature": temperature},
              probabilities(row, temperature)[likeliest[number][:8]], 1e-5)
             for number, row in enumerate(logits) for temperature in (0.2, 1.0, 2.0)]  # fmt: skip
    page.widget("sampling", "Move the temperature, and draw the next word a hundred times.",
                {"prompts": PROMPTS, "logits": logits, "order": likeliest,
                 "names": [names(order) for order in likeliest],
                 "temperatures": TEMPERATURES, "continued": continued}, plays)  # fmt: skip

    page.say("""
        Then the drawn word is appended to the text, and everything begins again: tokens, vectors,
        blocks, logits, one draw. A language model has no plan of the sentence. It finds the next
        probable word, and then the next.
    """)


if __name__ == "__main__":
    alone(lesson)
