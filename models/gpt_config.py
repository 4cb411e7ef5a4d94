"""The shape of a GPT as numbers and switches, and published shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minigrad.errors import expect
from minigrad.models.errors import InputError
from minigrad.tensor.arguments import check_fields

CHOICES = {
    "positions": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "norms": ("before", "after", "both"),
    "query_norm": ("none", "head", "whole"),
    "activation": ("gelu", "gelu_exact", "swiglu", "geglu"),
    "precision": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. InputError if the numbers do not fit together."""

    layers: int = 4
    heads: int = 4
    dim: int = 128
    context: int = 64
    vocabulary: int = 50257
    dropout: float = 0.0
    key_heads: int = 0  # heads of keys and values, each shared by several query heads; 0: `heads`
    feed_forward: int = 0  # width between the two products of a block; 0: 4·dim
    positions: str = "learned"  # or "rotary"
    rotary_base: float = 10000.0
    norm: str = "layer"  # or "rms"
    epsilon: float = 1e-5  # of norms
    norms: str = "before"  # where a branch is normalized: "before", "after" or "both"
    query_norm: str = "none"  # of queries and keys: per "head", or over the "whole" of all heads
    activation: str = "gelu"  # its tanh form, or "gelu_exact"; gated: "swiglu", "geglu"
    bias: bool = True  # of all layers; if False, the next three say which have one
    query_bias: bool = False  # of queries, keys and values
    output_bias: bool = False  # of attention's output
    hidden_bias: bool = False  # of the feed-forward network
    tied: bool = True  # the output uses the embedding's matrix
    head_width: int = 0  # dimensions of a head; 0: dim / heads
    rotary_share: float = 1.0  # share of a head's dimensions, the first ones, that rotate
    rotary_factors: tuple[float, ...] = ()  # divisors of the angles of the pairs
    rotary_gain: float = 1.0  # factor of rotated queries and keys
    layer_kinds: str = ""  # a letter per layer: full, sliding window, no positions (and full)
    window: int = 0  # positions that a sliding layer sees, its own included
    local_base: float = 0.0  # rotary base of sliding layers, without factors; 0: as in the others
    attention_scale: float = 0.0  # of scores; 0: 1/√width
    attention_cap: float = 0.0  # scores become cap · tanh(score / cap); 0: unchanged
    logit_cap: float = 0.0  # the same for logits
    embedding_scale: float = 1.0
    parallel: bool = False  # both branches of a block read the block's input
    experts: int = 0  # per block; 0: one feed-forward network for all tokens
    active: int = 2  # experts per token
    shared: int = 0  # width of an always active expert with a gate; 0: none
    share: bool = True  # the weights of a token's experts sum to 1
    balance: float = 0.01  # weight of the load-balancing loss in training, see moe.py
    router_z: float = 0.001  # weight of the router's z-loss
    residual: bool = True  # False: only to show what residual connections are good for
    precision: str = "float32"  # of products; parameters keep theirs

    def __post_init__(self) -> None:
        check_fields(self)
        least = dict.fromkeys(("layers", "heads", "dim", "context", "vocabulary", "active"), 1)
        least |= dict.fromkeys(("key_heads", "feed_forward", "experts", "head_width", "window",
                                "shared", "balance", "router_z", "local_base", "attention_scale",
                                "attention_cap", "logit_cap"), 0)  # fmt: skip
        for name, number in least.items():
            if not number <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: expected at least {number}, got {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = " or ".join(choices)
                raise InputError(f"{name}: expected {known}, got {getattr(self, name)!r}")
        if self.dim % self.heads and not self.head_width:
            raise InputError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise InputError(f"heads {self.heads} is not a multiple of key_heads {self.key_heads}")
        if self.positions == "rotary" and not 0 < self.turned <= self.width:
            raise InputError(f"rotary_share: expected above 0, at most 1, got {self.rotary_share}")
        if self.positions == "rotary" and self.turned % 2:
            raise InputError(f"rotary positions need an even number of dims, got {self.turned}")
        pairs, kinds = self.turned // 2, self.layer_kinds
        expect(len(self.rotary_factors) in (0, pairs), "rotary_factors",
               f"{pairs}, one for each pair of dims", len(self.rotary_factors), error=InputError)
        expect(len(kinds) in (0, self.layers) and {*kinds} <= {*"fsn"}, "layer_kinds",
               f"{self.layers} letters f, s or n", repr(kinds), error=InputError)  # fmt: skip
        if "s" in self.layer_kinds and not self.window:
            raise InputError("layer_kinds has sliding layers (s): expected a window above 0, got 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected at least 0 and less than 1, got {self.dropout}")
        factors = {f"rotary_factors[{i}]": factor for i, factor in enumerate(self.rotary_factors)}
        for name in ("epsilon", "rotary_base", "rotary_gain", "embedding_scale"):
            factors[name] = getattr(self, name)
        for name, factor in factors.items():
            if not 0 < factor < math.inf:
                raise InputError(f"{name}: expected a number above 0, got {factor}")
        if self.experts and self.activation not in ("gelu", "swiglu"):
            raise InputError(f"experts: expected gelu or swiglu, got {self.activation!r}")
        if self.experts and self.active > self.experts:
            raise InputError(f"active: expected at most {self.experts} experts, got {self.active}")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward network."""
        return self.feed_forward or 4 * self.dim

    @property
    def key_value_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.key_heads or self.heads

    @property
    def width(self) -> int:
        """Dimensions of a head."""
        return self.head_width or self.dim // self.heads

    @property
    def turned(self) -> int:
        """Dimensions of a head that rotary positions rotate."""
        return int(round(self.width * self.rotary_share, 6))

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a gate."""
        return self.activation in ("swiglu", "geglu")

    def kind(self, layer: int) -> str:
        """The letter of a layer; see layer_kinds."""
        return self.layer_kinds[layer] if self.layer_kinds else "f"

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """A published shape, e.g. "gpt2"; InputError lists the known names."""
        try:
            return PRESETS[name]
        except KeyError:
            known = ", ".join(PRESETS)
            raise InputError(f"unknown preset {name!r}; known presets: {known}") from None


def llama(
    layers: int, heads: int, dim: int, context: int, vocabulary: int, **more: Any
) -> GPTConfig:
    """A config with Llama's switches."""
    switches: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu",
                                "bias": False, "tied": False, **more}  # fmt: skip
    return GPTConfig(layers, heads, dim, context, vocabulary, **switches)


PRESETS = {
    "mini": GPTConfig(layers=4, heads=4, dim=128, context=64),
    "small": GPTConfig(layers=6, heads=6, dim=384, context=256),
    "gpt2": GPTConfig(layers=12, heads=12, dim=768, context=1024),
    "gpt2-medium": GPTConfig(layers=24, heads=16, dim=1024, context=1024),
    "gpt2-large": GPTConfig(layers=36, heads=20, dim=1280, context=1024),
    "gpt2-xl": GPTConfig(layers=48, heads=25, dim=1600, context=1024),
    # Brown et al., "Language Models are Few-Shot Learners" (2020), table 2.1
    "gpt3": GPTConfig(layers=96, heads=96, dim=12288, context=2048),
    "smollm2": llama(30, 9, 576, 8192, 49152, key_heads=3, feed_forward=1536,
                     rotary_base=100000.0, tied=True),
    "llama-7b": llama(32, 32, 4096, 2048, 32000, feed_forward=11008, epsilon=1e-6),
    # Jiang et al., "Mixtral of Experts" (2024)
    "mixtral": llama(32, 32, 4096, 32768, 32000, key_heads=8, feed_forward=14336,
                     rotary_base=1e6, experts=8, active=2),
}  # fmt: skip
