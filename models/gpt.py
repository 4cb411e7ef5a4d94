"""GPT-2, from the embedding of a token to the logits of the next, and the scripts around it.

    python models/gpt.py                                    # train on Shakespeare's plays
    python models/gpt.py train --text my.txt --layers 6     # … on a text of one's own
    python models/gpt.py sample --checkpoint gpt.safetensors --prompt "ROMEO:"

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Parameters have the
names of HuggingFace's GPT-2 (wte, wpe, h.0.attn.c_attn, …) and PyTorch's shapes (out, in).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minigrad import Tensor, nn
from minigrad.graph.symbolic import Integer, high
from minigrad.models import console, sampling
from minigrad.models.decode import Decoder, KeyValueCache

Prompt = Sequence[int]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. ValueError where the numbers do not fit one another."""

    layers: int = 4
    heads: int = 4
    dim: int = 128
    context: int = 64
    vocabulary: int = 50257
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "context", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.dim % self.heads:
            raise ValueError(f"{self.dim} dims cannot be shared evenly by {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: expected 0 or more and less than 1")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.dim

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """A published shape, e.g. "gpt2"; ValueError lists the known names."""
        try:
            return PRESETS[name]
        except KeyError:
            known = ", ".join(PRESETS)
            raise ValueError(f"unknown preset {name!r}; known presets: {known}") from None


PRESETS = {
    "mini": GPTConfig(layers=4, heads=4, dim=128, context=64),
    "small": GPTConfig(layers=6, heads=6, dim=384, context=256),
    "gpt2": GPTConfig(layers=12, heads=12, dim=768, context=1024),
    "gpt2-medium": GPTConfig(layers=24, heads=16, dim=1024, context=1024),
    "gpt2-large": GPTConfig(layers=36, heads=20, dim=1280, context=1024),
    "gpt2-xl": GPTConfig(layers=48, heads=25, dim=1600, context=1024),
    # Brown et al., "Language Models are Few-Shot Learners" (2020), table 2.1
    "gpt3": GPTConfig(layers=96, heads=96, dim=12288, context=2048),
}


class Attention:
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPTConfig) -> None:
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = nn.Linear(config.dim, 3 * config.dim)
        self.c_proj = nn.Linear(config.dim, config.dim)

    def __call__(self, x: Tensor, cache: KeyValueCache | None = None, start: Integer = 0) -> Tensor:
        """(batch, length, dim) → the same shape; a position sees itself and those before it.

        With a cache, x are the positions from `start`: 0, or, for a single one, any.
        """
        batch, length, dim = x.shape
        qkv = self.c_attn(x).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = (
            qkv[:, :, part].transpose(1, 2) for part in range(3)
        )  # (batch, heads, length, ·)
        if cache is not None:
            k, v = cache.extend(k, v, start)
        single = length == 1  # the last position sees them all
        y = q.scaled_dot_product_attention(k, v, dropout_p=self.dropout, is_causal=not single)
        y = y.transpose(1, 2).reshape(batch, length, dim)
        return self.c_proj(y).dropout(self.dropout)


class FeedForward:
    """Widen four times, GELU (the tanh form), narrow."""

    def __init__(self, config: GPTConfig) -> None:
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.dim, config.hidden)
        self.c_proj = nn.Linear(config.hidden, config.dim)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        return self.c_proj(self.c_fc(x).gelu()).dropout(self.dropout)


