"""How much of the machine a training uses: its flops relative to a large product's."""

from __future__ import annotations

from functools import lru_cache

from minigrad import Device, Tensor, jit
from minigrad.compile import best_of_rounds
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.metrics import Metrics
from minigrad.models.sizing import flops_per_token

SMALL, LARGE = 128, 1024  # rows of square products
LONGEST = 0.5  # seconds that a large product may take; the reference device takes minutes


@lru_cache(maxsize=4)
def product_rate(device: str) -> float:
    """flop/s of a float32 product of two 1024 × 1024 matrices, the best of several.

    Of 128 × 128 if that takes too long.
    """
    small = _rate(device, SMALL)
    return small if 2 * LARGE**3 / small > LONGEST else _rate(device, LARGE)


def _rate(device: str, size: int) -> float:
    with Tensor.no_grad():
        a, b = (Tensor.rand(size, size, device=device).realize() for _ in range(2))
        product = jit(lambda x, y: x.matmul(y).realize())

        def run() -> None:
            product(a, b)
            Device[device].synchronize()

        (seconds,) = best_of_rounds([run])
    return 2 * size**3 / seconds


def utilization(config: GPTConfig, context: int, metrics: Metrics, ranks: int = 1) -> str:
    """A line of text: tokens and flops per second (the median step), and model-flops utilization.

    The tokens are those of all ranks, each of which could reach what the first one's device does.
    Chowdhery et al., "PaLM" (2022), appendix B: only flops that the model itself needs are counted.
    """
    rates = sorted(metrics.curve("tokens_per_s")[1])
    if not rates:
        return "no step was timed"
    rate = rates[len(rates) // 2]
    flops = rate * flops_per_token(config, context)
    peak = ranks * product_rate(Device.canonical(Device.DEFAULT))
    best = "the speed of a large product"
    if ranks > 1:
        best = f"the speed of {ranks} large products, one on each device"
    return f"{rate:,.0f} tokens/s, {flops / 1e9:.3g} GFLOP/s: {flops / peak:.0%} of {best}"
