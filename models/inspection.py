"""`inspect`: tokens, their neighbours, attention, the next token's distribution, and speed."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.models.decode import Decoder, seen
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, Block
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.pictures import check_picture, draw_attention
from minigrad.models.pretrained import load_to_read
from minigrad.models.text import Windows
from minigrad.models.tokenizer import Tokenizer
from minigrad.models.train import TrainingPlan
from minigrad.nn.quantized import QuantizedEmbedding

TEMPERATURES = (0.2, 1.0, 2.0)
NEIGHBOURS, LIKELIEST = 5, 8
ALIKE = 10.0  # gradient norms of blocks that differ less do not keep a model from learning
DEEP = 40  # layers without norms in which gradients vanish
WARM, MOST_WITHOUT = 3, 8  # calls before a captured step replays; longer rows that are timed


def inspect_command(flags: argparse.Namespace) -> None:
    """`inspect`: everything that can be shown for a text."""
    check_picture(flags.picture)
    _, model, tokenizer = load_to_read(flags.checkpoint, flags.context)
    ids = tokenizer.encode(flags.text)
    config = model.config
    if not ids:
        raise InputError("the text is empty: give at least one token")
    if len(ids) > config.context:
        raise InputError(f"the text has {len(ids)} tokens: expected at most {config.context}")
    for name, most in (("layer", config.layers), ("head", config.heads)):
        if (getattr(flags, name) or 0) > most:
            raise InputError(f"--{name}: expected at most {most}, got {getattr(flags, name)}")
    names = [shown(tokenizer, token) for token in ids]
    print(f"{len(ids)} tokens")
    for name, token, near in zip(names, ids, neighbours(model, ids), strict=True):
        words = "  ".join(f"{shown(tokenizer, other)} {cosine:.2f}" for other, cosine in near)
        print(f"  {token:>6} {name:<16} nearest: {words}")

    layer, head = flags.layer, flags.head
    if layer is None or head is None:
        layer, head = telling_head(model, ids, layer, head)
    weights = attention(model, ids, layer - 1, head - 1)
    picture = Path(flags.picture)
    draw_attention(weights, names, picture, f"attention of layer {layer}, head {head}")
    print(f"\nattention of layer {layer}, head {head}: saved picture {picture}")
    strongest = weights[-1].argsort()[::-1][:3]
    looked = ", ".join(f"{names[i]} {weights[-1][i]:.0%}" for i in strongest)
    print(f"  the last token attends to {looked}")

    decoder = Decoder(model, [ids])
    logits = Tensor(decoder.logits()[0])
    print("\nnext token, by temperature")
    for temperature in TEMPERATURES:
        chances = (logits / temperature).softmax().numpy()
        order = chances.argsort()[::-1][:LIKELIEST]
        words = "  ".join(f"{shown(tokenizer, int(i))} {chances[i]:.1%}" for i in order)
        print(f"  {temperature}: {words}")

    kept, without = latency(model, ids, flags.tokens)
    print(f"\nmilliseconds per token: {told_of_times(kept)} with the KV cache, "
          f"{told_of_times(without)} without")  # fmt: skip
    print(f"KV cache: {decoder.nbytes():,} bytes = 2 · {config.layers} layers · "
          f"{config.key_value_heads} heads · {config.context} positions · {config.width} dims "
          "· 4 bytes")  # fmt: skip


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as printable text, with its spaces."""
    if token >= len(tokenizer):
        return f"#{token}"
    return repr(tokenizer.token_bytes(token).decode("utf-8", "replace"))


def neighbours(model: GPT, ids: list[int]) -> list[list[tuple[int, float]]]:
    """For each token, those with the most similar embeddings, and the cosines."""
    with Tensor.no_grad():
        table: Any = model.wte
        whole = (
            table.weight.dequantized()
            if isinstance(table, QuantizedEmbedding) else table.weight.float()
        )  # fmt: skip
        whole = whole.contiguous().realize()
        unit = whole * (whole.square().sum(1, keepdim=True) + 1e-12).rsqrt()
        chosen = unit[Tensor(ids)].contiguous()
        cosines = chosen.matmul(unit.transpose())  # (tokens, vocabulary)
        best = cosines.topk(min(NEIGHBOURS + 1, len(whole)))  # the token itself is one of them
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(i, cosine) for i, cosine in zip(*row, strict=True) if i != token][:NEIGHBOURS]
            for token, row in zip(ids, pairs, strict=True)]  # fmt: skip


def attention(model: GPT, ids: list[int], layer: int, head: int) -> Any:
    """How much each token attends to each: a numpy array (tokens, tokens); rows sum to 1."""
    with Tensor.no_grad():
        x = model.embed(Tensor([ids]))
        for block in model.h[:layer]:
            x = block(x).realize()
        return _weights(model.h[layer], x)[head]


def _weights(block: Block, x: Tensor) -> Any:
    """The attention weights of a block with input x: a numpy array (heads, tokens, tokens)."""
    config, length = block.config, int(x.shape[1])  # type: ignore[arg-type]
    q, k, _ = block.attn.heads(block.ln_1(x) if config.norms != "after" else x)
    # with an identity matrix as values, the output is the weights
    every = Tensor.eye(length).expand(1, config.key_value_heads, length, length)
    return block.attn.mix(q, k, every, seen(q, k, 0, block.attn))[0].numpy()


