"""Layers of random pairs: they keep the shape (batch, …, rows, columns) and act on each sample."""

from __future__ import annotations

from math import sqrt

from .leaves import Shape
from .pair_draw import Draw


def layers(d: Draw, inner: Shape, most: int = 2) -> str:
    """Code of {x}, of shape (batch, *inner), through up to `most` layers with their own weights."""
    code = "{x}"
    for _ in range(1 + d.below(most)):
        code = _layer(d, inner).replace("{x}", f"({code})")
    return code


def _layer(d: Draw, inner: Shape) -> str:
    rows, columns = inner
    kind = d.below(8)
    if kind == 0:
        weight, bias = d.leaf((columns, columns)), d.leaf((columns,))
        return f"({{x}} @ {weight} * {1 / sqrt(columns):.6g} + {bias}).tanh()"
    if kind == 1:
        weight = d.leaf((rows, rows))
        return f"{weight} @ {{x}} * {1 / sqrt(rows):.6g}"
    if kind == 2:
        hidden = d.extent()
        up, down = d.leaf((columns, hidden)), d.leaf((hidden, columns))
        inside = f"({{x}} @ {up} * {1 / sqrt(columns):.6g}).gelu()"
        return f"{{x}} + {inside} @ {down} * {1 / sqrt(hidden):.6g}"
    if kind == 3 and rows <= 300:
        return "{x}.scaled_dot_product_attention({x}, {x}, is_causal=True)"
    if kind == 4:
        return "({x} * 0.5).softmax(-1)"
    if kind == 5:
        return "{x}.layernorm(-1, eps=0.1)"
    if kind == 6:
        return f"{{x}}.cumsum(-1) * {1 / sqrt(columns):.6g}"
    scale = d.leaf((columns,))
    return f"{{x}} * ({{x}}.square().mean(-1, keepdim=True) + 0.1).rsqrt() * {scale}"
