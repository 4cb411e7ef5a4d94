"""How large a GPT is: parameters, bytes, flops, devices, days; each figure with its formula.

    python models/sizing.py gpt3                        # the figures of GPT-3
    python models/sizing.py mini --batch 12 --device-memory 8GB

Kaplan et al., "Scaling Laws for Neural Language Models" (2020), for 6 flops per parameter, token;
Rajbhandari et al., "ZeRO" (2020), for the bytes of mixed-precision training.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minigrad.models import console
from minigrad.models.gpt_config import PRESETS, GPTConfig
from minigrad.models.moe import block_shape

H100, B300 = 80e9, 288e9  # bytes of memory
DAY, MONTH = 86400.0, 30.4375 * 86400.0  # seconds
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part. active: those used for a token."""

    embedding: int
    attention: int
    feed_forward: int
    router: int
    norms: int
    output: int
    idle: int  # in experts that a token does not use

    @property
    def total(self) -> int:
        """All parameters."""
        return (self.embedding + self.attention + self.feed_forward + self.router + self.norms
                + self.output)  # fmt: skip

    @property
    def active(self) -> int:
        """Parameters used for a token."""
        return self.total - self.idle


def parameters(config: GPTConfig) -> Parameters:
    """The parameters of each part of a model, with biases."""
    c = config
    few = c.key_value_heads * c.width
    rows = c.heads * c.width + 2 * few
    attention = rows * (c.dim + (c.bias or c.query_bias))
    attention += c.dim * (c.heads * c.width + (c.bias or c.output_bias))
    sides, biased = 2 if c.gated else 1, c.bias or c.hidden_bias
    expert, shared = (
        sides * hidden * (c.dim + bias) + c.dim * (hidden + bias)
        for hidden, bias in ((c.hidden, c.bias if c.experts else biased), (c.shared, biased))
    )
    shared = shared + c.dim if c.shared else 0  # with its gate
    experts = max(c.experts, 1)
    idle = (experts - c.active) * expert if c.experts else 0
    norm = c.dim * (2 if c.norm == "layer" and c.bias else 1)
    of_heads = {"none": 0, "head": 2 * c.width, "whole": rows - few}[c.query_norm]
    count = 4 if c.norms == "both" else 2
    positions = c.context if c.positions == "learned" else 0
    return Parameters(
        embedding=(c.vocabulary + positions) * c.dim,
        attention=c.layers * attention,
        feed_forward=c.layers * (experts * expert + shared),
        router=c.layers * c.experts * c.dim,
        norms=(count * c.layers + 1) * norm + c.layers * of_heads,
        output=0 if c.tied else c.vocabulary * c.dim,
        idle=c.layers * idle,
    )


def flops_per_token(config: GPTConfig, context: int | None = None, training: bool = True) -> float:
    """Forward 2 flops per multiplying parameter and token, backward twice that, and attention.

    Attention: 2 products of (context, width) with each query, causal, so half of them on average: 2
    · layers · context · heads · width forward.
    """
    c = config
    p = parameters(c)
    positions = (c.context if c.positions == "learned" else 0) * c.dim
    table = p.embedding - positions  # the output multiplies by it, or by a matrix like it
    multiplied = p.active - p.embedding - p.norms + (table if c.tied else 0)
    length = context or c.context
    forward = 2.0 * multiplied + 2.0 * c.layers * length * c.heads * c.width
    return forward * (3 if training else 1)


def cache_bytes(config: GPTConfig, batch: int = 1, itemsize: int = 2) -> int:
    """Keys and values of all layers and positions: 2·layers·batch·key heads·context·width·bytes."""
    return (2 * config.layers * batch * config.key_value_heads * config.context * config.width
            * itemsize)  # fmt: skip


