"""What a model keeps of the text while it writes, what that costs, and what falls off the edge."""

from __future__ import annotations

from statistics import median

import numpy as np

from minigrad import Tensor
from minigrad.models.decode import Decoder
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.inspection import latency
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import language_model
from minigrad.models.sizing import bytes_text, cache_bytes

TITLE = "KV cache and context"
SECTIONS = ("KV Cache", "Context")
TEXT = "Once upon a time there was a cat that sat on the windowsill all day and watched the birds."
EDGE = 12  # tokens of the small model's context


def windows(prompt: list[int], count: int, keep: int) -> list[list[int]]:
    """What a model with a context of EDGE tokens still sees, after each of `count` more tokens."""
    Tensor.manual_seed(1)
    model = GPT(GPTConfig(layers=1, heads=1, dim=8, context=EDGE, vocabulary=64))
    decoder, seen = Decoder(model, [prompt], keep=keep), []
    for number in range(count):
        decoder.logits()
        seen.append(list(decoder.window[0]))
        decoder.append([len(prompt) + number])
    return seen


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        To write the next word, the model needs keys and values of all words before. They do not
        change when a word is added, because no word looks at later ones. So the model stores them:
        the **KV cache**. Then only the new token goes through the blocks; keys and values of the
        others are read from the cache.
    """)
    model, tokenizer = language_model()
    ids = tokenizer.encode(TEXT)
    decoder = Decoder(model, [ids[:-1]])
    decoder.logits()
    decoder.append([ids[-1]])
    with_cache = decoder.logits()[0]
    with Tensor.no_grad():
        without = model.unembed(model.features(Tensor([ids]))[:, -1]).numpy()[0]
    apart = float(np.abs(with_cache - without).max())
    page.check("with the cache, the logits are those of reading everything again", apart < 1e-2,
               f"they differ by at most {apart:.1e}")  # fmt: skip

    page.say("""
        What it saves: without the cache, each new token costs as much as the whole text. The longer
        the text, the more. (Measured with an untrained GPT-2, which takes as much time as a trained
        one.)
    """)
    timed = GPT(GPTConfig.preset(page.pick("gpt2", "mini")))
    lengths = page.pick((8, 64, 128, 256, 512), (8, 48))
    times = [[median(part) * 1e3 for part in latency(timed, list(range(n)), page.pick(8, 3))]
             for n in lengths]  # fmt: skip
    page.chart("time for one more token", "tokens before it", "milliseconds",
               {"with the cache": [(n, t[0]) for n, t in zip(lengths, times, strict=True)],
                "reading all again": [(n, t[1]) for n, t in zip(lengths, times, strict=True)]})

    page.say("""
        What it costs: memory. Each layer keeps a key and a value of each token, so

        2 · layers · heads · positions · width of a head · bytes of a number.
    """)
    measured, formula = decoder.nbytes(), cache_bytes(model.config, itemsize=4)
    page.check("the formula gives the size of our decoder's cache", measured == formula,
               f"{measured:,} bytes")  # fmt: skip
    gpt3 = GPTConfig.preset("gpt3")
    size = cache_bytes(gpt3)
    page.check("GPT-3 with 2,048 tokens needs about 9 GB for one request", 9e9 < size < 9.7e9,
               f"{size / 1e9:.2f} GB, or {size / 2**30:.1f} GiB")  # fmt: skip
    rows, plays = [], []
    for name in ("gpt2", "gpt3", "smollm2", "llama-7b"):
        c = GPTConfig.preset(name)
        rows.append([name, c.layers, c.key_value_heads, c.width, c.context,
                     bytes_text(cache_bytes(c))])  # fmt: skip
        plays.append(({"layers": c.layers, "heads": c.key_value_heads, "width": c.width,
                       "context": c.context}, [cache_bytes(c)], 1e-9))  # fmt: skip
    page.table(["model", "layers", "heads", "width", "context", "cache of one request"], rows)

    page.say("""
        Set the sliders to a model of today: a million tokens of context are expensive. This is why
        newer models let several heads share keys and values, as SmolLM2 does.
    """)
    page.widget("cache", "Change layers, heads, width and context, and see the size of the cache.",
                {"layers": gpt3.layers, "heads": gpt3.key_value_heads, "width": gpt3.width,
                 "context": gpt3.context}, plays)  # fmt: skip

    page.say(f"""
        The **context** is all that the model can look at: the text so far, its own words included.
        It has an end, {gpt3.context:,} tokens for GPT-3. When the text becomes longer, something
        must be dropped. Usually that is the oldest part, and the model then knows nothing of it.
        Some systems keep the first tokens, where the instructions are, and forget the middle.

        Here is a model with room for {EDGE} tokens. Add words, and watch what it still sees. It
        forgets half at once, because keys and values that move to another position must be computed
        again.
    """)
    prompt = list(range(6))
    moves = []
    for keep in (0, 3):
        seen = windows(prompt, 22, keep)
        moves += [({"keep": keep, "count": count}, seen[count], 0.0) for count in (0, 6, 7, 13, 21)]
    page.check("it never sees more than its context",
               max(len(move[1]) for move in moves) <= EDGE, f"at most {EDGE} tokens")  # fmt: skip
    words = (TEXT[:-1] + " while the dog slept and dreamed of a walk in the park").split()
    page.widget("edge", "Add words until the oldest fall off the edge.",
                {"words": words, "start": len(prompt), "context": EDGE}, moves)  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
