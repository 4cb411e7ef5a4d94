"""What somebody who comes from PyTorch may type wrongly raises, and says what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, jit, nn
from minigrad.errors import GradientError, ShapeError
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
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "flatten backwards": (lambda: X.flatten(1, 0), ShapeError, "flatten(1, 0)"),
    "glu of an odd extent": (lambda: X.glu(), ShapeError, "even extent"),
    "axis and dim": (lambda: X.sum(axis=0, dim=1), TypeError, "expected one of them"),
    "axis by position and dim": (lambda: X.sum(0, dim=1), TypeError, "multiple values"),
    "softmax's too": (lambda: X.softmax(0, dim=1), TypeError, "multiple values"),
    "size of a number": (lambda: Tensor(1.0).size(0), IndexError, "without dimensions"),
    "round to half a digit": (lambda: X.round(decimals=1.5), TypeError, "decimals=1.5"),
    "quantile below 0": (lambda: X.quantile(-0.5), ValueError, "0 … 1"),
    "quantiles above 1": (lambda: X.quantile([0.5, 1.5]), ValueError, "0 … 1"),
    "diff of −1": (lambda: X.diff(-1), ValueError, "n=-1"),
    "histc from above": (lambda: X.histc(3, 2, 1), ValueError, "min ≤ max"),
    "bernoulli of 2": (lambda: X.bernoulli(2.0), ValueError, "0 … 1"),
    "bernoulli_ of −1": (lambda: _zeros(2).bernoulli_(-1.0), ValueError, "0 … 1"),
    "meshgrid of a matrix": (lambda: X.meshgrid(X), ShapeError, "expected vectors"),
    "dropout2d of a vector": (lambda: F.dropout2d(_zeros(3)), ShapeError, "channels"),
    "instance_norm of one": (lambda: F.instance_norm(PIXEL), ShapeError, "one element"),
    "adaptive pool to 0": (lambda: F.adaptive_avg_pool2d(IMAGE, (0, 2)), ShapeError, "≥ 1"),
    "adaptive pool to 3": (
        lambda: F.adaptive_max_pool2d(IMAGE, (2, 2, 2)), ShapeError, "2 numbers",
    ),
    "Sequential of numbers": (lambda: nn.Sequential(1, 2), TypeError, "layers or functions"),  # type: ignore[arg-type]
    "train('yes')": (lambda: nn.Linear(3, 2).train("yes"), TypeError, "True or False"),  # type: ignore[arg-type]
    "LSTM of no layers": (lambda: nn.LSTM(3, 4, num_layers=0), ValueError, "layers ≥ 1"),
    "GRU's dropout of 2": (lambda: nn.GRU(3, 4, dropout=2.0), ValueError, "dropout in 0 … 1"),
    "RNN of nothing": (lambda: nn.RNN(0, 4), ValueError, "sizes"),
    "GRU's state of two layers": (
        lambda: nn.GRU(3, 4)(Y, _zeros(2, 2, 4)), ShapeError, "hidden of (1, 2, 4)",
    ),
    "GRU's state of one of a batch": (
        lambda: nn.GRU(3, 4)(Y, _zeros(1, 1, 4)), ShapeError, "hidden of (1, 2, 4)",
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
        ShapeError, "batch_first is False",
    ),
    "an optimizer of no leaf": (lambda: optim.Adam([LEAF * 2]), GradientError, "computed from"),
    "an optimizer of a copy": (lambda: optim.SGD([LEAF.clone()]), GradientError, "detach()"),
    "lr='a'": (lambda: optim.SGD([_leaf()], lr="a"), ValueError, "expected a number ≥ 0"),  # type: ignore[arg-type]
    "StepLR of 0": (lambda: scheduler.StepLR(_sgd(), 0), ValueError, "steps ≥ 1"),
    "StepLR of no optimizer": (lambda: scheduler.StepLR(3, 1), TypeError, "expected an optimizer"),
    "cosine over 0": (lambda: scheduler.CosineAnnealingLR(_sgd(), 0), ValueError, "T_max=0"),
    "LinearLR from 2": (lambda: scheduler.LinearLR(_sgd(), 2.0), ValueError, "factor"),
    "LinearLR from 0": (lambda: scheduler.LinearLR(_sgd(), 0.0), ValueError, "above 0"),
    "LinearLR to −1": (lambda: scheduler.LinearLR(_sgd(), 0.5, -1.0), ValueError, "factor"),
    "MultiStepLR of 3": (lambda: scheduler.MultiStepLR(_sgd(), 3), TypeError, "list of steps"),  # type: ignore[arg-type]
    "F.relu of a list": (lambda: F.relu([1.0]), TypeError, "relu: the input is a list"),  # type: ignore[arg-type]
    "F.softmax of an array": (lambda: F.softmax(np.ones(3)), TypeError, "a numpy.ndarray"),  # type: ignore[arg-type]
    "targets in a list": (lambda: X.cross_entropy([0, 1]), TypeError, "the target is a list"),  # type: ignore[arg-type]
    "a number as targets": (lambda: F.mse_loss(X, 1.0), TypeError, "target is a float"),  # type: ignore[arg-type]
    "targets by keyword": (lambda: F.l1_loss(X, target=1.0), TypeError, "target is a float"),  # type: ignore[arg-type]
    "embedding of a number": (lambda: F.embedding(1, X), TypeError, "the input is a int"),  # type: ignore[arg-type]
    "init of a list": (lambda: nn.init.zeros_([1.0]), TypeError, "tensor is a list"),  # type: ignore[arg-type]
    "a layer of a list": (lambda: nn.Linear(3, 2)([1.0]), TypeError, "Linear of a list"),  # type: ignore[arg-type]
    "an embedding of 1": (lambda: nn.Embedding(3, 2)(1), TypeError, "Embedding of a int"),  # type: ignore[arg-type]
    "Conv2d without a kernel": (lambda: nn.Conv2d(3, 4), TypeError, "Convolution.__init__"),  # type: ignore[call-arg]
    "LSTM of one size": (lambda: nn.LSTM(3), TypeError, "Recurrent.__init__"),  # type: ignore[call-arg]
    "to(3)": (lambda: nn.Linear(3, 2).to(3), TypeError, "device 3"),  # type: ignore[arg-type]
    "batch_norm of nothing": (lambda: F.batch_norm(X, None, None), ValueError, "training=True"),
    "requires_grad_('no')": (lambda: _zeros(2).requires_grad_("no"), TypeError, "True or False"),  # type: ignore[arg-type]
    "linspace in 2.5 steps": (lambda: Tensor.linspace(0, 1, 2.5), ValueError, "steps=2.5"),  # type: ignore[arg-type]
    "linspace from 'a'": (lambda: Tensor.linspace("a", 1, 2), TypeError, "Python number"),  # type: ignore[arg-type]
    "transpose(0)": (lambda: X.transpose(0), TypeError, "expected two dimensions"),
    "pad(1)": (lambda: X.pad(1), ShapeError, "flat list"),  # type: ignore[arg-type]
    "a slice to 1.5": (lambda: X[0:1.5], TypeError, "1.5: expected an int"),  # type: ignore[misc]
    "einsum's order": (lambda: Tensor.einsum(X, "ij->"), TypeError, "equation first"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise(name: str) -> None:
    """They gave an answer silently, or told of something inside."""
    call, error, words = MISTAKES[name]
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_what_is_near_goes_on_working() -> None:
    """None for dim says nothing, detached copies are trained, and states of the right shape fit."""
    assert X.sum(dim=None).shape == () and X.softmax(dim=None).shape == (2, 3)
    assert X.sum(axis=None, dim=1).shape == (2,)
    assert optim.SGD([_leaf().detach().requires_grad_()], lr=0.1).params
    assert optim.SGD([Tensor.ones(2) * 0.5], lr=0.1).params  # tinygrad's way to make a weight
    out, state = nn.GRU(3, 4, batch_first=True)(_zeros(2, 5, 3), _zeros(1, 2, 4))
    assert out.shape == (2, 5, 4) and state.shape == (1, 2, 4)
    assert nn.Sequential(len)([1, 2]) == 2 and nn.Identity()(5) == 5  # type: ignore[arg-type,list-item,comparison-overlap]
    assert F.layer_norm(X, 3).shape == X.shape and X.transpose(1).shape == (3, 2)  # type: ignore[arg-type]
    assert nn.RNN(3, 4)(_zeros(5, 3), _zeros(1, 4))[0].shape == (5, 4)


def test_found_elements_have_names() -> None:
    """values and indices, as PyTorch's; a pair all the same, in captured steps too."""
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
