"""GPT-2, Llama and their kin, from the embedding of a token to the next's logits; their scripts.

    python models/gpt.py                                    # train on Shakespeare's plays
    python models/gpt.py train --text my.txt --layers 6     # … on a text of one's own
    python models/gpt.py sample --checkpoint gpt.safetensors --prompt "ROMEO:"
    python models/gpt.py chat                               # talk with SmolLM2
    python models/gpt.py inspect "The capital of France is" # look inside
    python models/gpt.py quantize model/ m.gguf --type q4_k # weights in few bits
    python models/gpt.py serve                              # for programs, and in a browser

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); Touvron et al.,
"LLaMA: Open and Efficient Foundation Language Models" (2023). What tells families apart are
switches of `GPTConfig`. Parameters have the names of HuggingFace's GPT-2 (wte, h.0.attn.c_attn, …)
and PyTorch's shapes (out, in); `architectures.py` has the names of others.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, cast

from minigrad import Tensor, dtypes, nn
from minigrad.device import Device
from minigrad.dtype import named
from minigrad.errors import misfit
from minigrad.graph.symbolic import high
from minigrad.models import console, decode, moe, precision
from minigrad.models.decode import Cache, Prompt, Start
from minigrad.models.gpt_config import PRESETS, GPTConfig
from minigrad.models.rotary import rotate, rotation
from minigrad.models.sampling import Sampling


class Linear(nn.Linear):
    """nn.Linear that multiplies in the config's precision, and adds in float32."""

    def __init__(self, config: GPTConfig, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs, bias)
        self.precision = config.precision

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return precision.product(x, self.weight, named(self.precision), self.bias)


def make_norm(config: GPTConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The config's normalization over the last dimension."""
    if config.norm == "rms":
        return nn.RMSNorm(config.dim, config.epsilon)
    return nn.LayerNorm(config.dim, config.epsilon, bias=config.bias)


Spans = Sequence[tuple[int, int]]


def chosen(table: Tensor, spans: Spans) -> Tensor:
    """Rows first … stop − 1 of each span, one after the other; all rows if there are no spans."""
    return Tensor.cat([table[first:stop] for first, stop in spans] or [table])


def capped(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap), which stays within ±cap; x if cap is 0."""
    return (x / cap).tanh() * cap if cap else x


def as_it_is(x: Tensor) -> Tensor:
    """x: what a block does between its matrices if devices do not share them."""
    return x


class Attention:
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        self.config, self.kind = config, config.kind(layer)
        self.window = config.window if self.kind == "s" else 0
        rows, few = config.heads * config.width, config.key_value_heads * config.width
        self.c_attn = Linear(config, config.dim, rows + 2 * few, config.bias or config.query_bias)
        self.c_proj = Linear(config, rows, config.dim, config.bias or config.output_bias)
        if config.query_norm != "none":
            whole = config.query_norm == "whole"
            self.q_norm = nn.RMSNorm(rows if whole else config.width, config.epsilon)
            self.k_norm = nn.RMSNorm(few if whole else config.width, config.epsilon)
        # if ranks share a sequence: attention across ranks, and the positions on this rank
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.spans: Spans = ()

    def __call__(self, x: Tensor, cache: Cache | None = None, start: Start = 0) -> Tensor:
        """(batch, length, dim) → the same shape; a position sees itself and those before it.

        With a cache, x has the positions from `start`; see `decode.Start`.
        """
        rounds = self.attend is None and cache is None and not self.config.attention_cap
        q, k, v = self.heads(x, start, rounds)
        if self.attend is not None:
            y = self.attend(q, k, v)
        elif cache is not None:
            y = cache.attend(self, q, k, v, start)
        else:
            y = self.mix(q, k, v, decode.seen(q, k, 0, self))
        merged = y.transpose(1, 2).reshape(*x.shape[:2], -1)
        return self.c_proj(merged).dropout(self.config.dropout)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """The output of attention; seen: None if each query sees itself and all before it."""
        config, causal = self.config, seen is None and q.shape[2] != 1
        scale, groups = config.attention_scale or None, config.heads // config.key_value_heads
        if not config.attention_cap:
            return q.scaled_dot_product_attention(
                k, v, seen, config.dropout, causal, scale, enable_gqa=groups > 1
            )
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        scores = q @ k.transpose(2, 3) * (scale or config.width**-0.5)
        scores = capped(scores, config.attention_cap)
        scores = q._seen(k, seen, causal)[0].where(scores, float("-inf"))
        return scores.softmax(-1).dropout(config.dropout) @ v

    def heads(
        self, x: Tensor, start: Start = 0, rounds: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, length, width), rotated if rotary.

        rounds: rounded as operands of attention (see `precision.operand`).
        """
        config = self.config
        to = named(config.precision) if rounds else dtypes.float32
        many, few = config.heads * config.width, config.key_value_heads * config.width
        rows = self.c_attn(x)
        if config.positions != "rotary" and config.query_norm == "none":
            rows = precision.operand(rows, to)
        q, k, v = rows[..., :many], rows[..., many : many + few], rows[..., many + few :]
        if config.query_norm == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(*x.shape[:2], -1, config.width).transpose(1, 2) for y in (q, k, v))
        if config.query_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if config.positions == "rotary" and self.kind != "n":
            local = self.window > 0 and config.local_base > 0
            whole = rotation(config, Device.canonical(x.device), local)
            parts = [decode.at(chosen(table, self.spans), start, x.shape[1]) for table in whole]
            q, k = rotate(q, *parts), rotate(k, *parts)
        return precision.operand(q, to), precision.operand(k, to), precision.operand(v, to)


