"""Mixed precision: products of 16-bit numbers, added in float32.

Parameters, sums and everything between products stay float32 (Micikevicius et al., "Mixed Precision
Training", 2018). In bfloat16, attention's factors are rounded, too (see `operand`).
"""

from __future__ import annotations

from minigrad import Tensor, dtypes
from minigrad.dtype import DType
from minigrad.graph import build
from minigrad.graph.node import Node


def product(x: Tensor, weight: Tensor, precision: DType, bias: Tensor | None = None) -> Tensor:
    """(…, rows, in), (…, out, in) → (…, rows, out) in float32: both are rounded, then multiplied.

    precision: the dtype to which they are rounded. The gradient is rounded as in `of_gradient`,
    also for the bias (out,), which is added in float32. float32: nothing is rounded.
    """
    if precision is dtypes.float32:
        y = x.matmul(weight.transpose(-2, -1))
        return y if bias is None else y + bias
    y = x.cast(precision).matmul(weight.cast(precision).transpose(-2, -1), dtypes.float32)
    y = y if bias is None else y + bias

    def rule(_: Node, g: Node) -> list[Node]:
        return [of_gradient(Tensor._of(g), precision).node]

    return Tensor._of(build.custom(y.node, [y.node], rule))


def operand(x: Tensor, precision: DType) -> Tensor:
    """A factor in attention: rounded for bfloat16, as by PyTorch's autocast, else unchanged."""
    return x.cast(precision) if precision is dtypes.bfloat16 else x


def of_gradient(g: Tensor, precision: DType) -> Tensor:
    """A product's gradient as a factor of further products: rounded to bfloat16, or unchanged.

    float16 cannot represent small gradients.
    """
    return g.cast(precision).float() if precision is dtypes.bfloat16 else g
