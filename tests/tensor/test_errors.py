"""Mistakes are answered at the user's own call, with what was given and what was expected."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, Variable
from minigrad.errors import (
    BoundsError,
    DeviceError,
    DTypeError,
    GradientError,
    MinigradError,
    ShapeError,
)

A = Tensor.zeros(2, 3)
B = Tensor.zeros(4, 5)
I32 = Tensor.zeros(2, 3, dtype="int32")
IMAGE, KERNEL = Tensor.zeros(1, 3, 5, 6), Tensor.zeros(4, 3, 3, 3)
FLAG = Tensor.zeros(2, 3, dtype="bool")

MISTAKES = {
    "add": (lambda: A + B, ShapeError, r"\(2, 3\) and \(4, 5\)"),
    "mul": (lambda: A * Tensor.zeros(2), ShapeError, r"\(2, 3\) and \(2,\)"),
    "where": (lambda: FLAG.where(A, B), ShapeError, r"\(4, 5\)"),
    "matmul": (lambda: A @ B, ShapeError, r"\(2, 3\) and \(4, 5\)"),
    "matmul batch": (
        lambda: Tensor.zeros(2, 3, 4) @ Tensor.zeros(5, 4, 3),
        ShapeError,
        "broadcast",
    ),
    "matmul 0-d": (lambda: A @ Tensor(1.0), ShapeError, "matmul"),
    "linear": (lambda: A.linear(B), ShapeError, "linear"),
    "reshape": (lambda: A.reshape(4), ShapeError, r"\(2, 3\) to \(4,\)"),
    "reshape -1": (lambda: A.reshape(-1, 4), ShapeError, "−1"),
    "reshape two -1": (lambda: A.reshape(-1, -1), ShapeError, "at most one"),
    "expand": (lambda: A.expand(4, 3), ShapeError, r"\(2, 3\).*\(4, 3\)"),
    "permute": (lambda: A.permute(0, 0), ShapeError, "twice"),
    "permute few": (lambda: A.permute(0), ShapeError, "each dimension once"),
    "axis": (lambda: A.sum(2), ShapeError, "axis 2"),
    "axes twice": (lambda: A.sum((0, -2)), ShapeError, "twice"),
    "softmax axis": (lambda: A.softmax(5), ShapeError, "axis 5"),
    "max of nothing": (lambda: Tensor.zeros(0).max(), ShapeError, "no elements"),
    "argmax of nothing": (lambda: Tensor.zeros(2, 0).argmax(1), ShapeError, "no elements"),
    "cat": (lambda: A.cat(B), ShapeError, r"\(2, 3\) and \(4, 5\)"),
    "stack": (lambda: A.stack(B), ShapeError, "equal"),
    "split": (lambda: A.split([1, 1, 1]), ShapeError, "add up to 3"),
    "split 0": (lambda: A.split(0), ShapeError, "size > 0"),
    "repeat": (lambda: A.repeat(2), ShapeError, "count for each"),
    "pad": (lambda: A.pad([(1, 1)]), ShapeError, "one pair"),
    "pad reflect": (lambda: A.pad((3, 0), mode="reflect"), ShapeError, "at most 2"),
    "pad mode": (lambda: A.pad((1, 1), mode="odd"), ValueError, "reflect"),
    "unfold": (lambda: A.unfold(1, 9, 1), ShapeError, "size"),
    "diag": (lambda: Tensor.zeros(1, 1, 1).diag(), ShapeError, "diag"),
    "tril": (lambda: Tensor.zeros(3).tril(), ShapeError, "2 dimensions"),
    "einsum operands": (lambda: Tensor.einsum("ij,jk->ik", A), ShapeError, "1 operands for 2"),
    "einsum names": (lambda: Tensor.einsum("ijk->i", A), ShapeError, "does not name"),
    "einsum extents": (lambda: Tensor.einsum("ij,ij->", A, B), ShapeError, "expected equal"),
    "einsum output": (lambda: Tensor.einsum("ij->ik", A), ShapeError, "'k'"),
    "attention": (lambda: A.scaled_dot_product_attention(B, B), ShapeError, r"\(4, 5\)"),
    "index": (lambda: A[2], BoundsError, "expected -2 … 1"),
    "too many": (lambda: A[0, 0, 0], BoundsError, "3 indices"),
    "float index": (lambda: A[A], DTypeError, "integers"),
    "step": (lambda: A[::0], ShapeError, "step 0"),
    "assign shape": (lambda: A.contiguous().assign(B), ShapeError, r"\(4, 5\)"),
    "setitem shape": (lambda: A.contiguous().__setitem__(0, B), ShapeError, r"\(4, 5\)"),
    "in place growth": (lambda: Tensor.zeros(1).contiguous().__iadd__(A), ShapeError, "in-place"),
    "in place dtype": (lambda: Tensor([1]).__itruediv__(2), DTypeError, "int32"),
    "neg bool": (lambda: -FLAG, DTypeError, "~"),
    "sub bool": (lambda: FLAG - FLAG, DTypeError, "bool"),
    "invert float": (lambda: ~A, DTypeError, "float32"),
    "and float": (lambda: A & A, DTypeError, "integer"),
    "shift float": (lambda: A << 1, DTypeError, "integer"),
    "shift bool": (lambda: FLAG << FLAG, DTypeError, "integer"),
    "bitcast": (lambda: A.bitcast("int8"), DTypeError, "float32 to int8"),
    "dtype name": (lambda: A.cast("float31"), KeyError, "float32"),
    "devices": (lambda: A + Tensor.zeros(2, 3, device="REF:2"), DeviceError, r"\.to\("),
    "device name": (lambda: Tensor([1], device="XPU"), DeviceError, "CPU"),
    "cross entropy": (
        lambda: A.cross_entropy(Tensor.zeros(3, dtype="int32")),
        ShapeError,
        "classes",
    ),
    "cross entropy dtype": (
        lambda: A.cross_entropy(Tensor.zeros(2, dtype="bool")),
        DTypeError,
        "bool",
    ),
    "reduction": (lambda: A.mse_loss(A, reduction="avg"), ValueError, "'mean'"),
    "embedding": (lambda: A.embedding(B), ShapeError, "integers"),
    "grad of int": (lambda: Tensor([1], requires_grad=True), GradientError, "int32"),
    "backward of many": (lambda: (A + 1).backward(), GradientError, "one element"),
    "gelu": (lambda: A.gelu("erf"), ValueError, "'tanh'"),
    "clip": (lambda: A.clip(), TypeError, "min"),
    "div": (lambda: A.div(A, rounding_mode="up"), ValueError, "floor"),
    "shape": (lambda: Tensor.zeros(-1), ShapeError, "≥ 0"),
    "shape of floats": (lambda: Tensor.zeros(2.5), ShapeError, "ints"),
    "arange": (lambda: Tensor.arange(1, 5, 0), ValueError, "step"),
    "item": (lambda: A.item(), ShapeError, "one element"),
    "truth": (lambda: bool(A), ShapeError, "any"),
    "len": (lambda: len(Tensor(1)), TypeError, "0-d"),
    "bind": (lambda: Variable("n", 1, 4).bind(5), ValueError, "1 … 4"),
    "ragged": (lambda: Tensor([[1], [1, 2]]), ShapeError, "equal lengths"),
    "text": (lambda: Tensor("abc"), DTypeError, "str"),
    "complex": (lambda: Tensor(np.zeros(2, complex)), DTypeError, "complex128"),
    "conv channels": (lambda: IMAGE.conv2d(KERNEL[:, :1]), ShapeError, r"\(1, 3, 5, 6\).*groups"),
    "conv groups": (lambda: IMAGE.conv2d(KERNEL, groups=2), ShapeError, "2 groups"),
    "conv dimensions": (lambda: A.conv2d(KERNEL), ShapeError, r"\(2, 3\)"),
    "conv small": (lambda: IMAGE.conv2d(KERNEL, dilation=3), ShapeError, "smaller than the kernel"),
    "conv bias": (lambda: IMAGE.conv2d(KERNEL, Tensor.zeros(3)), ShapeError, r"expected \(4,\)"),
    "conv stride": (lambda: IMAGE.conv2d(KERNEL, stride=0), ShapeError, "≥ 1"),
    "conv padding": (lambda: IMAGE.conv2d(KERNEL, padding=(1, 2, 3)), ShapeError, "flat list"),
    "conv same": (lambda: IMAGE.conv2d(KERNEL, padding="same", stride=2), ShapeError, "stride 1"),
    "transposed": (lambda: IMAGE.conv_transpose2d(KERNEL), ShapeError, r"\(…, 4, …\)"),
    "output padding": (
        lambda: IMAGE.conv_transpose2d(KERNEL[:3], output_padding=1),
        ShapeError,
        "less than stride",
    ),
    "pool": (lambda: IMAGE.max_pool2d(9), ShapeError, "smaller than the kernel"),
    "pool padding": (lambda: IMAGE.max_pool2d(2, padding=2), ShapeError, "half the kernel"),
    "pool dimensions": (lambda: A.avg_pool2d((1, 1, 1)), ShapeError, "as many"),
    "unpool": (lambda: IMAGE.max_unpool2d(A), ShapeError, "same shape"),
    "interpolate": (lambda: IMAGE.interpolate(), ValueError, "size or scale_factor"),
    "interpolate mode": (lambda: IMAGE.interpolate(4, mode="cubic"), ValueError, "bicubic"),
    "interpolate sizes": (lambda: IMAGE.interpolate((1, 2, 3)), ShapeError, "2 of them"),
    "rearrange": (lambda: A.rearrange("a b -> b"), ShapeError, "same names"),
    "rearrange sizes": (lambda: A.rearrange("a (b c) -> a b c", b=2), ShapeError, "product"),
    "rearrange count": (lambda: A.rearrange("a -> a"), ShapeError, "names 1 dimensions"),
    "dropout": (lambda: Tensor.train()(lambda: A.dropout(2))(), ValueError, "0 … 1"),
    "from_bytes": (lambda: Tensor.from_bytes(b"abc", (1,), A.dtype), ShapeError, "expected 4"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name):
    call, error, text = MISTAKES[name]
    with pytest.raises(error, match=text) as caught:
        call()
    if error not in (ValueError, TypeError, KeyError):
        assert isinstance(caught.value, MinigradError)
    calls = [entry for entry in caught.traceback if str(entry.path) == __file__]
    assert len(calls) >= 2, "raised by the call itself, not when the value is computed"