def activation_bytes(
    config: GPTConfig, batch: int, itemsize: int = 2, recompute: bool = False
) -> int:
    """Bytes that a training step keeps for the backward pass, at its peak, without parameter state.

    A block keeps per token: its two inputs; for each norm, its scaled input and output; queries,
    keys and values, the first two also rotated if positions are rotary; the output of attention;
    and the feed-forward layer before and after its activation, for SwiGLU also the sigmoid and the
    activated gate. Experts have these in blocks of rows that are not all used (see moe.py), plus
    their tokens and answers. Scores are recomputed. After the blocks come the logits with their
    gradient (float32) and their input; or, if that is more, the logits' gradient and the gradients
    in the last feed-forward layer.

    recompute keeps only the inputs of blocks, and the inside of one block.
    """
    c, experts = config, bool(config.experts)
    tokens = batch * c.context
    turned = (c.heads + c.key_value_heads) * c.width if c.positions == "rotary" else 0
    rows = (c.heads + 2 * c.key_value_heads) * c.width + turned
    places = math.prod(block_shape(tokens * c.active, c.experts)) if experts else tokens
    gated = c.gated
    wide = c.hidden * (5 if gated else 2) + 2 * c.dim * experts
    block = (tokens * (7 * c.dim + rows) + places * wide) * itemsize
    kept = c.layers * tokens * c.dim * itemsize + block if recompute else c.layers * block
    loss = tokens * (c.dim * itemsize + 2 * 4 * c.vocabulary)
    through = tokens * (2 * c.dim * experts * itemsize + 4 * c.vocabulary)
    through += places * (c.hidden * gated + c.dim * experts) * itemsize
    return kept + max(loss, through)


def masters(itemsize: int) -> int:
    """Bytes of the float32 copy of a parameter, which smaller ones need in training."""
    return 4 if itemsize < 4 else 0


def per_parameter(itemsize: int) -> int:
    """Bytes in training: weights + gradients + masters + AdamW's two moments."""
    return 2 * itemsize + masters(itemsize) + 8


def state_bytes(config: GPTConfig, itemsize: int = 2) -> int:
    """Weights, gradients, masters and AdamW's moments."""
    return parameters(config).total * per_parameter(itemsize)


def state_bytes_of_device(count: float, copies: int = 1, zero: int = 0, itemsize: int = 2) -> float:
    """The state of `count` parameters on one of `copies` devices, which share it with ZeRO.

    zero: 1 shares AdamW's state, 2 also gradients, 3 also weights.
    """
    rest = per_parameter(itemsize) - 2 * itemsize
    parts = ((itemsize, 3), (itemsize, 2), (rest, 1))
    return count * sum(size / (copies if zero >= stage else 1) for size, stage in parts)


def peak_bytes(config: GPTConfig, batch: int, itemsize: int = 2, recompute: bool = False) -> int:
    """The peak memory of a training step here.

    Weights, masters and moments, and the larger of activations and gradients: when the backward
    pass has a block's gradients, the block's activations are not needed any more.
    """
    n = parameters(config).total
    gradients = n * itemsize
    rest = n * per_parameter(itemsize) - gradients
    return rest + max(activation_bytes(config, batch, itemsize, recompute), gradients)


def devices(size: float, memory: float) -> int:
    """The number of devices of `memory` bytes that hold `size` bytes."""
    return max(math.ceil(size / memory), 1)


def seconds_of_training(
    config: GPTConfig, tokens: float, count: int, peak: float, utilization: float = 0.4
) -> float:
    """flops per token · tokens / (devices · peak · reached share of the peak)."""
    return flops_per_token(config) * tokens / (count * peak * utilization)


