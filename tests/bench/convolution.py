"""ResNet-18's convolutions at batch 8: forward, and the gradients of input and of weight.

He et al. 2016; each different layer once. The first layer's input needs no gradient. Also a kernel
of 5 × 5 with a stride, a layer as at the ends of a U-Net (Ronneberger et al. 2015), depthwise
layers of MobileNetV2 (Sandler et al. 2018) and ConvNeXt-T (Liu et al. 2022), and ResNeXt-50's
layers in 32 groups (Xie et al. 2017).

Ours takes and returns channels first. PyTorch is also measured with channels last in memory, where
it is fastest; its inputs and results are then left in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minigrad import Tensor, jit
from tests.bench.measure import Row, Work
from tests.bench.peers import jax_work, torch_work

BATCH = 8
# name: input channels, extent, output channels, kernel, stride, padding, groups
LAYERS = {
    "stem": (3, 224, 64, 7, 2, 3, 1), "1": (64, 56, 64, 3, 1, 1, 1),
    "2 down": (64, 56, 128, 3, 2, 1, 1), "2": (128, 28, 128, 3, 1, 1, 1),
    "2 skip": (64, 56, 128, 1, 2, 0, 1), "3 down": (128, 28, 256, 3, 2, 1, 1),
    "3": (256, 14, 256, 3, 1, 1, 1), "4 down": (256, 14, 512, 3, 2, 1, 1),
    "4": (512, 7, 512, 3, 1, 1, 1),
    "5×5 down": (64, 56, 128, 5, 2, 2, 1), "3×3, few channels": (32, 112, 32, 3, 1, 1, 1),
    "depthwise 3×3": (144, 56, 144, 3, 1, 1, 144),
    "depthwise 3×3 down": (144, 56, 144, 3, 2, 1, 144),
    "depthwise 7×7": (96, 56, 96, 7, 1, 3, 96), "depthwise 7×7 of 7": (768, 7, 768, 7, 1, 3, 768),
    "32 groups of 4": (128, 56, 128, 3, 1, 1, 32), "32 groups of 16": (512, 14, 512, 3, 1, 1, 32),
}  # fmt: skip


def _torch(
    stride: int, padding: int, groups: int, mask: list[bool] | None
) -> Callable[..., object]:
    import torch

    def forward(x, w, g):
        return torch.nn.functional.conv2d(x, w, stride=stride, padding=padding, groups=groups)

    def backward(x, w, g):
        return torch.ops.aten.convolution_backward(
            g, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, mask
        )

    return forward if mask is None else backward


def _jax(stride: int, padding: int, groups: int, of: str) -> Callable[..., object]:
    import jax

    def forward(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(padding, padding)] * 2, feature_group_count=groups
        )

    def backward(x, w, g):
        if of == "input":
            return jax.vjp(lambda x: forward(x, w), x)[1](g)
        return jax.vjp(lambda w: forward(x, w), w)[1](g)

    return backward if of != "forward" else lambda x, w, g: forward(x, w)


def _work(
    x: Tensor, w: Tensor, g: Tensor, of: str, stride: int, padding: int, groups: int
) -> Work:
    def call(x, w, g):
        y = x.conv2d(w, stride=stride, padding=padding, groups=groups)
        if of == "forward":
            return y.realize()
        return y.gradient(x if of == "input" else w, gradient=g)[0].realize()

    step = jit(call)
    return lambda: step(x, w, g)


def rows(threads: int) -> Iterator[Row]:
    """Three rows per layer; flops count every product of the kernel, also with padding."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    for name, (inner, extent, outer, kernel, stride, padding, groups) in LAYERS.items():
        out = (extent + 2 * padding - kernel) // stride + 1
        arrays = (
            normal(BATCH, inner, extent, extent),
            normal(outer, inner // groups, kernel, kernel), normal(BATCH, outer, out, out),
        )  # fmt: skip
        tensors = [Tensor(array).realize() for array in arrays]
        flops = 2.0 * BATCH * out * out * outer * inner // groups * kernel * kernel
        masks = {"forward": None, "input": [True, False, False], "weight": [False, True, False]}
        for of, mask in masks.items():
            if name == "stem" and of == "input":
                continue
            peers = {
                **torch_work(
                    lambda *a, s=stride, p=padding, n=groups, m=mask: _torch(s, p, n, m)(*a),
                    *arrays, threads=threads, channels_last=True,
                ),
                **jax_work(
                    lambda *a, s=stride, p=padding, n=groups, o=of: _jax(s, p, n, o)(*a), *arrays
                ),
            }  # fmt: skip
            yield Row(
                f"conv {name} {of}", _work(*tensors, of, stride, padding, groups), peers,
                flops=flops, bytes=4.0 * sum(array.size for array in arrays), goal=1.0,
            )  # fmt: skip
