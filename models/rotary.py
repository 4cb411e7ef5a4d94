"""Rotary positions (Su et al., "RoFormer", 2021), also beyond the length of a model's training.

For longer texts, angles are divided by factors: linear (Chen et al., "Extending Context Window of
Large Language Models", 2023), Llama 3.1's, and YaRN (Peng et al., 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from minigrad import Tensor
from minigrad.models.gpt_config import GPTConfig
from minigrad.tensor.templates import templated

KNOWN = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Scaling:
    """kind: one of KNOWN; factor: of the length; original: positions in training.

    low, high: Llama's frequency factors. slow, fast: YaRN's numbers of rotations. gain: a factor of
    queries and keys; 0: YaRN's own.
    """

    kind: str
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    slow: float = 1.0
    fast: float = 32.0
    truncate: bool = True
    gain: float = 0.0


def scaled(scaling: Scaling, base: float, turned: int) -> tuple[tuple[float, ...], float]:
    """(divisors of the angles of turned/2 pairs, the gain); () for no scaling."""
    pairs = range(turned // 2)
    if scaling.kind == "default":
        return (), 1.0
    if scaling.kind == "linear":
        return tuple(scaling.factor for _ in pairs), 1.0
    if scaling.kind == "llama3":
        return tuple(_llama3(scaling, base ** (-2 * i / turned)) for i in pairs), 1.0
    gain = scaling.gain or (1 + 0.1 * math.log(scaling.factor) if scaling.factor > 1 else 1.0)
    ends = scaling.fast, scaling.slow
    first, last = (_place(scaling, turns, base, turned) for turns in ends)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turned - 1)
    last = first + 0.001 if first == last else last
    slow = [min(max((i - first) / (last - first), 0.0), 1.0) for i in pairs]
    return tuple(1 / (part / scaling.factor + 1 - part) for part in slow), gain


def _llama3(scaling: Scaling, speed: float) -> float:
    """1 for a fast pair, the factor for a slow one, interpolated in between."""
    turns = scaling.original * speed / (2 * math.pi)
    share = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
    return 1 / ((1 - share) / scaling.factor + share)


def _place(scaling: Scaling, turns: float, base: float, turned: int) -> float:
    """The pair, as a fraction, that rotates so many times within the original length."""
    return turned * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(base))


@lru_cache(maxsize=8)
def rotation(config: GPTConfig, device: str, local: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the angles position · base^(−2i/turned) / factor, times the gain.

    (context, 2, turned/2) each. Angles are float64, because float32 has few digits left at the end.
    local: for layers with the base of sliding ones.
    """
    base = config.local_base if local else config.rotary_base
    with Tensor.no_grad():
        pairs = Tensor.arange(config.turned // 2, dtype="float64", device=device)
        positions = Tensor.arange(config.context, dtype="float64", device=device).reshape(-1, 1)
        speeds = (pairs * (-2 * math.log(base) / config.turned)).exp()
        if config.rotary_factors and not local:
            speeds = speeds / Tensor(config.rotary_factors, dtype="float64", device=device)
        angles, gain = positions * speeds, 1.0 if local else config.rotary_gain
        cosines, sines = (angles.cos() * gain).float(), (angles.sin() * gain).float()
        tables = cosines.stack(cosines, dim=1), (-sines).stack(sines, dim=1)
        Tensor.realize(*(table.requires_grad_(False) for table in tables))
    return tables


@templated
def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply rotary positions: dimensions i and i + turned/2 rotate as a pair.

    x (batch, heads, length, width), with the rows of `rotation` at its positions: see `decode.at`.
    Dimensions from `turned` on are unchanged.
    """
    half = cosines._known_shape()[-1]
    pairs = x[..., : 2 * half].reshape(*x.shape[:3], 2, half)
    turned = (pairs * cosines + pairs.flip(3) * sines).reshape(*x.shape[:3], 2 * half)
    return turned if x.shape[3] == 2 * half else turned.cat(x[..., 2 * half :], dim=3)
