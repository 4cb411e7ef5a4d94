"""Mistakes that users of PyTorch may make raise, with a message that says what was expected."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import REFERENCE
from wrong_arguments import CALLS

from minigrad import Context, Mesh, P, Tensor, Variable, dtypes, jit, linalg, nn
from minigrad.errors import AxisError, DeviceError, DTypeError, GradientError, ShapeError
from minigrad.nn import functional as F
from minigrad.nn import optim


def _zeros(*shape: int) -> Tensor:
    return Tensor.zeros(*shape)


def _leaf() -> Tensor:
    return Tensor([1.0, 2.0], requires_grad=True)


def _sgd() -> optim.SGD:
    return optim.SGD([_leaf()], lr=0.1)


LEAF = _leaf()
scheduler = optim.lr_scheduler
X, Y = _zeros(2, 3), _zeros(5, 2, 3)
IMAGE, PIXEL = _zeros(1, 1, 4, 4), _zeros(2, 3, 1, 1)
INTS, HALF = Tensor([1, 2]), Tensor([0.5])
HEADS = nn.MultiheadAttention(3, 1)
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "flatten backwards": (lambda: X.flatten(1, 0), ShapeError, "flatten(1, 0)"),
    "glu of an odd extent": (lambda: X.glu(), ShapeError, "glu: expected an even size along"),
    "mean and deviation before a shape": (
        lambda: Tensor.normal(0, 1, (3,)), ShapeError, "other arguments by name, as mean=0, std=1",
    ),
    "bounds before a shape": (
        lambda: Tensor.randint(0, 10, (3,)), ShapeError, "other arguments by name, as low=0",
    ),
    "a dtype after sizes": (
        lambda: Tensor.rand(2, dtypes.float64), ShapeError, "by name, as dtype=dtypes.float32",
    ),
    "adding halves to ints": (
        lambda: Tensor([1]).add_(0.5), TypeError, "write x = x.add(…)",
    ),
    "setting a shape": (
        lambda: setattr(X, "shape", (6,)), AttributeError, "x.shape = …: a tensor keeps its shape;",
    ),
    "a pair as a tensor": (lambda: X.sort(1).shape, AttributeError, "use .values or .indices"),
    "a result of lstsq as a tensor": (
        lambda: linalg.lstsq(X, X).shape, AttributeError, "use .solution or .residuals",
    ),
    "a mesh of a name": (
        lambda: Mesh("dp", dp=1), DeviceError, "Mesh('dp'): expected devices, as (",
    ),
    "a mesh of no devices": (lambda: Mesh([], dp=1), DeviceError, "expected devices"),
    "a mesh of True": (lambda: Mesh(dp=True), DeviceError, "Mesh(dp=True): expected an int ≥ 1"),
    "equal to None": (lambda: X == None, TypeError, "x is None"),  # noqa: E711
    "other names of weights": (
        lambda: nn.Linear(2, 3).load_state_dict({"weights": X}), KeyError,
        "missing ['weight', 'bias'], unexpected ['weights']",
    ),
    "a reshape to fewer": (
        lambda: X.reshape(X.size(0)), ShapeError, f"{X.numel()} elements do not make {X.size(0)};",
    ),
    "dtype float": (lambda: X.cast("float"), KeyError, "did you mean 'float32'?"),
    "dtype flaot64": (lambda: X.cast("flaot64"), KeyError, "did you mean 'float64'?"),
    "float words": (lambda: nn.Embedding(3, 2)(X), ShapeError, "; write x.int()"),
    "float labels": (
        lambda: X.sparse_categorical_crossentropy(X[:, 0]), TypeError, "write target.int()",
    ),
    "permute(0)": (lambda: X.permute(0), ShapeError, "; as permute(1, 0)"),
    "a missing folder": (
        lambda: nn.state.safe_save({"x": X}, "missing/x.safetensors"), FileNotFoundError,
        "there is no such folder",
    ),
    "a large kernel": (
        lambda: nn.Conv2d(1, 1, 9)(Tensor.ones(1, 1, 8, 8)), ShapeError, "use a smaller kernel",
    ),
    "axis and dim": (lambda: X.sum(axis=0, dim=1), TypeError, "expected only one of them, as they"),
    "axis by position and dim": (lambda: X.sum(0, dim=1), TypeError, "multiple values"),
    "softmax's too": (lambda: X.softmax(0, dim=1), TypeError, "multiple values"),
    "size of a number": (lambda: Tensor(1.0).size(0), IndexError, "with 0 dimensions"),
    "quantile below 0": (lambda: X.quantile(-0.5), ValueError, "0 … 1"),
    "quantiles above 1": (lambda: X.quantile([0.5, 1.5]), ValueError, "0 … 1"),
    "diff of −1": (lambda: X.diff(-1), ValueError, "n=-1"),
    "histc from above": (lambda: X.histc(3, 2, 1), ValueError, "min ≤ max"),
    "bernoulli of 2": (lambda: X.bernoulli(2.0), ValueError, "0 … 1"),
    "bernoulli_ of −1": (lambda: _zeros(2).bernoulli_(-1.0), ValueError, "0 … 1"),
    "meshgrid of a matrix": (lambda: X.meshgrid(X), ShapeError, "expected vectors"),
    "meshgrid of None": (lambda: X.meshgrid(None), TypeError, "meshgrid: expected tensors, got"),
    "hstack of a number": (lambda: X.hstack(3), TypeError, "hstack: expected tensors, got int"),
    "vstack of a text": (lambda: X.vstack("a"), TypeError, "vstack: expected tensors, got str"),
    "einsum of a number": (lambda: Tensor.einsum("i->i", 3), TypeError, "tensors, got int"),
    "Tensor of texts": (lambda: Tensor(["a"]), DTypeError, "give each text a number"),
    "backward of ints": (lambda: Tensor([1]).sum().backward(), GradientError, "with .float()"),
    "realize of None": (lambda: X.realize(None), TypeError, "expected tensors, got NoneType"),  # type: ignore[arg-type]
    "index_put of a number": (lambda: X.index_put(1, 2), TypeError, "a tuple of indices"),
    "pool of a Tensor": (
        lambda: F.max_pool2d(IMAGE, Tensor(2)), ShapeError, "expected an int",  # type: ignore[arg-type]
    ),
    "attention with a mask of ints": (
        lambda: Y.scaled_dot_product_attention(Y, Y, Tensor([[0, 1]] * 2)), DTypeError, "!= 0",
    ),
    "heads with a mask of ints": (
        lambda: HEADS(Y, Y, Y, attn_mask=Tensor([[0, 1]])), DTypeError, "expected attn_mask to be",
    ),
    "padding of ints": (
        lambda: HEADS(Y, Y, Y, Tensor([[0]])), DTypeError, "expected key_padding_mask to be bool",
    ),
    "padding turned": (
        lambda: HEADS(Y, Y, Y, Tensor.zeros(5, 2, dtype="bool")), ShapeError, "expected (2, 5)",
    ),
    "heads without heads": (
        lambda: HEADS(Y, Y, Y, attn_mask=Tensor.zeros(3, 5, 5, dtype="bool")), ShapeError,
        "expected (5, 5)",
    ),
    "layer_norm of one weight": (
        lambda: F.layer_norm(X, (3,), _zeros(1)), ShapeError, "expected (3,), got shape (1,)",
    ),
    "rms_norm of one weight": (lambda: F.rms_norm(X, (3,), _zeros(1)), ShapeError, "expected (3,)"),
    "group_norm of one bias": (
        lambda: F.group_norm(X, 1, None, _zeros(1)), ShapeError, "expected (3,)",
    ),
    "targets in a column": (
        lambda: F.cross_entropy(X, Tensor([[0], [1]])), ShapeError, "write target.squeeze(-1)",
    ),
    "one-hot targets of ints": (
        lambda: F.cross_entropy(X, F.one_hot(Tensor([0, 1]), 3)), ShapeError,
        "write target.argmax(-1)",
    ),
    "one class's weight": (
        lambda: F.cross_entropy(X, Tensor([0, 1]), _zeros(1)), ShapeError, "expected (3,)",
    ),
    "nll_loss's too": (
        lambda: F.nll_loss(X, Tensor([0, 1]), _zeros(1)), ShapeError, "expected (3,)",
    ),
    "weights of more losses": (
        lambda: F.binary_cross_entropy(X, X, _zeros(4, 2, 3)), ShapeError, "weight: expected a",
    ),
    "pos_weight of more losses": (
        lambda: F.binary_cross_entropy_with_logits(X, X, pos_weight=_zeros(4, 2, 3)), ShapeError,
        "equal shapes",
    ),
    "poisson of a column": (
        lambda: F.poisson_nll_loss(_zeros(4, 1), _zeros(4)), ShapeError, "equal shapes",
    ),
    "margin of a column": (
        lambda: F.margin_ranking_loss(_zeros(4), _zeros(4), _zeros(4, 1)), ShapeError, "equal",
    ),
    "triplet of a row": (
        lambda: F.triplet_margin_loss(X, X[0], X), ShapeError, "equal shapes",
    ),
    "norm of a list": (lambda: X.norm([1]), TypeError, "expected a number"),  # type: ignore[arg-type]
    "dropout2d of a vector": (lambda: F.dropout2d(_zeros(3)), ShapeError, "channels"),
    "instance_norm of one": (lambda: F.instance_norm(PIXEL), ShapeError, "at least 2 elements"),
    "batch_norm of one": (lambda: F.batch_norm(PIXEL[:1], None, None, training=True), ShapeError,
                          "BatchNorm in training, or without running statistics: expected at"),
    "BatchNorm of one": (lambda: nn.BatchNorm2d(3, track_running_stats=False)(PIXEL[:1]),
                         ShapeError, "expected at least 2 elements per channel"),
    "InstanceNorm of one": (lambda: nn.InstanceNorm2d(3)(PIXEL), ShapeError, "at least 2 elements"),
    "SGD's rate below 0": (lambda: optim.SGD([LEAF], lr=Tensor(-1.0)), ValueError, "(lr=-1.0): "),
    "softshrink below 0": (lambda: X.softshrink(-1), ValueError, "lambd=-1): expected a number"),
    "adaptive pool to 0": (lambda: F.adaptive_avg_pool2d(IMAGE, (0, 2)), ShapeError, "≥ 1"),
    "adaptive pool to 3": (
        lambda: F.adaptive_max_pool2d(IMAGE, (2, 2, 2)), ShapeError, "expected an int ≥ 1, or 2 of",
    ),
    "Sequential of numbers": (lambda: nn.Sequential(1, 2), TypeError, "or a function of a tensor"),  # type: ignore[arg-type]
    "LSTM of no layers": (lambda: nn.LSTM(3, 4, num_layers=0), ValueError, "layers ≥ 1"),
    "GRU's dropout of 2": (lambda: nn.GRU(3, 4, dropout=2.0), ValueError, "dropout=2.0"),
    "RNN of nothing": (lambda: nn.RNN(0, 4), ValueError, "sizes"),
    "GRU's state of two layers": (
        lambda: nn.GRU(3, 4)(Y, _zeros(2, 2, 4)), ShapeError, "GRU: state: expected hidden of",
    ),
    "GRU's state of one of a batch": (
        lambda: nn.GRU(3, 4)(Y, _zeros(1, 1, 4)), ShapeError, "GRU: state: expected hidden of",
    ),
    "LSTM's cell of two layers": (
        lambda: nn.LSTM(3, 4)(Y, (_zeros(1, 2, 4), _zeros(2, 2, 4))), ShapeError, "hidden and cell",
    ),
    "LSTM's state without cell": (
        lambda: nn.LSTM(3, 4)(Y, _zeros(1, 2, 4)), ShapeError, "hidden and cell",
    ),
    "LSTMCell's state of one": (
        lambda: nn.LSTMCell(3, 4)(X, (_zeros(2, 4), _zeros(1, 4))), ShapeError, "expected (2, 4)",
    ),
    "attention over two batches": (
        lambda: nn.MultiheadAttention(4, 2)(_zeros(3, 1, 4), _zeros(3, 2, 4), _zeros(3, 2, 4)),
        ShapeError, "(batch_first=False)",
    ),
    "an optimizer of no leaf": (lambda: optim.Adam([LEAF * 2]), GradientError, "computed from"),
    "an optimizer of a tensor": (lambda: optim.SGD(_leaf()), TypeError, "write SGD([x])"),
    "an optimizer of a copy": (lambda: optim.SGD([LEAF.clone()]), GradientError, "detach()"),
    "betas of one": (lambda: optim.Adam([_leaf()], betas=0.9), TypeError, "expected two numbers"),  # type: ignore[arg-type]
    "a cosine along 5": (lambda: X.cosine_similarity(X, 5), IndexError, "cosine_similarity: axis"),
    "lr='a'": (lambda: optim.SGD([_leaf()], lr="a"), TypeError, "SGD(lr='a'): expected a number"),  # type: ignore[arg-type]
    "StepLR of 0": (lambda: scheduler.StepLR(_sgd(), 0), ValueError, "expected an int ≥ 1"),
    "StepLR of no optimizer": (lambda: scheduler.StepLR(3, 1), TypeError, "expected an optimizer"),
    "cosine over 0": (lambda: scheduler.CosineAnnealingLR(_sgd(), 0), ValueError, "T_max=0"),
    "LinearLR from 2": (lambda: scheduler.LinearLR(_sgd(), 2.0), ValueError, "factor"),
    "LinearLR from 0": (lambda: scheduler.LinearLR(_sgd(), 0.0), ValueError, "0 < start_factor"),
    "LinearLR to −1": (lambda: scheduler.LinearLR(_sgd(), 0.5, -1.0), ValueError, "factor"),
    "MultiStepLR of 3": (lambda: scheduler.MultiStepLR(_sgd(), 3), TypeError, "several ints"),  # type: ignore[arg-type]
    "F.relu of a list": (lambda: F.relu([1.0]), TypeError, "relu(input=…): expected a tensor"),  # type: ignore[arg-type]
    "F.softmax of an array": (lambda: F.softmax(np.ones(3)), TypeError, "got numpy.ndarray"),  # type: ignore[arg-type]
    "embedding of a number": (lambda: F.embedding(1, X), TypeError, "(input=…): expected a tensor"),  # type: ignore[arg-type]
    "an embedding of 1": (lambda: nn.Embedding(3, 2)(1), TypeError, "Embedding: expected a tensor"),  # type: ignore[arg-type]
    "Conv2d without a kernel": (lambda: nn.Conv2d(3, 4), TypeError, "Conv2d() missing"),  # type: ignore[call-arg]
    "LSTM of one size": (lambda: nn.LSTM(3), TypeError, "LSTM() missing"),  # type: ignore[call-arg]
    "to(3)": (lambda: nn.Linear(3, 2).to(3), TypeError, "a name such as 'CPU', got 3"),  # type: ignore[arg-type]
    "batch_norm of nothing": (lambda: F.batch_norm(X, None, None), ValueError, "training=True"),
    "transpose(0)": (lambda: X.transpose(0), TypeError, "expected two dimensions"),
    "pad(1)": (lambda: X.pad(1), ShapeError, "flat list"),  # type: ignore[arg-type]
    "a slice to 1.5": (lambda: X[0:1.5], TypeError, "slice: expected ints"),  # type: ignore[misc]
    "x.grad = a number": (lambda: setattr(_leaf(), "grad", 3.0), TypeError, "x.grad: expected a"),
    "x.grad of one": (lambda: setattr(_leaf(), "grad", Tensor([1.0])), ShapeError, "float32 (1,)"),
    "x.grad of ints": (lambda: setattr(_leaf(), "grad", Tensor([1, 2])), ShapeError, "int32 (2,)"),
    "x.grad elsewhere": (
        lambda: setattr(_leaf(), "grad", Tensor([1.0, 2.0], device=REFERENCE)), DeviceError,
        "x.grad =",
    ),
    "ints // 0": (lambda: Tensor([1]) // 0, ZeroDivisionError, "floor division: expected"),
    "ints % 0": (lambda: Tensor([1]) % 0, ZeroDivisionError, "mod: expected a divisor that is not"),
    "bools % False": (lambda: Tensor([True]) % False, ZeroDivisionError, "mod: expected a divisor"),
    "fmod(0)": (lambda: Tensor([1]).fmod(0), ZeroDivisionError, "fmod"),
    "div(0, trunc)": (
        lambda: Tensor([1]).div(0, rounding_mode="trunc"), ZeroDivisionError, "truncated",
    ),
    "where of a number": (lambda: Tensor.where(1, X, X), TypeError, "expected a bool condition"),  # type: ignore[arg-type]
    "arange to NaN": (lambda: Tensor.arange(0, float("nan")), ValueError, "numbers, got nan"),
    "arange by ∞": (lambda: Tensor.arange(0, 1, float("inf")), ValueError, "numbers, got inf"),
    "attention of vectors": (
        lambda: F.scaled_dot_product_attention(X[0], X[0], X[0]), ShapeError, "at least 2 dim",
    ),
    "cov of images": (lambda: Y.cov(), ShapeError, "(variables, observations)"),
    "Softplus with a threshold": (lambda: nn.Softplus(2, 1), TypeError, "too many"),
    "indices of an adaptive pool": (
        lambda: nn.AdaptiveMaxPool2d(2, True), TypeError, "too many",
    ),
    "broadcast_tensors of 3": (lambda: X.broadcast_tensors(3), TypeError, "expected tensors, got"),
    "block_diag of 3": (lambda: X.block_diag(3), TypeError, "block_diag: expected tensors, got"),
    "gradient by 3": (lambda: X.sum().gradient(3), TypeError, "expected tensors, got int"),  # type: ignore[arg-type]
    "tensordot over three": (lambda: X.tensordot(X, [0, 1, 0]), ShapeError, "or two lists"),  # type: ignore[list-item]
    "rot90 of one": (lambda: X.rot90(1, (0,)), ShapeError, "rot90(dims=(0,)): expected two"),
    "rot90 of 0": (lambda: X.rot90(1, 0), TypeError, "rot90(dims=0): expected several ints"),  # type: ignore[arg-type]
    "layer_norm over 2.0": (lambda: F.layer_norm(X, 2.0), TypeError, "(normalized_shape=2.0)"),  # type: ignore[arg-type]
    "layer_norm over none": (lambda: F.layer_norm(X, []), ShapeError, "layer_norm: expected last"),
    "matmul in 'foo'": (lambda: X.matmul(X.T, "foo"), KeyError, "unknown dtype 'foo'"),
    "a class of no dimension": (
        lambda: F.cross_entropy(Tensor(1.5), Tensor(1.0)), ShapeError, "a dimension of classes",
    ),
    "nll_loss of a number": (
        lambda: F.nll_loss(Tensor(1.5), Tensor(0)), ShapeError, "nll_loss: expected a dimension",
    ),
    "vsplit of a vector": (lambda: INTS.vsplit(2), ShapeError, "write x.tensor_split("),
}  # fmt: skip

# Methods that have no meaning for a tensor of 0 dimensions.
OF_LINES = ("split(1)", "chunk(2)", "tensor_split(2)", "unfold(0, 1, 1)", "diff()", "unbind()",
            "unflatten(0, (1, 1))", "repeat_interleave(2, 0)", "hsplit(1)", "narrow(0, 0, 1)",
            "cross(Tensor(1.0))", "cat(Tensor(1.0))", "gather(0, Tensor(0))",
            "scatter(0, Tensor(0), 1.0)", "take_along_dim(Tensor(0), 0)")  # fmt: skip


@pytest.mark.parametrize("call", OF_LINES)
def test_a_number_has_no_lines(call: str) -> None:
    """Python raised its own error about a tuple's index."""
    with pytest.raises(AxisError, match="with 0 dimensions; expected at least one dimension"):
        eval(f"Tensor(1.0).{call}")