class FeedForward:
    """Widen, activate, narrow: GELU; or gated (Shazeer 2020): silu(gate) · up, or gelu(gate) · up.
    """

    def __init__(self, config: GPTConfig, hidden: int = 0) -> None:
        self.config = config
        self.hidden = hidden or config.hidden
        bias = config.bias or config.hidden_bias
        outputs = self.hidden * (2 if config.gated else 1)  # rows of gate and up
        self.c_fc = Linear(config, config.dim, outputs, bias)
        self.c_proj = Linear(config, self.hidden, config.dim, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        inner, kind = self.c_fc(x), self.config.activation
        gate = inner[..., : self.hidden]
        form = "none" if kind == "gelu_exact" else "tanh"
        bent = gate.silu() if kind == "swiglu" else gate.gelu(form)
        bent = bent * inner[..., self.hidden :] if self.config.gated else bent
        return self.c_proj(bent).dropout(self.config.dropout)


class MixtureOfExperts(moe.MoE):
    """The config's experts, and a shared one that is always active, if any, times its gate."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(
            config.dim, config.hidden, config.experts, config.active, config.gated, config.bias,
            named(config.precision), config.share,
        )  # fmt: skip
        if config.shared:
            self.shared = FeedForward(config, config.shared)
            self.shared_gate = Linear(config, config.dim, 1, bias=False)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        y = super().__call__(x)
        return y + self.shared_gate(x).sigmoid() * self.shared(x) if hasattr(self, "shared") else y


class Block:
    """Two residual branches, normalized at the beginning, the end, or both."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        self.config = config
        if config.norms != "after":
            self.ln_1, self.ln_2 = make_norm(config), make_norm(config)
        if config.norms != "before":
            self.after_1, self.after_2 = make_norm(config), make_norm(config)
        self.attn = Attention(config, layer)
        self.mlp = MixtureOfExperts(config) if config.experts else FeedForward(config)
        # if devices share tokens between matrices: gather all tokens, and go back to the own ones
        self.gather = self.scatter = as_it_is

    def __call__(self, x: Tensor, cache: Cache | None = None, start: Start = 0) -> Tensor:
        """(batch, length, dim) → the same shape; see `Attention` for the cache."""
        before, after = self.config.norms != "after", self.config.norms != "before"
        y = self.scatter(self.attn(self.gather(self.ln_1(x) if before else x), cache, start))
        y = self.after_1(y) if after else y
        first = x + y if self.config.residual else y
        x = x if self.config.parallel else first
        y = self.scatter(self.mlp(self.gather(self.ln_2(x) if before else x)))
        y = self.after_2(y) if after else y
        return first + y if self.config.residual else y


class GPT:
    """model(ids) → logits; ids (batch, length) of integers, logits (batch, length, vocabulary).

    initialize=False leaves the weights zero, for code that sets them.
    """

    def __init__(self, config: GPTConfig, initialize: bool = True) -> None:
        self.config = config
        with nn.blank():
            self.wte = nn.Embedding(config.vocabulary, config.dim)
            if config.positions == "learned":
                self.wpe = nn.Embedding(config.context, config.dim)
            self.h = [Block(config, layer) for layer in range(config.layers)]
            self.ln_f = make_norm(config)
            if not config.tied:
                self.lm_head = Linear(config, config.dim, config.vocabulary, bias=False)
        self.spans: Spans = ()  # the positions on this rank, if ranks share a sequence
        self.gather = self.scatter = as_it_is  # see `Block`
        if initialize:
            self.initialize()

    def initialize(self) -> None:
        """Set weights as in GPT-2: normal, 0.02; those that end a residual branch scaled by depth.
        """
        named = nn.state.get_state_dict(self)
        biases = [parameter for name, parameter in named.items() if name.endswith("bias")]
        with Tensor.no_grad():
            for name, parameter in named.items():
                if parameter.ndim >= 2 and not name.endswith("bias"):
                    ends_branch = name.endswith("c_proj.weight")
                    deviation = 0.02 / math.sqrt(2 * self.config.layers if ends_branch else 1)
                    # one by one: those of equal shape are then drawn by the same program
                    parameter.assign(Tensor.randn(*parameter.shape) * deviation).realize()
            for bias in biases:
                bias.assign(0.0)
        Tensor.realize(*named.values())

    def embed(self, ids: Tensor, start: Start = 0) -> Tensor:
        """Embeddings of tokens, plus positions if these are learned: (batch, length, dim)."""
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise misfit("GPT", "a tensor of integers (batch, length)", ids)
        length = ids.shape[1]
        if not isinstance(start, Tensor) and high(start + length) > self.config.context:
            raise ValueError(f"{length} tokens are more than the model's context of "
                             f"{self.config.context}: give only the last ones")  # fmt: skip
        x = self.wte(ids)
        x = x.float() if x.dtype.itemsize < 4 else x  # a table in half precision stays in it
        x = x if self.config.embedding_scale == 1 else x * self.config.embedding_scale
        if self.config.positions == "learned":
            places = decode.at(chosen(self.wpe.weight, self.spans), start, length)
            x = x + (places.squeeze(1) if isinstance(start, Tensor) else places)
        return self.scatter(x.dropout(self.config.dropout))

    def features(self, ids: Tensor, caches: Sequence[Cache] = (), start: Start = 0) -> Tensor:
        """The output of the last layer for each position: (batch, length, dim).

        With a cache for each layer, ids are the tokens from position `start`, the first that is not
        in the caches.
        """
        x = self.embed(ids, start)
        for number, block in enumerate(self.h):
            if caches and number:
                caches[number - 1].settle(x)
            x = block(x, caches[number] if caches else None, start)
        return self.ln_f(x)

    def unembed(self, features: Tensor) -> Tensor:
        """Logits (…, vocabulary) of features (…, dim)."""
        features = self.gather(features)
        table: Any = self.wte  # a quantized one has its own product
        if not self.config.tied:
            logits = self.lm_head(features)
        elif isinstance(table, nn.Embedding):
            logits = precision.product(features, table.weight, named(self.config.precision))
        else:
            logits = cast(Tensor, table.weight.product(features))
        return capped(logits, self.config.logit_cap)

    def __call__(self, ids: Tensor) -> Tensor:
        """(batch, length) of integers → logits (batch, length, vocabulary)."""
        return self.unembed(self.features(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar; targets (batch, length) of integers.

        In training, a mixture of experts adds losses that keep its routers balanced (see `moe.py`).
        """
        with moe.recording() as routes:
            loss = self(ids).cross_entropy(targets, axis=-1)
        return loss + self.routing_loss(routes) if routes and Tensor.training else loss

    def routing_loss(self, routes: Sequence[moe.Routing]) -> Tensor:
        """The weighted load-balancing loss and z-loss, averaged over the blocks."""
        return moe.auxiliary_loss(routes, self.config.balance, self.config.router_z)

    def generate(
        self, ids: Prompt | Sequence[Prompt] | Tensor, max_new_tokens: int,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        seed: int = 0, stop: Collection[int] = (), repetition_penalty: float = 1.0,
        context_policy: str = "roll", keep: int = 0,
    ) -> Iterator[Any]:  # fmt: skip
        """New token ids one by one, as they are drawn; the prompt is not repeated.

        For a single prompt (a list of at least one id) each item is an int. For a batch of prompts,
        which may differ in length, each item is a list with one id per prompt, None for those that
        have ended. A token of `stop` is returned and ends its prompt. Temperature 0 takes the
        likeliest token; see `Sampling` for the other settings. Row i draws with numbers (i, 0), (i,
        1), … of the seed, independent of the other rows. If the context is full, the model
        continues from the first `keep` tokens and the later half of the context ("roll"), or raises
        ValueError ("error"). ValueError also for invalid settings and an empty prompt.
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
