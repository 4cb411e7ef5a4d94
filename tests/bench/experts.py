"""The cost of a mixture of experts: 2,048 tokens a step, against a dense model of the same active
parameters, and 16 experts against 8. Loss and gradients, without the optimizer.

    python -m tests.bench experts
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.models.decode import Decoder
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.sizing import parameters
from tests.bench.measure import Row, Work

SHAPE = GPTConfig(layers=2, heads=6, dim=384, context=256, vocabulary=65)
ACTIVE, BATCH = 2, 8


def config(experts: int) -> GPTConfig:
    """A model of `experts` experts, two of them active; 0: the dense model of equal active size."""
    if experts == 0:
        return replace(SHAPE, feed_forward=ACTIVE * SHAPE.hidden)
    return replace(SHAPE, experts=experts, active=ACTIVE)


def step(experts: int) -> Work:
    """Loss and all gradients of 2,048 tokens."""
    Tensor.manual_seed(1)
    model = GPT(config(experts))
    parameters = nn.state.get_parameters(model)
    text = np.random.default_rng(1).integers(0, SHAPE.vocabulary, (2, BATCH, SHAPE.context))
    ids, targets = (Tensor(part.astype(np.int32)) for part in text)

    @jit
    def run(ids: Tensor, targets: Tensor) -> Tensor:
        loss = model.loss(ids, targets)
        Tensor.realize(loss, *loss.gradient(*parameters))
        return loss

    def work() -> None:
        with Tensor.train():
            run(ids, targets).item()

    return work


def decode(experts: int) -> Work:
    """One token after 128 others."""
    Tensor.manual_seed(1)
    model = GPT(config(experts))
    with Tensor.no_grad():
        decoder = Decoder(model, [[1] * 128])
    decoder.logits()

    def work() -> None:
        decoder.append([7])
        decoder.logits()
        for row in (*decoder.rows, *decoder.window):  # the next one goes to the same position
            row.pop()
        decoder.used -= 1

    return work


def flops() -> float:
    """Operations of a step's products: three times those of the forward pass."""
    d, tokens = SHAPE.dim, BATCH * SHAPE.context
    layer = 4 * d * d + 2 * d * SHAPE.hidden * ACTIVE + d * SHAPE.context
    return 6.0 * tokens * (SHAPE.layers * layer + d * SHAPE.vocabulary)


def read() -> float:
    """Bytes that one token must read: the weights that it is multiplied by."""
    return 4.0 * parameters(config(0)).active


def rows(threads: int) -> Iterator[Row]:
    """A step with 8 experts against the others, and one token."""
    peers = {"dense": step(0)}
    yield Row("step, 8 experts, 2 active", step(8), peers, flops(), goal=0.8)
    yield Row("step, 16 experts, 2 active", step(16), {"8 experts": step(8)}, flops(), goal=0.91)
    yield Row("one token, 8 experts, 2 active", decode(8), {"dense": decode(0)}, bytes=read(),
              reads_only=True)  # fmt: skip
    yield Row("one token, 64 experts, 2 active", decode(64), {"8 experts": decode(8)}, bytes=read(),
              reads_only=True)  # fmt: skip
