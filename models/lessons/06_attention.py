"""How words look at one another: queries, keys and values, number by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrad import Tensor
from minigrad.models.inspection import attention
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import language_model, names

TITLE = "Attention"
SECTIONS = ("Attention Mechanism (Self-Attention)",)
SENTENCES = (
    "The cat sat on the windowsill because it was warm",
    "Paris is the capital of France",
    "Mary gave John a book and then she left",
)


@dataclass(frozen=True)
class Seen:
    """Of one sentence: queries (layers, heads, tokens, width), keys and values (…, key heads, …).

    answers: what attention gives, (layers, heads, tokens, width).
    """

    ids: list[int]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    answers: np.ndarray


def look(sentence: str) -> Seen:
    """Run the model's blocks on a sentence, and keep what each block's attention works with."""
    model, tokenizer = language_model()
    ids, kept = tokenizer.encode(sentence), []
    with Tensor.no_grad():
        x = model.embed(Tensor([ids]))
        for block in model.h:
            q, k, v = block.attn.heads(block.ln_1(x))
            answers = q.scaled_dot_product_attention(k, v, is_causal=True, enable_gqa=True)
            x = block(x)
            Tensor.realize(q, k, v, answers, x)
            kept.append([part.numpy()[0] for part in (q, k, v, answers)])
    return Seen(ids, *(np.stack(parts) for parts in zip(*kept, strict=True)))


def telling(seen: Seen, weights: np.ndarray) -> tuple[int, int, int]:
    """(layer, head, token): where a word looks most at one that is neither first nor next to it."""
    away = weights[:, :, 2:, 1:].copy()
    for place in range(away.shape[2]):
        away[:, :, place, place:] = 0  # the one before, itself, and what it cannot see
    layer, head, token = np.unravel_index(away.max(3).argmax(), away.shape[:3])
    return int(layer), int(head), int(token) + 2


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        “It was warm”: what was? To know what a word means, a model must look at the others. This is
        what **attention** does, and it is the heart of all modern language models.

        From each token's vector, three others are made, by multiplication with three matrices:

        - the **query**: what this token wants to know,
        - the **key**: what a token offers to those who look,
        - the **value**: what it reports to those who look at it.

        A query is multiplied by all keys, number by number, and the products are added up. A large
        sum means: here is what I was looking for. (It is divided by the square root of their count,
        here √64 = 8, or longer vectors would make all sums large.) **Softmax** turns the results
        into shares that sum to 1; and the answer is the sum of all values, each times its share.
        That is all.
    """)
    model, _ = language_model()
    config = model.config
    everything = [look(sentence) for sentence in SENTENCES]
    page.table(["", "SmolLM2"], [
        ["layers", config.layers], ["heads in each layer", config.heads],
        ["numbers in a query, key or value", config.width],
        ["products of queries and keys for a text of 10 tokens",
         config.layers * config.heads * 10 * 10],
    ])  # fmt: skip

    page.say(f"""
        One look is not enough: a word has a subject, an adjective, a place in the sentence. So each
        layer has several **heads**, each with matrices of its own, {config.layers} × {config.heads}
        = {config.layers * config.heads} in this model. ({config.heads // config.key_value_heads}
        heads share the keys and values of one, which saves memory.)

        And a word may look only at itself and at words **before** it: those after it do not exist
        yet when the model writes. So products with later tokens are replaced by −∞, which softmax
        turns to 0. This is the **mask**.
    """)
    group = config.heads // config.key_value_heads
    plays, views, worst, rounding = [], [], 0.0, 0.0
    for number, seen in enumerate(everything):
        keys = np.repeat(seen.k, group, 1)
        scores = np.einsum("lhtw,lhsw->lhts", seen.q, keys) / config.width**0.5
        # products with quantized weights round to two bytes, but not in every program
        rounding = max(rounding, float(np.abs(scores).max()) * 2**-15)
        hidden = np.triu(np.ones(scores.shape[2:], bool), 1)
        powers = np.where(hidden, 0, np.exp(scores - scores.max(3, keepdims=True)))
        weights = powers / powers.sum(3, keepdims=True)
        layer, head, token = telling(seen, weights)
        views.append({"layer": layer, "head": head, "token": token})
        exact = attention(model, seen.ids, layer, head)
        worst = max(worst, float(np.abs(exact - weights[layer, head]).max()))
        for place in ((layer, head, token), (0, 0, 3), (29, 8, len(seen.ids) - 1)):
            at_layer, at_head, at = place
            row = attention(model, seen.ids, at_layer, at_head)[at]
            answer = seen.answers[at_layer, at_head, at]
            plays.append(({"sentence": number, "layer": at_layer, "head": at_head, "token": at},
                          [*row, *answer], rounding))  # fmt: skip
    page.check("the shares computed by hand, stage by stage, are those of the model",
               worst < rounding, f"they differ by at most {worst:.1e}")  # fmt: skip

    page.say("""
        Here is all of it, for three sentences, every layer and every head. Choose a word: the rows
        are the words that it can look at. Follow one row from left to right: key, product, share,
        value. At first you see a head with a clear opinion; most heads look at the very first token
        when they have nothing to say, as at a bin.
    """)
    page.widget("attention", "Pick a sentence and a word, then walk through layers and heads.",
                {"sentences": [{"tokens": names(seen.ids), "q": seen.q, "k": seen.k, "v": seen.v,
                                **view} for seen, view in zip(everything, views, strict=True)],
                 "group": group}, plays)  # fmt: skip

    page.say("""
        The map on the page shows all heads at once: how much each of them looks at the word that
        you chose as key. What heads do is not programmed. Some attend to the word before, some to
        the subject, some to the same word earlier on; training found that this helps to guess the
        next word, and nothing else was ever asked of it.
    """)
    seen = everything[0]
    rows = []
    for view, found in zip(views, everything, strict=True):
        row = attention(model, found.ids, view["layer"], view["head"])[view["token"]]
        words, at = names(found.ids), int(np.argmax(row))
        rows.append([f"layer {view['layer'] + 1}, head {view['head'] + 1}", words[view["token"]],
                     words[at], f"{row[at]:.0%}"])  # fmt: skip
    page.table(["head", "word", "looks at", "share"], rows, "heads with a clear opinion")
    sums = [attention(model, seen.ids, layer, 0).sum(1) for layer in (0, 10, 29)]
    page.check("the shares of every word sum to 1", bool(np.allclose(sums, 1, atol=1e-5)),
               f"{np.min(sums):.6f} … {np.max(sums):.6f}")  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