BATCH = _zeros(1, 4, 8, 8)
# Calls that raise ValueError or TypeError (most of our errors are one of these), and the message.
REFUSED = {
    "X.tensor_split(0)": "tensor_split(0): expected an int ≥ 1",
    "Y.t()": "t: expected a matrix, got shape (5, 2, 3); use .mT or",
    "Y.trace()": "expected a matrix",
    "X.mm(X[0])": "mm: expected a matrix and a matrix, got shapes (2, 3) and (3,)",
    "X.matrix_power(2)": "matrix_power(2): expected n ≥ 0 and square matrices, got shape",
    "X.cdist(X[0])": "(…, m, d) and (…, n, d)",
    "X.movedim((0, 1), 0)": "movedim((0, 1), 0): expected equally many of both",
    "X.reshape(6, True)": "reshape to (6, True): expected ints",
    "X.repeat(-1, 1)": "repeat(-1, 1): expected counts ≥ 0",
    "X.tile(-1)": "repeat(1, -1): expected counts ≥ 0",
    "X.roll((1, 2), 0)": "roll: expected a shift per dimension, got 2 for 1",
    "X.index_add(0, Tensor([[0]]), X)": "expected a vector",
    "X.index_copy(0, Tensor([0]), Y[0])": "index_copy: expected values of shape (1, 3), got (2, 3)",
    "X.masked_scatter(Tensor([1, 0, 1]), X)": "masked_scatter: expected a bool mask, got int32",
    "X.kthvalue(9)": "kthvalue(9): expected an int in 1 … 3",
    "X.quantile(0.5, interpolation='cubic')": "'midpoint' or 'nearest'",
    "X.int().quantile(0.5)": "use .float()",
    "X.bincount()": "a vector of integers",
    "X.norm('nuc')": "use linalg.matrix_norm for 'nuc'",
    "X.bool().multinomial(1)": "use .float()",
    "X.bool().max_pool2d(1)": "x.float()",
    "X.rearrange('a b')": "'before -> after'",
    "X.rearrange('(a b -> a b')": "rearrange '(a b -> a b': unbalanced brackets",
    "X.rearrange('a b -> a 2b')": "unexpected '2b'",
    "X.rearrange('a b -> ... a b')": "unexpected '...'",
    "X.rearrange('a b -> b a', c=1)": "expected the same names on both sides, each once, and sizes",
    "X.pad((1, 1, 1, 1, 1, 1))": "pad((1, 1, 1, 1, 1, 1)): expected one pair or None for each of 2",
    "X.reshape(-2, -3)": "reshape to (-2, -3): expected sizes ≥ 0 and at most one −1",
    "Tensor.einsum('ij->ijj', X)": "einsum 'ij->ijj': expected each name once in the output",
    "Tensor.einsum('ij.->ij', X)": "einsum 'ij.->ij': term 'ij.': expected a letter for each of",
    "Tensor.einsum('...j->.j', X)": "output '.' is in no operand",
    "Tensor.einsum('ii', X)": "2 and 3 of one operand",
    "Tensor.linspace(0, 1, -1)": "an int ≥ 0",
    "X[0].meshgrid(X[1], indexing='yx')": "'ij' or 'xy'",
    "IMAGE[0].interpolate(8, mode='bilinear')": "2 spatial dimensions",
    "IMAGE.interpolate(8, align_corners=True)": "expected a linear mode, or bicubic",
    "X.scaled_dot_product_attention(X, X, X > 0, is_causal=True)": "is_causal or attn_mask",
    "F.group_norm(X, 2)": "group_norm(num_groups=2): expected channels (dimension 1) in a",
    "nn.GroupNorm(3, 4)": "expected num_channels to be a multiple of num_groups",
    "nn.Conv2d(3, 4, 1, groups=2)": "Conv2d(groups=2): expected channels to be multiples of",
    "optim.Muon([LEAF], adjust_lr_fn='x')": "'original' or 'match_rms_adamw'",
    "X.shard_like(Y)": "expected equal shapes",
}


