"""Before a model can calculate, text must become numbers."""

from __future__ import annotations

import numpy as np

from minigrad.models.bpe import BytePairTokenizer, gpt2_merges
from minigrad.models.lessons.page import Page, alone
from minigrad.models.tokenizer import CharacterTokenizer

TITLE = "Inference begins with tokens"
SECTIONS = ("Inference", "Tokenization")
SENTENCE = "The cat sat on the windowsill."
# GPT-2's own tokens of these, which are published widely
KNOWN = {"Hello world": [15496, 995], "The quick brown fox": [464, 2068, 7586, 21831]}
TRIED = (
    SENTENCE, "antidisestablishmentarianism", "Das Fensterbrett, auf dem die Katze saß.",
    "猫坐在窗台上。", "3.14159", "    return x + 1",
)  # fmt: skip


def tokens_of(tokenizer: BytePairTokenizer, text: str) -> list[str]:
    """What each token of a text stands for; bytes that are no whole character as \\x…"""
    parts = [tokenizer.token_bytes(number) for number in tokenizer.encode(text)]
    return [part.decode("utf-8", "backslashreplace").replace(" ", "·") for part in parts]


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        **Inference** is the use of a network that has been trained: you ask, it answers. A language
        model then does less than it seems. It gets a text, and finds which word is likely to come
        next. That word is appended to the text, and the model is asked again. One server with some
        GPUs is enough for that, and the answer is there in seconds; training the model took
        thousands of them, and months.

        The next lessons follow one text through such a model, step by step. The first step: break
        it into pieces that can be numbered. A piece is called a **token**. The simplest tokens are
        characters.
    """)
    characters = CharacterTokenizer.of(SENTENCE)
    ids = characters.encode(SENTENCE)
    page.table(["", *"The cat"], [["number", *ids[:7]]], f"of {len(characters)} characters")
    page.check("every character of the sentence becomes one token", len(ids) == len(SENTENCE),
               f"{len(ids)} tokens")  # fmt: skip

    page.say("""
        With characters a text becomes long, and a model has to learn spelling before it can learn
        anything else. With whole words the list never ends: names, misspellings, other languages.
        GPT-2 and GPT-3 use something in between. It begins with single bytes. Then, again and
        again, the pair of tokens that is most often next to each other in a large amount of text
        becomes one new token: `t` and `h` become `th`, later `th` and `e` become `the`. Common
        words end up as one token, rare ones as several, and nothing is ever unknown. This is **byte
        pair encoding**.
    """)
    tokenizer = gpt2_merges()
    page.check("GPT-3's vocabulary is 256 bytes, 50,000 merged pairs, and a mark for the end",
               len(tokenizer) == 256 + len(tokenizer.merges) + 1 == 50_257,
               f"{len(tokenizer):,} tokens")  # fmt: skip
    page.check("two well-known sentences have their published tokens",
               all(tokenizer.encode(text) == expected for text, expected in KNOWN.items()),
               "; ".join(f"{text}: {expected}" for text, expected in KNOWN.items()))  # fmt: skip
    rows = [[text, len(text), len(tokenizer.encode(text)), " | ".join(tokens_of(tokenizer, text))]
            for text in TRIED]  # fmt: skip
    page.table(["text", "characters", "tokens", "the tokens"], rows)

    page.say("""
        Note the spaces, shown as dots: a word usually carries the one before it. Note the
        languages: tokens were learned from English text, so other writing costs more of them, and
        whoever pays by the token pays more. And note the digits: a model that adds numbers sees
        pieces like these.
    """)
    merges = np.array([[a, b] for a, b, _ in tokenizer.merges], np.float32)
    plays = [({"text": text}, tokenizer.encode(text), 0.0) for text in (*TRIED, *KNOWN)]
    page.widget("tokens", "Type anything, and see its tokens and their numbers.",
                {"merges": merges, "text": SENTENCE}, plays)  # fmt: skip

    page.say("""
        The numbers mean nothing by themselves: token 464 is not near token 465 in any sense. What a
        token **means** to the model comes in the next lesson.
    """)


if __name__ == "__main__":
    alone(lesson)
