"""Errors of SmolLM2 when products round vectors to one byte per number, or to two: `python -m
tests.bench.int8_accuracy`.

The mean Kullback–Leibler divergence, in nats, of the next token's distribution from that with
float32 vectors, and how often both have the same likeliest token, over 2,048 tokens of Shakespeare.
"""

from __future__ import annotations

import numpy as np

from minigrad import Context, Tensor
from minigrad.models.pretrained import load_model, smollm
from minigrad.models.text import shakespeare

LENGTH, PIECES = 512, 4


def main() -> None:
    """Run all models on the same text, piece by piece."""
    models = []
    for digits in (0, 1, 2):
        with Context(INT8=digits):
            model, tokenizer = load_model(smollm(), context=LENGTH)
        models.append(model)
    ids = tokenizer.encode(shakespeare()[: 8 * LENGTH * PIECES])[: LENGTH * PIECES]
    divergence, same = np.zeros((2, PIECES)), np.zeros((2, PIECES))
    for number, piece in enumerate(np.array(ids, np.int32).reshape(PIECES, LENGTH)):
        with Tensor.no_grad():
            exact, *others = (m(Tensor(piece[None]))[0].log_softmax(-1).numpy() for m in models)
        for digits, rounded in enumerate(others):
            terms = np.exp(exact) * (exact.astype(np.float64) - rounded)
            divergence[digits, number] = terms.sum(-1).mean()
            same[digits, number] = (exact.argmax(-1) == rounded.argmax(-1)).mean()
    for digits in (0, 1):
        print(
            f"MINIGRAD_INT8={digits + 1}, {LENGTH * PIECES} tokens: divergence "
            f"{divergence[digits].mean():.2g} nats, the same likeliest token "
            f"{same[digits].mean():.2%}"
        )


if __name__ == "__main__":
    main()