REFUSED |= CALLS
OWN: list[object] = []
OWN.append(OWN)
NAMES = globals() | {"Context": Context, "P": P, "Variable": Variable}


@pytest.mark.parametrize("call", REFUSED)
def test_a_message_says_what_was_expected(call: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(REFUSED[call])):
        eval(call, NAMES)


# Calls with a float or a string where an int belongs, by what the message must show.
NO_INTS: dict[str, Callable[[], Any]] = {
    "Conv2d(kernel_size=3.5)": lambda: nn.Conv2d(3, 4, 3.5),  # type: ignore[arg-type]
    "Conv2d(kernel_size=None)": lambda: nn.Conv2d(3, 4, None),  # type: ignore[arg-type]
    "Conv2d(kernel_size=True)": lambda: nn.Conv2d(4, 4, True),
    "Conv2d(in_channels=-1)": lambda: nn.Conv2d(-1, 4, 3),
    "(stride=1.5)": lambda: nn.Conv2d(3, 4, 3, stride=1.5),  # type: ignore[arg-type]
    "(padding=1.5)": lambda: nn.Conv2d(3, 4, 3, padding=1.5),  # type: ignore[arg-type]
    "(padding=(1.5, 1))": lambda: nn.Conv2d(3, 4, 3, padding=(1.5, 1)),
    "(output_padding=0.5)": lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=0.5),  # type: ignore[arg-type]
    "Linear(in_features=-3)": lambda: nn.Linear(-3, 2),
    "max_pool2d(kernel_size=2.0)": lambda: nn.MaxPool2d(2.0)(BATCH),
    "max_pool2d(stride=1.5)": lambda: nn.MaxPool2d(2, stride=1.5)(BATCH),
    "avg_pool2d(kernel_size=2.5)": lambda: BATCH.avg_pool2d(2.5),  # type: ignore[arg-type]
    "max_pool2d(kernel_size=None)": lambda: BATCH.max_pool2d(None),  # type: ignore[arg-type]
    "adaptive_avg_pool2d(2.0)": lambda: nn.AdaptiveAvgPool2d(2.0)(BATCH),
    "adaptive_avg_pool2d((2, 2.0))": lambda: nn.AdaptiveAvgPool2d((2, 2.0))(BATCH),
    "expected one number > 0, or 2": lambda: nn.Upsample(scale_factor="2")(BATCH),
    "expand(shape[0]=2.0)": lambda: X.expand(2.0, 2, 3),
    "repeat(counts[0]=1.5)": lambda: X.repeat(1.5, 1),
    "shrink(ranges[0]=1.0)": lambda: X.shrink(((0, 1.0), None)),  # type: ignore[arg-type]
    "pad(padding[0]=1.0)": lambda: X.pad((1.0, 1)),
    "pad(padding[1][1]=0.5)": lambda: X.pad(((1, 1), (0, 0.5))),
    "split(sizes=[1.0, 1.0]): expected an int or several": lambda: X.split([1.0, 1.0]),  # type: ignore[list-item]
    "tensordot(dims=1.0)": lambda: X.tensordot(X, 1.0),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("words", NO_INTS)