def telling_head(
    model: GPT, ids: list[int], layer: int | None = None, head: int | None = None
) -> tuple[int, int]:
    """(layer, head), from 1, that looks most at single tokens other than the first and its own.

    Most heads rest on the first token. layer, head: to fix one of the two.
    """
    best, found = -1.0, (layer or 1, head or 1)
    others = np.tri(len(ids), k=-1)
    others[:, 0] = 0
    with Tensor.no_grad():
        x = model.embed(Tensor([ids]))
        for number, block in enumerate(model.h, 1):
            if layer in (None, number):
                looks = (_weights(block, x) * others).max(2).mean(1)
                place = int(looks.argmax()) if head is None else head - 1
                if looks[place] > best:
                    best, found = float(looks[place]), (number, place + 1)
            x = block(x).realize()
    return found


def latency(model: GPT, ids: list[int], tokens: int) -> tuple[list[float], list[float]]:
    """Seconds for each further token, greedy: (with keys and values kept, reading all again).

    Both are captured steps. The latter reads a row with room for all further tokens.
    """
    room = model.config.context - len(ids)
    tokens = max(min(tokens, room), 1)
    decoder = Decoder(model, [list(ids)])
    kept, without = [], []
    for number in range(tokens + WARM):  # the prompt, a normal call, a captured one
        if number >= room:
            break
        start = time.perf_counter()
        token = int(decoder.logits()[0].argmax())
        if number >= WARM:
            kept.append(time.perf_counter() - start)
        decoder.append([token])
    read = jit(lambda row: model.unembed(model.features(row)[:, -1]).realize())
    row = [decoder.rows[0][: len(ids) + tokens]]
    with Tensor.no_grad():
        for number in range(min(tokens, MOST_WITHOUT) + WARM):
            start = time.perf_counter()
            read(Tensor(row)).numpy().argmax()
            if number >= WARM:
                without.append(time.perf_counter() - start)
    return kept, without


def told_of_times(seconds: list[float]) -> str:
    """Milliseconds: the median of some times, and how many they are."""
    if not seconds:
        return "not measured (too little room in the context)"
    return f"{median(seconds) * 1e3:.2f} (median of {len(seconds)})"


def gradient_norms(config: GPTConfig, windows: Windows, plan: TrainingPlan) -> list[float]:
    """2-norm of the loss's gradient in each block of a new model, first block first."""
    Tensor.manual_seed(plan.seed)
    model = GPT(config)
    ids, targets = windows.batch(plan.batch, plan.seed, 0)
    with Tensor.train():
        model.loss(Tensor(ids), Tensor(targets)).backward()
    norms = []
    for block in model.h:
        squares = [p.grad.float().square().sum() for p in nn.state.get_parameters(block)
                   if p.grad is not None]  # fmt: skip
        norms.append(float(sum(squares[1:], squares[0]).sqrt().item()))
    return norms


class Deep:
    """Layers of `width` neurons: linear, tanh; residual connections add each layer's input.

    Without normalization, so that each layer's effect on gradients stays visible.
    """

    def __init__(self, depth: int, width: int, residual: bool) -> None:
        self.residual = residual
        self.layers = [nn.Linear(width, width) for _ in range(depth)]

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, width) → the same shape."""
        for layer in self.layers:
            x = x + layer(x).tanh() if self.residual else layer(x).tanh()
        return x


def deep_gradient_norms(depth: int, residual: bool) -> list[float]:
    """2-norm of the gradient of each layer's weights in a new `Deep`, first layer first."""
    Tensor.manual_seed(3)
    model = Deep(depth, 64, residual)
    x, goal = Tensor.randn(32, 64), Tensor.randn(32, 64)
    loss = (model(x) - goal).square().mean()
    gradients = loss.gradient(*(layer.weight for layer in model.layers))
    norms = Tensor.stack(*(gradient.square().sum().sqrt() for gradient in gradients))
    return [float(norm) for norm in norms.tolist()]


def show_gradient_norms(config: GPTConfig, windows: Windows, plan: TrainingPlan) -> None:
    """Print gradient norms with and without residual connections, and what they mean."""
    random = Tensor.random_state()
    columns = [gradient_norms(replace(config, residual=residual), windows, plan)
               for residual in (True, False)]  # fmt: skip
    plain = [deep_gradient_norms(DEEP, residual) for residual in (True, False)]
    Tensor.set_random_state(random)
    print("gradient norms at the start   with residual connections   without")
    for number, norms in enumerate(zip(*columns, strict=True), 1):
        print(f"  block {number:<20} {norms[0]:>27.3g} {norms[1]:>9.3g}")
    for name, column in zip(("with residual connections", "without"), columns, strict=True):
        print(f"{name}: {told_of_norms(column)}")
    shares = [norms[0] / norms[-1] for norms in plain]
    print(f"norms in the blocks help gradients, too: of {DEEP} layers without norms, the first "
          f"gets {shares[0]:.2g} times the last one's gradient with residual "
          f"connections, {shares[1]:.1e} times without")  # fmt: skip


def told_of_norms(norms: list[float]) -> str:
    """What the gradient norms of a model's blocks mean, first block first."""
    first, last = norms[0], norms[-1]
    if not all(map(math.isfinite, norms)):
        return "some are not finite: gradients explode"
    if len(norms) == 1:
        return "there is only one block, so nothing to compare"
    if not first or not last:
        return "a block gets no gradient"
    ratio = first / last
    size = f"the first block's norm is {max(ratio, 1 / ratio):.3g} times "
    size += "as large as the last's" if ratio >= 1 else "smaller than the last's"
    much = ratio ** (1 / (len(norms) - 1))
    each = f"a factor of {max(much, 1 / much):.3g} per block"
    if max(ratio, 1 / ratio) < ALIKE:
        return f"{size}: all blocks learn at a similar rate"
    if ratio > 1:
        return f"{size}, {each} backward: with more blocks, gradients would explode"
    return f"{size}, {each} backward: with more blocks, gradients would vanish"