class Block:
    """Two residual branches, each normalised at its entry."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = nn.LayerNorm(config.dim)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)

    def __call__(self, x: Tensor, cache: KeyValueCache | None = None, start: Integer = 0) -> Tensor:
        """(batch, length, dim) → the same shape; see `Attention` for the cache."""
        x = x + self.attn(self.ln_1(x), cache, start)
        return x + self.mlp(self.ln_2(x))


class GPT:
    """model(ids) → logits; ids (batch, length) of integers, logits (batch, length, vocabulary)."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.dim)
        self.wpe = nn.Embedding(config.context, config.dim)
        self.h = [Block(config) for _ in range(config.layers)]
        self.ln_f = nn.LayerNorm(config.dim)
        self.initialize()

    def initialize(self) -> None:
        """Weights as in GPT-2: normal, 0.02; what ends a residual branch is scaled by depth."""
        named = nn.state.get_state_dict(self)
        with Tensor.no_grad():
            for name, parameter in named.items():
                if name.endswith("bias"):
                    parameter.assign(0.0)
                elif parameter.ndim == 2:
                    ends_branch = name.endswith("c_proj.weight")
                    deviation = 0.02 / math.sqrt(2 * self.config.layers if ends_branch else 1)
                    parameter.assign(Tensor.randn(*parameter.shape) * deviation)
        Tensor.realize(*named.values())

    def features(
        self, ids: Tensor, caches: Sequence[KeyValueCache] = (), start: Integer = 0
    ) -> Tensor:
        """What the last layer knows of each position: (batch, length, dim).

        With a cache for each layer, ids are the tokens from position `start`: 0, or, for a single
        token, the first position that is not in the caches yet.
        """
        length = ids.shape[1]
        if high(start + length) > self.config.context:
            raise ValueError(
                f"{length} tokens are more than the model's context of {self.config.context}: "
                "give it the last ones only"
            )
        x = self.wte(ids) + self.wpe.weight[start : start + length]
        x = x.dropout(self.config.dropout)
        for number, block in enumerate(self.h):
            x = block(x, caches[number] if caches else None, start)
        return self.ln_f(x)

    def unembed(self, features: Tensor) -> Tensor:
        """Logits: how well each token's embedding matches; output and input share the matrix."""
        return features.linear(self.wte.weight.transpose())

    def __call__(self, ids: Tensor) -> Tensor:
        """(batch, length) of integers → logits (batch, length, vocabulary)."""
        return self.unembed(self.features(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar; targets (batch, length) of integers."""
        return self(ids).cross_entropy(targets)

    def generate(
        self,
        ids: Prompt | Sequence[Prompt] | Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> Iterator[Any]:
        """New token ids one by one, as they are drawn; what was given is not repeated.

        For a prompt (ids in a list, at least one) each is an int. For a batch of prompts, whose
        lengths may differ, each is a list with one id per prompt, None where it has ended. A token
        of `stop` is given and ends its prompt. Temperature 0 takes the likeliest token; see
        `sampling.probabilities` for the others. Where the context is full, the model goes on
        from the later half of it. Row i draws from the generator (seed, i), whatever the other rows
        do. Raises ValueError for settings that make no sense and for an empty prompt.
        """
        sampling.check(temperature, top_k, top_p)
        given: list[Any] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        single = not given or not hasattr(given[0], "__len__")
        rows = [[int(token) for token in row] for row in ([given] if single else given)]
        for row in rows:
            if not row:
                raise ValueError("a prompt is empty: give at least one token")
            if not 0 <= min(row) <= max(row) < self.config.vocabulary:
                raise ValueError(f"a prompt has tokens outside 0 … {self.config.vocabulary - 1}")
        tokens = self._generate(rows, max_new_tokens, (temperature, top_k, top_p), seed, stop)
        return (new[0] for new in tokens) if single else tokens

    def _generate(
        self,
        rows: list[list[int]],
        count: int,
        settings: tuple[float, int | None, float | None],
        seed: int,
        stop: Collection[int],
    ) -> Iterator[list[int | None]]:
        import numpy as np

        generators = [np.random.default_rng((seed, number)) for number in range(len(rows))]
        alive = [True] * len(rows)
        # rows of one length are read together
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(len(row), []).append(number)
        decoders = [Decoder(self, [rows[i] for i in group]) for group in groups.values()]
        for _ in range(count):
            new: list[int | None] = [None] * len(rows)
            for decoder, group in zip(decoders, groups.values(), strict=True):
                if not any(alive[number] for number in group):
                    continue
                logits = decoder.logits()
                for place, number in enumerate(group):
                    if alive[number]:
                        token = sampling.choose(logits[place], generators[number], *settings)
                        new[number] = token
                        alive[number] = token not in stop
                decoder.append([new[number] or 0 for number in group])  # 0: of ended rows
            yield new
            if not any(alive):
                return


if __name__ == "__main__":
    from minigrad.models.gpt_commands import main

    sys.exit(console.run(main))
