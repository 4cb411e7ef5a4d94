"""The shape of a GPT as numbers and switches, and the shapes that people published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

CHOICES = {
    "positions": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "swiglu"),
    "precision": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. ValueError where the numbers do not fit one another."""

    layers: int = 4
    heads: int = 4
    dim: int = 128
    context: int = 64
    vocabulary: int = 50257
    dropout: float = 0.0
    key_heads: int = 0  # heads of keys and values, each for several of queries; 0: `heads`
    feed_forward: int = 0  # width between the two products of a block; 0: 4·dim
    positions: str = "learned"  # or "rotary"
    rotary_base: float = 10000.0
    norm: str = "layer"  # or "rms"
    epsilon: float = 1e-5  # of the norms
    activation: str = "gelu"  # or "swiglu"
    bias: bool = True
    tied: bool = True  # whether the output shares the embedding's matrix
    experts: int = 0  # of each block, 0: one feed-forward network for all tokens
    active: int = 2  # experts per token
    balance: float = 0.01  # weight of the load-balancing loss in training, see moe.py
    router_z: float = 0.001  # and of the router's z-loss
    residual: bool = True  # without: only to see what residual connections are good for
    precision: str = "float32"  # in which products are taken; parameters stay as they are

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "context", "vocabulary", "active"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("key_heads", "feed_forward", "experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 0")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = " or ".join(choices)
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {known}")
        if self.dim % self.heads:
            raise ValueError(f"{self.dim} dims cannot be shared evenly by {self.heads} heads")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"{self.key_heads} heads of keys cannot serve {self.heads} of queries evenly"
            )
        if self.positions == "rotary" and self.width % 2:
            raise ValueError(f"heads of {self.width} dims cannot rotate in pairs")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: expected 0 or more and less than 1")
        for name in ("balance", "router_z"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more")
        for name in ("epsilon", "rotary_base"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number above 0")
        if self.experts and self.active > self.experts:
            raise ValueError(f"{self.active} of {self.experts} experts cannot be active")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.feed_forward or 4 * self.dim

    @property
    def key_value_heads(self) -> int:
        """How many heads keys and values have."""
        return self.key_heads or self.heads

    @property
    def width(self) -> int:
        """Dims of one head."""
        return self.dim // self.heads

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """A published shape, e.g. "gpt2"; ValueError lists the known names."""
        try:
            return PRESETS[name]
        except KeyError:
            known = ", ".join(PRESETS)
            raise ValueError(f"unknown preset {name!r}; known presets: {known}") from None


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
