"""How far SmolLM2 is off where products round vectors: `python -m tests.bench.int8_accuracy`.

The mean Kullback–Leibler divergence, in nats, of the next token's distribution from that of vectors
in float32, and how often both have the same likeliest token, over 2,048 tokens of Shakespeare.
"""

from __future__ import annotations

import numpy as np

from minigrad import Context, Tensor
from minigrad.models.pretrained import load_model, smollm
from minigrad.models.text import shakespeare

LENGTH, PIECES = 512, 4


def main() -> None:
    """Both models on the same text, piece after piece."""
    models = []
    for int8 in (0, 1):
        with Context(INT8=int8):
            model, tokenizer = load_model(smollm(), context=LENGTH)
        models.append(model)
    ids = tokenizer.encode(shakespeare()[: 8 * LENGTH * PIECES])[: LENGTH * PIECES]
    divergence, same = [], []
    for piece in np.array(ids, np.int32).reshape(PIECES, LENGTH):
        with Tensor.no_grad():
            exact, rounded = (m(Tensor(piece[None]))[0].log_softmax(-1).numpy() for m in models)
        divergence.append((np.exp(exact) * (exact.astype(np.float64) - rounded)).sum(-1))
        same.append(exact.argmax(-1) == rounded.argmax(-1))
    print(
        f"{LENGTH * PIECES} tokens: divergence {np.mean(divergence):.5f} nats, "
        f"the same likeliest token {np.mean(same):.1%}"
    )


if __name__ == "__main__":
    main()