def bytes_text(size: float) -> str:
    """A size as text, in the largest fitting unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def duration_text(seconds: float) -> str:
    """A duration as text, in the largest fitting unit."""
    for unit, size in (("years", 365.25 * DAY), ("months", MONTH), ("days", DAY), ("hours", 3600.0),
                       ("minutes", 60.0)):  # fmt: skip
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.3g} seconds"


@dataclass(frozen=True)
class Line:
    """A figure: its name, value and formula."""

    what: str
    figure: str
    formula: str = ""


@dataclass(frozen=True)
class Machine:
    """The devices. memory: bytes of each; peak: its flop/s; utilization: the share reached.

    count: how many; None for as many as the training needs.
    """

    memory: float = H100
    peak: float = 989e12
    utilization: float = 0.4
    count: int | None = None


def report(
    name: str, config: GPTConfig, itemsize: int, batch: int, machine: Machine, tokens: float
) -> list[Line]:
    """The figures of a model that trains on `tokens` tokens, `batch` windows at a time."""
    c, p, whole = config, parameters(config), per_parameter(itemsize)
    n, memory = p.total, machine.memory
    weights, state = n * itemsize, state_bytes(c, itemsize)
    inside = activation_bytes(c, batch, itemsize)
    few = activation_bytes(c, batch, itemsize, recompute=True)
    cache = cache_bytes(c, 1, itemsize)
    used = machine.count or devices(state + few, memory)
    seconds = seconds_of_training(c, tokens, used, machine.peak, machine.utilization)
    rest = 8 + masters(itemsize)
    peaks = [peak_bytes(c, batch, itemsize, recompute) for recompute in (True, False)]
    return [
        Line(name, f"{c.layers} layers, {c.dim} dims, {c.heads} heads, feed-forward {c.hidden}, "
             f"context {c.context}, vocabulary {c.vocabulary}"),
        Line("parameters", f"{n:,}",
             f"embedding {p.embedding:,} + attention {p.attention:,} + feed-forward "
             f"{p.feed_forward:,} + router {p.router:,} + norms {p.norms:,} + output "
             f"{p.output:,}"),
        *([Line("active per token", f"{p.active:,}", "without the experts that a token skips")]
          if c.experts else []),
        Line("weights", bytes_text(weights), f"parameters · {itemsize} bytes"),
        Line("KV cache", f"{bytes_text(cache)} = {cache / 2**30:.3g} GiB",
             f"2 · {c.layers} layers · {c.key_value_heads} heads · {c.context} positions · "
             f"{c.width} dims · {itemsize} bytes, for one request"),
        Line("gradients", bytes_text(weights), f"parameters · {itemsize} bytes"),
        Line("optimizer", bytes_text(n * rest),
             f"parameters · {rest} bytes: AdamW's two moments, 4 each"
             + (", and float32 masters, 4" if masters(itemsize) else "")),
        Line("activations", f"{bytes_text(inside)}; {bytes_text(few)} with recomputation",
             f"what the backward pass needs, for {batch} × {c.context} tokens"),
        Line("training, total", f"{bytes_text(state + few)} … {bytes_text(state + inside)}",
             f"parameters · {whole} bytes + activations"),
        Line("peak in minigrad", " … ".join(map(bytes_text, peaks)),
             "the same with only the larger of gradients and activations: gradients reuse the "
             "memory of activations"),
        Line("devices to hold it", f"{devices(weights, memory):,}",
             f"weights / {bytes_text(memory)}, rounded up"),
        Line("devices to train it",
             f"{devices(state, memory):,} … {devices(state + inside, memory):,}",
             f"parameters · {whole} bytes, + activations / memory"),
        Line("flops per token", f"{flops_per_token(c):.3g}",
             "6 · parameters that multiply + 6 · layers · context · dim"),
        Line("training time", duration_text(seconds),
             f"flops per token · {tokens:.3g} tokens / ({used:,} devices · {machine.peak:.3g} "
             f"flop/s · {machine.utilization:.0%})"),
    ]  # fmt: skip


def article(config: GPTConfig) -> list[Line]:
    """The figures in the overview of GPT-3, and their meaning."""
    n, cache, large = parameters(config).total, cache_bytes(config), 1.8e12
    return [
        Line("175 B parameters", f"{n / 1e9:.1f} B",
             "12 · layers · dim² + (vocabulary + context) · dim"),
        Line("350 GB of weights", bytes_text(2 * n), "parameters · 2 bytes"),
        Line("5 H100s to hold it", f"{devices(2 * n, H100)}", "weights / 80 GB, rounded up"),
        Line("40–50 H100s to train it", f"{devices(18 * n, H100)} … {devices(23 * n, H100)}",
             "18 … 23 bytes per parameter: 16 for weights and gradients in 2 bytes, masters and "
             "moments in 4, and 2 … 7 for activations and buffers"),
        Line("3–6 TB in training", f"{bytes_text(16 * n)} … {bytes_text(34 * n)}",
             "16 bytes per parameter without activations, 34 with those of a large batch"),
        Line("9 GB of KV cache", f"{cache / 1e9:.2f} GB = {cache / 2**30:.1f} GiB",
             "2 · 96 layers · 2,048 positions · 12,288 dims · 2 bytes"),
        Line("100,000 iterations", duration_text(100_000 * 120.0), "100,000 · 2 minutes"),
        Line("GPT-4's rumoured 1.8 T",
             f"{bytes_text(2 * large)}, {devices(2 * large, H100)} H100s to hold it, "
             f"{devices(18 * large, H100)} … {devices(23 * large, H100)} to train it",
             "the same formulas; with thousands of them, in reasonable time"),
        Line("a B300 of 288 GB", f"holds {B300 / 2 / 1e9:.0f} B parameters, trains "
             f"{B300 / 16 / 1e9:.0f} B", "288 GB / 2 bytes; / 16 bytes"),
    ]  # fmt: skip


def add_machine_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags for the model, its tokens and the devices; `network.py` has them, too."""
    add, number = command.add_argument, console.positive_float
    add("model", nargs="?", default="gpt3", help=f"preset: {', '.join(PRESETS)}")
    add("--tokens", type=number, default=300e9, help="training tokens")
    add("--dtype", choices=list(ITEMSIZE), default="bfloat16",
        help="dtype of weights and gradients")  # fmt: skip
    add("--peak", type=console.amount("flop/s", 1e6), default=989e12,
        help="peak speed of a device, such as 989Tflop/s (an H100)")  # fmt: skip
    add("--utilization", type=console.share, default=0.4,
        help="share of the peak that training reaches")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Compute a model's parameters, memory, flops, devices and days of training."
    )
    add = result.add_argument
    add_machine_flags(result)
    for name in ("layers", "heads", "dim", "context", "vocabulary", "experts"):
        add(f"--{name}", type=console.positive_int, help=f"change the number of {name}"
            if name not in ("dim", "context", "vocabulary") else f"change the {name}")  # fmt: skip
    add("--batch", type=console.positive_int, default=1,
        help="windows of text per step, on all devices together")  # fmt: skip
    add("--device-memory", type=console.amount("B", 1e6), default=H100,
        help="memory of a device, such as 80GB or 80GiB (an H100 has 80 GB)")  # fmt: skip
    add("--devices", type=console.positive_int,
        help="devices that train (default: as few as can hold the training)")  # fmt: skip
    return result


def main(arguments: Sequence[str]) -> None:
    """Print the figures."""
    flags = parser().parse_args(arguments)
    changes = {name: getattr(flags, name) for name in
               ("layers", "heads", "dim", "context", "vocabulary", "experts")
               if getattr(flags, name) is not None}  # fmt: skip
    config = replace(GPTConfig.preset(flags.model), **changes)
    machine = Machine(flags.device_memory, flags.peak, flags.utilization, flags.devices)
    show(report(flags.model, config, ITEMSIZE[flags.dtype], flags.batch, machine, flags.tokens))
    if flags.model == "gpt3" and not changes:
        print("\nthe article's figures")
        show(article(config))


def show(lines: Sequence[Line]) -> None:
    """Print figures, each with its formula below."""
    for line in lines:
        print(f"  {line.what:<24} {line.figure}")
        if line.formula:
            print(f"  {'':<24}   = {line.formula}")


if __name__ == "__main__":
    sys.exit(console.run(main))
