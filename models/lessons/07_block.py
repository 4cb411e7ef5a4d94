"""The rest of a block: a network of its own, a norm, and a way around."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from minigrad import Tensor, nn
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.inspection import DEEP, deep_gradient_norms
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import language_model, names

TITLE = "Feed-forward, norm, residual"
SECTIONS = ("FFN and Nonlinear Transformations", "Layer Norm and Residual Connection")
SENTENCE = "The cat sat on the windowsill"
LAYERS = (0, 9, 19, 29)


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Attention lets words exchange what they know. Then each word works on that by itself: its
        vector goes through a **feed-forward network** (FFN), two layers like those that read
        digits. The first makes the vector about four times as long, an activation function follows,
        the second makes it short again. Two thirds of a language model's parameters are here.
    """)
    rows = []
    for name in ("gpt2", "gpt3", "smollm2"):
        config = GPTConfig.preset(name)
        rows.append([name, config.dim, config.hidden, config.hidden / config.dim])
    page.table(["model", "numbers of a token", "inside the FFN", "times"], rows)
    gpt3 = GPTConfig.preset("gpt3")
    page.check("GPT-3 widens 12,288 numbers to 49,152, four times as many",
               (gpt3.dim, gpt3.hidden) == (12_288, 49_152) and gpt3.hidden == 4 * gpt3.dim,
               f"{gpt3.dim:,} → {gpt3.hidden:,} → {gpt3.dim:,}")  # fmt: skip

    page.say("""
        SmolLM2 has 2.67 instead of 4, as Llama does: it has **three** matrices in place of two, and
        the size is the same. So the article's “4 times” is right for the GPTs, but it is a
        convention, not a law.

        This is what the parts of a block do to a real word, layer by layer. Look at how large the
        vector becomes, and at how little each part adds to it.
    """)
    model, tokenizer = language_model()
    ids = tokenizer.encode(SENTENCE)
    kept, rows = [], []
    with Tensor.no_grad():
        x = model.embed(Tensor([ids]))
        for number, block in enumerate(model.h):
            normed = block.ln_1(x)
            looked = block.attn(normed)
            after = x + looked
            fed = block.mlp(block.ln_2(after))
            Tensor.realize(x, normed, looked, after, fed)
            if number in LAYERS:
                kept.append(x.numpy()[0])
                sizes = [float(part[0, -1].square().mean().sqrt().item())
                         for part in (x, normed, looked, fed)]  # fmt: skip
                rows.append([f"layer {number + 1}", *sizes])
            x = after + fed
    page.table(["last word", "enters", "after the norm", "attention adds", "FFN adds"], rows,
               "typical size of a number in its vector")  # fmt: skip

    page.say("""
        Because vectors grow, each part first **normalises** what it is given. Layer norm subtracts
        the mean of the vector's numbers, so that their mean is 0, and divides by their standard
        deviation, so that it is 1. Then come two learned vectors: one multiplies (scale), one is
        added (shift). (Newer models, such as SmolLM2, leave out the mean and the shift: RMS norm.)
    """)
    layer_norm = nn.LayerNorm(model.config.dim)
    states = np.stack(kept)  # (layers, tokens, dim)
    normal = layer_norm(Tensor(states)).numpy()
    mean, deviation = float(np.abs(normal.mean(2)).max()), normal.std(2)
    page.check("after layer norm the mean is 0 and the deviation 1",
               mean < 1e-5 and bool(np.allclose(deviation, 1, atol=2e-3)),
               f"means within {mean:.0e}, deviations {deviation.min():.4f} … {deviation.max():.4f}"
               )  # fmt: skip
    plays = []
    for at, token in ((0, 0), (2, 3), (3, 5)):
        x = states[at, token]
        plays.append(({"layer": at, "token": token, "scale": 1.5, "shift": 0.5},
                      [x.mean(), x.std(), *(normal[at, token, :16] * 1.5 + 0.5)], 1e-4))
    page.widget("norm", "Choose a word and a layer; see its numbers before and after the norm.",
                {"tokens": names(ids), "layers": [n + 1 for n in LAYERS], "states": states,
                 "epsilon": layer_norm.eps}, plays)  # fmt: skip

    page.say(f"""
        And the **residual connection**: what a part computes is **added** to what it was given. The
        input has a way around. This is what makes deep networks trainable at all. In training, the
        message about the error travels from the last layer to the first, and each layer it passes
        changes its size. Without the way around it shrinks each time; after {DEEP} layers nothing
        is left, and the first layers learn nothing: **the gradient vanishes**.

        Attention and a feed-forward network, each with its norm before it and a way around it, are
        one **block** (or layer). A language model is a stack of blocks that are built alike and
        have numbers of their own: 30 of them in SmolLM2, 96 in GPT-3.
    """)
    norms = {residual: deep_gradient_norms(DEEP, residual) for residual in (True, False)}
    labels = {True: "with residual connections", False: "without"}
    page.chart("how much of the error reaches each layer", "layer", "size of its gradient",
               {labels[r]: list(enumerate(values, 1)) for r, values in norms.items()},
               log="y")  # fmt: skip
    shares = {residual: values[0] / values[-1] for residual, values in norms.items()}
    page.check("without them, layer 1 gets less than a ten-thousandth of the last layer's gradient",
               shares[False] < 1e-4, f"{shares[False]:.1e} of it")  # fmt: skip
    page.check("with them, the gradients of all layers are within a factor of 10",
               max(norms[True]) / min(norms[True]) < 10, f"{shares[True]:.2f} of it")  # fmt: skip

    page.say("""
        Choose a depth: with few layers there is no difference, which is why nobody missed the
        residual connection while networks had three layers.
    """)
    depths = (2, 5, 10, 20, DEEP)
    curves = {residual: [deep_gradient_norms(depth, residual) for depth in depths]
              for residual in (True, False)}  # fmt: skip
    falling = [b[0] / b[-1] < a[0] / a[-1] for a, b in pairwise(curves[False])]
    page.check("without them, a deeper network passes less of it on", all(falling),
               ", ".join(f"{d} layers {c[0] / c[-1]:.0e}" for d, c in
                         zip(depths, curves[False], strict=True)))  # fmt: skip
    page.widget("depth", "Choose how deep the network is.",
                {"depths": depths, "with": curves[True], "without": curves[False]},
                [({"depth": d}, [w[0] / w[-1], o[0] / o[-1]], 1e-6) for d, w, o in
                 zip(depths, curves[True], curves[False], strict=True)])  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
