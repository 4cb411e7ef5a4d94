"""GPT-2 and Llama, from the embedding of a token to the logits of the next, and their scripts.

    python models/gpt.py                                    # train on Shakespeare's plays
    python models/gpt.py train --text my.txt --layers 6     # … on a text of one's own
    python models/gpt.py sample --checkpoint gpt.safetensors --prompt "ROMEO:"
    python models/gpt.py chat                               # talk with SmolLM2
    python models/gpt.py inspect "The capital of France is" # look inside
    python models/gpt.py quantize model/ m.gguf --type q4_k # weights in few bits

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); Touvron et al.,
"LLaMA: Open and Efficient Foundation Language Models" (2023). What tells them apart are switches of
`GPTConfig`. Parameters have the names of HuggingFace's GPT-2 (wte, wpe, h.0.attn.c_attn, …) in both
and PyTorch's shapes (out, in); `weights.py` knows the names of others.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any, cast

from minigrad import Tensor, nn
from minigrad.device import Device
from minigrad.dtype import named
from minigrad.graph.symbolic import Integer, high
from minigrad.models import console, decode, moe, precision
from minigrad.models.decode import KeyValueCache, Prompt
from minigrad.models.gpt_config import PRESETS, GPTConfig
from minigrad.models.sampling import Sampling


class Linear(nn.Linear):
    """nn.Linear that multiplies in the config's precision and adds in float32."""

    def __init__(self, config: GPTConfig, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        self.precision = config.precision

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y = precision.product(x, self.weight, named(self.precision))
        return y if self.bias is None else y + self.bias


def make_norm(config: GPTConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The config's normalisation of the last dimension."""
    if config.norm == "rms":
        return nn.RMSNorm(config.dim, config.epsilon)
    return nn.LayerNorm(config.dim, config.epsilon, bias=config.bias)


@lru_cache(maxsize=8)
def rotation(config: GPTConfig, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the angles position · base^(−2i/width).

    (context, 2, width/2) each; angles are float64, as a float32 has few digits left at the far end.
    """
    with Tensor.no_grad():
        pairs = Tensor.arange(config.width // 2, dtype="float64", device=device)
        positions = Tensor.arange(config.context, dtype="float64", device=device).reshape(-1, 1)
        angles = positions * (pairs * (-2 * math.log(config.rotary_base) / config.width)).exp()
        cosines, sines = angles.cos().float(), angles.sin().float()
        tables = cosines.stack(cosines, dim=1), (-sines).stack(sines, dim=1)
        Tensor.realize(*(table.requires_grad_(False) for table in tables))
    return tables


def rotate(x: Tensor, tables: Sequence[Tensor], start: Integer) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021): dims i and i + width/2 turn as a pair.

    x (batch, heads, length, width), its first position is `start`.
    """
    cosines, sines = (table[start : start + x.shape[2]] for table in tables)
    pairs = x.reshape(*x.shape[:3], 2, x.shape[3] // 2)
    return (pairs * cosines + pairs.flip(3) * sines).reshape(x.shape)


Spans = Sequence[tuple[int, int]]


def chosen(table: Tensor, spans: Spans) -> Tensor:
    """The rows first … last − 1 of each span, one after the other; without spans all rows."""
    parts = [table[first:stop] for first, stop in spans] or [table]
    return parts[0].cat(*parts[1:])


class Attention:
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        rows = config.heads + 2 * config.key_value_heads
        self.c_attn = Linear(config, config.dim, rows * config.width, config.bias)
        self.c_proj = Linear(config, config.dim, config.dim, config.bias)
        # where ranks share a sequence: attention across them, and the positions that are here
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.spans: Spans = ()

    def __call__(self, x: Tensor, cache: KeyValueCache | None = None, start: Integer = 0) -> Tensor:
        """(batch, length, dim) → the same shape; a position sees itself and those before it.

        With a cache, x are the positions from `start`.
        """
        q, k, v = self.heads(x, start)
        if cache is not None:
            k, v = cache.extend(k, v, start)
        single = x.shape[1] == 1  # the last position sees them all
        seen = None if single or start == 0 else decode.seen(x, self.config.context, start)
        if self.attend is not None:
            y = self.attend(q, k, v)
        else:
            y = q.scaled_dot_product_attention(
                k, v, seen, self.config.dropout, is_causal=not single and seen is None,
                enable_gqa=self.config.key_value_heads < self.config.heads,
            )  # fmt: skip
        return self.c_proj(y.transpose(1, 2).reshape(x.shape)).dropout(self.config.dropout)

    def heads(self, x: Tensor, start: Integer = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, length, width), turned if rotary."""
        config, (batch, length, _) = self.config, x.shape
        rows = self.c_attn(x).reshape(batch, length, -1, config.width).transpose(1, 2)
        many, few = config.heads, config.key_value_heads
        q, k, v = rows[:, :many], rows[:, many : many + few], rows[:, many + few :]
        if config.positions == "rotary":
            whole = rotation(config, Device.canonical(x.device))
            tables = [chosen(table, self.spans) for table in whole]
            q, k = rotate(q, tables, start), rotate(k, tables, start)
        return q, k, v


class FeedForward:
    """Widen, bend, narrow: GELU (the tanh form), or SwiGLU (Shazeer 2020): silu(gate) · up."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.gated = config.activation == "swiglu"  # c_fc is then the gate's rows, and up's
        outputs = config.hidden * (2 if self.gated else 1)
        self.c_fc = Linear(config, config.dim, outputs, config.bias)
        self.c_proj = Linear(config, config.hidden, config.dim, config.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        inner = self.c_fc(x)
        if self.gated:
            inner = inner[..., : self.config.hidden].silu() * inner[..., self.config.hidden :]
        else:
            inner = inner.gelu()
        return self.c_proj(inner).dropout(self.config.dropout)


class Block:
    """Two residual branches, each normalised at its entry."""

    def __init__(self, config: GPTConfig) -> None:
        self.residual = config.residual
        self.ln_1 = make_norm(config)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp: FeedForward | moe.MoE = (
            moe.MoE(config.dim, config.hidden, config.experts, config.active,
                gated=config.activation == "swiglu", bias=config.bias,
                precision=named(config.precision))
            if config.experts else FeedForward(config)
        )  # fmt: skip

    def __call__(self, x: Tensor, cache: KeyValueCache | None = None, start: Integer = 0) -> Tensor:
        """(batch, length, dim) → the same shape; see `Attention` for the cache."""
        y = self.attn(self.ln_1(x), cache, start)
        x = x + y if self.residual else y
        y = self.mlp(self.ln_2(x))
        return x + y if self.residual else y


class GPT:
    """model(ids) → logits; ids (batch, length) of integers, logits (batch, length, vocabulary).

    initialize=False leaves the weights, which are zero, to whoever makes the model.
    """

    def __init__(self, config: GPTConfig, initialize: bool = True) -> None:
        self.config = config
        with nn.blank():
            self.wte = nn.Embedding(config.vocabulary, config.dim)
            if config.positions == "learned":
                self.wpe = nn.Embedding(config.context, config.dim)
            self.h = [Block(config) for _ in range(config.layers)]
            self.ln_f = make_norm(config)
            if not config.tied:
                self.lm_head = Linear(config, config.dim, config.vocabulary, bias=False)
        self.spans: Spans = ()  # the positions that are here, where ranks share a sequence
        if initialize:
            self.initialize()

    def initialize(self) -> None:
        """Weights as in GPT-2: normal, 0.02; what ends a residual branch is scaled by depth."""
        named = nn.state.get_state_dict(self)
        biases = [parameter for name, parameter in named.items() if name.endswith("bias")]
        with Tensor.no_grad():
            for name, parameter in named.items():
                if parameter.ndim >= 2 and not name.endswith("bias"):
                    ends_branch = name.endswith("c_proj.weight")
                    deviation = 0.02 / math.sqrt(2 * self.config.layers if ends_branch else 1)
                    # One by one: those of one shape are then drawn by one program. Nothing else
                    # waits meanwhile, for `realize` looks through all that does.
                    parameter.assign(Tensor.randn(*parameter.shape) * deviation).realize()
            for bias in biases:
                bias.assign(0.0)
        Tensor.realize(*named.values())

    def embed(self, ids: Tensor, start: Integer = 0) -> Tensor:
        """Vectors of tokens, and of their positions if those are learned: (batch, length, dim)."""
        length = ids.shape[1]
        if high(start + length) > self.config.context:
            raise ValueError(f"{length} tokens are more than the model's context of "
                             f"{self.config.context}: give it the last ones only")  # fmt: skip
        x = self.wte(ids)
        x = x.float() if x.dtype.itemsize < 4 else x  # a table in half precision stays so
        if self.config.positions == "learned":
            x = x + chosen(self.wpe.weight, self.spans)[start : start + length]
        return x.dropout(self.config.dropout)

    def features(
        self, ids: Tensor, caches: Sequence[KeyValueCache] = (), start: Integer = 0
    ) -> Tensor:
        """What the last layer knows of each position: (batch, length, dim).

        With a cache for each layer, ids are the tokens from position `start`, the first that is
        not in the caches yet.
        """
        x = self.embed(ids, start)
        for number, block in enumerate(self.h):
            x = block(x, caches[number] if caches else None, start)
        return self.ln_f(x)

    def unembed(self, features: Tensor) -> Tensor:
        """Logits (…, vocabulary): how well each token matches."""
        if not self.config.tied:
            return self.lm_head(features)
        table: Any = self.wte  # a quantized one multiplies by itself
        if isinstance(table, nn.Embedding):
            return precision.product(features, table.weight, named(self.config.precision))
        return cast(Tensor, table.weight.product(features))

    def __call__(self, ids: Tensor) -> Tensor:
        """(batch, length) of integers → logits (batch, length, vocabulary)."""
        return self.unembed(self.features(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar; targets (batch, length) of integers.

        In training a mixture of experts adds what keeps its routers fair (see `moe.py`).
        """
        with moe.recording() as routes:
            loss = self(ids).cross_entropy(targets, axis=-1)
        return loss + self.routing_loss(routes) if routes and Tensor.training else loss

    def routing_loss(self, routes: Sequence[moe.Routing]) -> Tensor:
        """The config's share of the load-balancing loss and the z-loss, a mean over the blocks."""
        return moe.auxiliary_loss(routes, self.config.balance, self.config.router_z)

    def generate(
        self, ids: Prompt | Sequence[Prompt] | Tensor, max_new_tokens: int,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        seed: int = 0, stop: Collection[int] = (), repetition_penalty: float = 1.0,
        context_policy: str = "roll", keep: int = 0,
    ) -> Iterator[Any]:  # fmt: skip
        """New token ids one by one, as they are drawn; what was given is not repeated.

        For a prompt (ids in a list, at least one) each is an int. For a batch of prompts, whose
        lengths may differ, each is a list with one id per prompt, None where it has ended. A token
        of `stop` is given and ends its prompt. Temperature 0 takes the likeliest token; see
        `Sampling` for the others. Row i draws with numbers (i, 0), (i, 1), … of the seed, whatever
        the other rows do. Where the context is full, the model goes on from the first `keep` tokens
        and the later half of it ("roll"), or ValueError is raised ("error"), as it is for settings
        that make no sense and for an empty prompt.
        """
        settings = Sampling(temperature, top_k, top_p, repetition_penalty)
        return decode.generate(
            self, ids, max_new_tokens, settings, seed, stop, context_policy, keep
        )

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **options: Any) -> GPT:
        """The model in a folder or file of weights; see `weights.load_pretrained`."""
        from minigrad.models.weights import load_pretrained

        return load_pretrained(cls, path, **options)


__all__ = ["GPT", "PRESETS", "Attention", "Block", "FeedForward", "GPTConfig"]

if __name__ == "__main__":
    from minigrad.models.gpt_commands import main

    sys.exit(console.run(main))
