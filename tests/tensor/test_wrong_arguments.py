"""Arguments that a generator tried in turn for all public names: each raises, and says why.

They gave an answer (something was repeated, or ignored), or told of something inside.
"""

from __future__ import annotations

import re

import pytest

from minigrad import Context, Mesh, P, Tensor, Variable, jit, nn
from minigrad.nn import functional as F
from minigrad.nn import optim


def _zeros(*shape: int) -> Tensor:
    return Tensor.zeros(*shape)


def _sgd() -> optim.SGD:
    return optim.SGD([Tensor([1.0, 2.0])], lr=0.1)


NAMES = {
    "Context": Context, "F": F, "Mesh": Mesh, "P": P, "Tensor": Tensor, "Variable": Variable,
    "jit": jit, "nn": nn, "optim": optim, "_zeros": _zeros, "_sgd": _sgd,
    "X": _zeros(2, 3), "Y": _zeros(5, 2, 3), "IMAGE": _zeros(1, 1, 4, 4),
    "LEAF": Tensor([1.0, 2.0], requires_grad=True), "HEADS": nn.MultiheadAttention(3, 1),
}  # fmt: skip
CALLS = {
    # called on the class, with something else than a tensor
    "Tensor.var_mean([1.0, 2.0])": "var_mean: the input is a list, expected a tensor",
    "Tensor.isin([1], X)": "isin: the input is a list, expected a tensor",
    "Tensor.cdist(None, X)": "cdist: the input is a NoneType, expected a tensor",
    "Tensor.cat('ab')": "cat of a str: expected tensors",
    "Tensor.stack(None, dim=0)": "stack of a NoneType: expected tensors",
    "Tensor.hstack([])": "expected tensors",
    # what was taken, and changed nothing or repeated something
    "X.clip(9, min=0.0)": "expected min, max, or both, each once",
    "X.hardtanh(2.0, 1.0)": "hardtanh(2.0, 1.0): expected min_val ≤ max_val",
    "X.hardtanh(float('nan'))": "expected min_val ≤ max_val",
    "X.isclose(X, -1.0)": "isclose(rtol=-1.0): expected a number ≥ 0",
    "X.allclose(X, atol=float('nan'))": "isclose(atol=nan): expected a number ≥ 0",
    "X.searchsorted(X, side='')": "expected None, 'left' or 'right'",
    "X.histc(3, float('nan'), 1)": "finite min ≤ max",
    "X.histc(3, 0, float('inf'))": "finite min ≤ max",
    "Tensor.uniform(2, low=0, high=float('inf'))": "expected finite low ≤ high",
    "X.quantile(_zeros(2, 2))": "expected q to be a number or a vector",
    "X.quantile(Tensor([0.5, 1.5])).tolist()": "expected 0 … 1",
    "X.cross(_zeros(2, 1))": "expected extent 3 of both",
    "X.cross(Tensor(1.0))": "expected extent 3 of both",
    "_zeros(3).cross(_zeros(3, 3), 0)": "expected extent 3 of both",
    "_zeros(3, 3).addmm(_zeros(3, 2), _zeros(2, 1))": "does not broadcast to (3, 1)",
    "X.index_add(1, Tensor([0, 1, 2]), Tensor(1.0))": "index_add of (): expected (2, 3)",
    "X.index_copy(1, Tensor([0, 1, 2]), Tensor(1.0))": "index_copy of (): expected (2, 3)",
    "_zeros(4, 3).take_along_dim(Tensor([[0, 1, 2]] * 2), 1)": "take_along_dim: shapes (4, 1) and",
    "_zeros(2, 1).prelu(_zeros(3))": "prelu of (2, 1) and (3,): expected one slope, or one for",
    "X.sum().backward(_zeros(1))": "gradient= of (1,): expected (), as what is differentiated",
    "(X * 2).backward(Tensor(1.0))": "gradient= of (): expected (2, 3)",
    "IMAGE.avg_pool2d(2, 1, padding=2)": "avg_pool2d(padding=[(2, 2), (2, 2)]): expected",
    "F.avg_pool2d(IMAGE, 3, 1, 3)": "expected at most half the kernel (3, 3)",
    # what told of something inside
    "X.sum().backward(foo=1)": "backward(foo=…): expected gradient=, or nothing",
    "X.shrink(None)": "shrink(None) of (2, 3): expected (start, stop), or None, for each",
    "X.pad_to(2.5, 4)": "pad_to(shape[0]=2.5): expected an int",
    "X.rearrange('a (b c) -> a b c', c=None)": "rearrange(c=None): expected an int",
    "X.unflatten(1, None)": "unflatten(sizes=None): expected several ints, as (2, 3)",
    "X.unflatten(1, 3)": "unflatten(sizes=3): expected several ints",
    "IMAGE.pixel_shuffle(0)": "expected r ≥ 1",
    "IMAGE.pixel_unshuffle(3)": "(…, channels, height, width), both multiples of 3",
    "Tensor.from_bytes(bytes(4), 1, 'float32')": "from_bytes(shape=1): expected several ints",
    "Tensor.from_bytes(bytes(4), (1,), 3)": "3 is no dtype",
    "Tensor.scan(None, X, X)": "Tensor.scan of None: expected a function f(carry, x) first",
    "jit(5)": "jit of 5: expected a function of tensors",
    "Variable(5, 1, 2)": "expected a plain identifier",
    "Variable('n', 1.5, 3)": "expected whole numbers, 0 <= minimum <= maximum",
    "Variable('n', 1, None)": "expected whole numbers",
    "X.shard(Mesh(dp=2), P(0))": "P(0): expected names of axes, as P(\"dp\", None)",
    "Context(DEBUG='x')": "DEBUG='x': expected a whole number",
    "Context(DEVICE=5)": "DEVICE=5: expected a text",
    "Tensor.train('yes').__enter__()": "Tensor.train('yes'): expected True or False",
    "setattr(Tensor, 'training', 1)": "Tensor.train(1): expected True or False",
    # layers, and what holds them
    "nn.Linear(3, 2)(None)": "Linear of a NoneType: modules take tensors",
    "nn.Linear(4, 2)(nn.LSTM(3, 4)(Y))": "model(pair[0]) of what an LSTM gives",
    "HEADS(Y, Y, 5)": "MultiheadAttention: the value is a int, expected a tensor",
    "HEADS(Y, Y, Y, need_weights='no')": "MultiheadAttention(need_weights='no'): expected True or",
    "nn.TransformerEncoderLayer(4, 2)(Y, 5)": "the src_mask is a int, expected a tensor",
    "nn.TransformerEncoderLayer(4, 2, activation=5)": "expected 'relu', 'gelu' or a function",
    "nn.TransformerEncoder(5, 2)": "ModuleList of 5: expected layers or functions",
    "nn.ModuleList(nn.ReLU())": "ModuleList of ReLU(): expected a list",
    "nn.ModuleList([nn.ReLU])": "ModuleList of the class ReLU: expected a layer, as ReLU(…)",
    "nn.ModuleDict({'a': 5})": "ModuleDict of 5: expected layers",
    "nn.Module().add_module('a', 5)": "add_module of 5: expected layers",
    "nn.Module().zero_grad('no')": "zero_grad(set_to_none='no'): expected True or False",
    "nn.Module().requires_grad_(0)": "requires_grad_(requires_grad=0): expected True or False",
    "nn.Module().parameters(5)": "parameters(recurse=5): expected True or False",
    "nn.state.get_parameters(nn.Linear)": "get_parameters of Linear: expected a model",
    "nn.state.get_state_dict(None)": "get_state_dict of None: expected a model",
    "nn.ReLU(X)": "ReLU: the inplace is a minigrad.tensor.Tensor, expected True or False",
    "nn.LayerNorm(3, eps=-1.0)": "LayerNorm(eps=-1.0): expected a number ≥ 0",
    "nn.BatchNorm2d(3, float('nan'))": "BatchNorm2d(eps=nan): expected a number ≥ 0",
    "nn.Embedding.from_pretrained([[1.0]])": "the embeddings is a list, expected a tensor",
    "nn.Embedding.from_pretrained(X, freeze='no')": "from_pretrained(freeze='no'): expected True",
    "F.linear(X, X[0])": "linear of (2, 3), weight (3,): expected a weight (out, in)",
    # losses
    "F.cross_entropy(X, X, ignore_index=1)": "of probabilities: expected integer targets",
    "F.cross_entropy(X, X, X[0], ignore_index=1)": "of probabilities: expected integer targets",
    "F.cross_entropy(X, Tensor([0, 1]), X[0], label_smoothing=2.0)": "or share, in 0 … 1",
    "F.cross_entropy(X, _zeros(2, 1), X[0])": "expected equal shapes",
    "F.triplet_margin_loss(X, X, X, -1.0)": "(margin=-1.0): expected a number > 0",
    # optimizers
    "optim.SGD([LEAF], momentum='a')": "SGD(momentum='a'): expected a number",
    "optim.SGD([LEAF], momentum=0.9, nesterov='no')": "SGD(nesterov='no'): expected True or False",
    "optim.Adam([LEAF], betas=(0.9, 'a'))": "betas (0.9, a): expected each in 0 … 1",
    "optim.AdamW([LEAF], decoupled=0)": "AdamW(decoupled=0): expected True or False",
    "optim.Muon([LEAF], ns_steps=1.5)": "Muon(ns_steps=1.5): expected an int",
    "optim.OptimizerGroup([_sgd()])": "OptimizerGroup(list): expected optimizers, one after the",
    "setattr(_sgd(), 'momentum', -1)": "SGD(momentum=-1): expected a number ≥ 0",
    "optim.clip_grad_norm(nn.ReLU(), 1.0)": "got a ReLU; Adam(model.parameters())",
    "optim.clip_grad_norm([5], 1.0)": "clip_grad_norm: expected tensors, got a int",
    "nn.schedule.Schedule(_sgd(), abs, 'a')": "Schedule(step='a'): expected an int",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_argument_raises(call: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(CALLS[call])):
        eval(call, NAMES)
