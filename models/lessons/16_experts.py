"""Many feed-forward networks; each token visits one or two of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from minigrad import Tensor
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import learn, plays
from minigrad.models.moe import recording
from minigrad.models.sizing import flops_per_token, parameters
from minigrad.models.train import TrainingPlan, validate

TITLE = "Mixture of experts"
SECTIONS = ("Mixture of Experts (MoE)",)
CONTEXT, EXPERTS = 32, 4


def routes(model: GPT, ids: np.ndarray) -> np.ndarray:
    """The expert of each token in the first block: ids' shape, integers."""
    with Tensor.no_grad(), recording() as found:
        model.features(Tensor(ids)).realize()
        chosen: np.ndarray = found[0].chosen.numpy()[:, 0]
    return chosen.reshape(ids.shape)


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        More parameters make a model better, but also make every token more expensive, because it
        goes through all of them. There is a way around that. In a **mixture of experts** each block
        has several feed-forward networks, the experts, and a **router** before them: a small layer
        that looks at the token and chooses one or two. The others rest. The parameters grow with
        the number of experts, the work does not.
    """)
    base = GPTConfig.preset("gpt3")
    counts = (1, 2, 4, 8, 16, 64)
    grown = [replace(base, experts=n, active=1) for n in counts]
    total = [parameters(config).total for config in grown]
    flops = [flops_per_token(config, training=False) for config in grown]
    page.chart("GPT-3 with more and more experts, one of them active", "experts", "times",
               {"parameters": [(n, t / total[0]) for n, t in zip(counts, total, strict=True)],
                "work for a token": [(n, f / flops[0]) for n, f in
                                     zip(counts, flops, strict=True)]}, log="x")  # fmt: skip
    page.check("with 64 experts, the parameters grow more than 30-fold, the work by less than 1 %",
               total[-1] > 30 * total[0] and flops[-1] < 1.01 * flops[0],
               f"parameters {total[-1] / total[0]:.1f}-fold, work {flops[-1] / flops[0]:.4f}-fold")

    page.say("""
        The router is trained with everything else, and has a bad habit. An expert that is a little
        better at first gets more tokens, learns more, and gets still more. In the end one expert
        does all the work. So the loss has a second part, which is smallest when all experts have
        equal work: **load balancing**. Here the same small model learns Shakespeare, with and
        without.
    """)
    texts = plays(CONTEXT)
    config = GPTConfig(layers=1, heads=2, dim=32, context=CONTEXT, vocabulary=len(texts.tokenizer),
                       experts=EXPERTS, active=1)  # fmt: skip
    plan = TrainingPlan(steps=page.pick(400, 60), batch=16, lr=5e-3, warmup=10)
    sample, _ = next(texts.validation.spread(8, 8))
    shown, rows = {}, []
    loads = {}
    for name, balance in (("with balance", 0.05), ("without balance", 0.0)):
        model, _ = learn(replace(config, balance=balance), plan, texts.training)
        where = routes(model, sample)
        many, _ = next(texts.validation.spread(128, 128))
        loads[name] = np.bincount(routes(model, many).ravel(), minlength=EXPERTS) / many.size
        shown[name] = where
        rows.append([name, *(f"{share:.0%}" for share in loads[name]),
                     validate(model, texts.validation, 96, 48)])  # fmt: skip
    page.table(["", *(f"expert {n}" for n in range(1, EXPERTS + 1)), "loss"], rows,
               "shares of the tokens, and the loss on new text")  # fmt: skip
    uneven = {name: float(load.max()) for name, load in loads.items()}
    page.check("with balance, the busiest expert has less to do than without",
               uneven["with balance"] < uneven["without balance"],
               ", ".join(f"{name}: {share:.0%}" for name, share in uneven.items()))  # fmt: skip

    even, free = (row[-1] for row in rows)
    page.say(f"""
        The loss on new text is {even:.3f} with balance and {free:.3f} without: such a small model
        has little use for four experts. Balance pays where experts are large and each is on a
        device of its own, which would stand idle.

        And what are they experts of? Rarely of what we would call a subject. Colour the tokens by
        expert and look: line ends, vowels, the letters after a space.
    """)
    characters = [texts.tokenizer.decode(row) for row in sample]
    moves = [({"balance": name}, np.bincount(where.ravel(), minlength=EXPERTS) / where.size, 1e-6)
             for name, where in shown.items()]  # fmt: skip
    page.widget("experts", "Switch the balance, and see which expert takes which character.",
                {"texts": characters, "names": list(shown),
                 "where": [where.tolist() for where in shown.values()], "experts": EXPERTS}, moves)

    page.say("""
        In use only the chosen experts work, but all of them must be in memory. That is the bargain:
        memory for speed. Mixtral, a known model of this kind, has 8 experts in each block, 2 of
        them active.
    """)
    mixtral = parameters(GPTConfig.preset("mixtral"))
    page.check("Mixtral uses little more than a quarter of its parameters for a token",
               mixtral.active < 0.3 * mixtral.total,
               f"{mixtral.active / 1e9:.1f} of {mixtral.total / 1e9:.1f} billion")  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