def test_what_is_no_int_is_shown(words: str) -> None:
    """Some gave shapes with floats in them, or wrong tensors; most raised some internal error."""
    with pytest.raises((TypeError, ShapeError), match=re.escape(words)):
        NO_INTS[words]()


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("name", ["BatchNorm", "InstanceNorm", "MaxPool", "AvgPool"])
def test_layers_know_their_dimensions(name: str, spatial: int) -> None:
    """They accepted inputs of any number of dimensions."""
    layer = getattr(nn, f"{name}{spatial}d")(3 if "Norm" in name else 2)
    taken = {"BatchNorm": (0, 1) if spatial == 1 else (spatial,), "InstanceNorm": (spatial,)}
    fits = [2 + n for n in taken.get(name, (spatial - 1, spatial))]
    for ndim in range(1, 6):
        x = Tensor.ones(*(2, 3, 4, 4, 4)[:ndim])
        if ndim in fits:
            assert layer(x).ndim == ndim
            continue
        with pytest.raises(ShapeError, match=rf"got shape {re.escape(str(x.shape))}"):
            layer(x)
    assert repr(layer).startswith(f"{name}{spatial}d(")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise(name: str) -> None:
    """They gave a wrong result silently, or raised some internal error."""
    call, error, words = MISTAKES[name]
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_what_is_near_goes_on_working() -> None:
    """Correct calls that are similar to mistakes: dim=None, detached copies, fitting states."""
    assert X.sum(dim=None).shape == () and X.softmax(dim=None).shape == (2, 3)
    assert X.sum(axis=None, dim=1).shape == (2,)
    halves = X.split(split_size=[1, 2], dim=1)
    assert [part.shape for part in halves] == [(2, 1), (2, 2)]
    assert X.unfold(dimension=1, size=2, step=1).shape == (2, 2, 2)
    assert X.narrow(dimension=1, start=0, length=1).shape == (2, 1)
    assert Tensor.ones(2).requires_grad_(requires_grad=False).requires_grad is False
    assert optim.SGD([_leaf().detach().requires_grad_()], lr=0.1).params
    assert optim.SGD([Tensor.ones(2) * 0.5], lr=0.1).params  # how tinygrad creates a weight
    out, state = nn.GRU(3, 4, batch_first=True)(_zeros(2, 5, 3), _zeros(1, 2, 4))
    assert out.shape == (2, 5, 4) and state.shape == (1, 2, 4)
    assert nn.Sequential(len)([1, 2]) == 2 and nn.Identity()(5) == 5  # type: ignore[arg-type,list-item,comparison-overlap]
    assert F.layer_norm(X, 3).shape == X.shape and X.transpose(1).shape == (3, 2)
    assert X.matmul(X.T, "float64").dtype.name == "float64"
    assert nn.PReLU(init=0)(X - 1).tolist() == X.tolist()  # the int was not made a float
    assert nn.ModuleList([None, nn.ReLU()])[0] is None and X.diff(0, prepend=X).shape == (2, 3)
    assert (X > 0).diff(prepend=X + 0.5).tolist() == [[0.0, 0.0, -0.5, 0.0, 0.0]] * 2
    assert X.tensordot(X, [0, 0]).shape == (3, 3)  # type: ignore[list-item]
    assert nn.RNN(3, 4)(_zeros(5, 3), _zeros(1, 4))[0].shape == (5, 4)


def test_found_elements_have_names() -> None:
    """`values` and `indices`, as in PyTorch, though still a pair; in captured steps too."""
    x = Tensor([[3.0, 1.0, 2.0]])
    pairs = (x.sort(1), x.topk(2), x.cummax(1), x.cummin(1), x.kthvalue(1), x.mode(),
             x.max_with_indices(1))  # fmt: skip
    for found in pairs:
        values, indices = found
        assert found.values is values and found.indices is indices
    step = jit(lambda x: x.topk(1))
    for number in (1.0, 5.0, 9.0):
        best = step(Tensor([2.0, number]))
        assert best.values.tolist() == [max(2.0, number)] and best.indices.tolist() == [
            int(number > 2.0)
        ]


@pytest.mark.parametrize("mode", [Tensor.train, Tensor.no_grad])
def test_a_mode_alone_is_warned_of(mode: Callable[[], Any]) -> None:
    """As a statement it silently changes nothing; as a context manager or decorator it works."""
    with pytest.warns(UserWarning, match=rf"{mode.__name__}\(\) alone changes nothing"):
        mode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mode():
            pass
        mode()(lambda: 1)
