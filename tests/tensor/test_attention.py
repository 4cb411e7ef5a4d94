"""Attention in all its forms, long enough for kernels of blocks, against the reference device."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, dtypes

BATCH, HEADS, LENGTH, DEPTH = 2, 3, 75, 16
RNG = np.random.default_rng(0)
QKV = RNG.standard_normal((4, BATCH, HEADS, LENGTH, DEPTH)).astype(np.float32)
SEEN = RNG.random((BATCH, 1, LENGTH, LENGTH)) < 0.7
SEEN[:, :, :, 0] = True
BIAS = RNG.standard_normal((LENGTH, LENGTH)).astype(np.float32)


def mask(x, values):
    return Tensor(values, device=x.device)


def dropped(q, k, v):
    Tensor.manual_seed(5)
    with Tensor.train():
        return q.scaled_dot_product_attention(k, v, is_causal=True, dropout_p=0.3)


def capped(q, k, v):
    scores = ((q @ k.transpose(-1, -2)) / 5).tanh() * 5
    return scores.masked_fill(mask(q, ~SEEN), -1e9).softmax(-1) @ v


def with_penalty(q, k, v):
    weights = (q @ k.transpose(-1, -2) * 0.25).softmax(-1)
    return weights @ v + weights.square().sum(-1, keepdim=True)


FORMS = {
    "all": lambda q, k, v: q.scaled_dot_product_attention(k, v),
    "causal": lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
    "bool mask": lambda q, k, v: q.scaled_dot_product_attention(k, v, mask(q, SEEN)),
    "float mask": lambda q, k, v: q.scaled_dot_product_attention(k, v, mask(q, BIAS)),
    "keys masked": lambda q, k, v: q.scaled_dot_product_attention(k, v, mask(q, SEEN[:, :, :1])),
    "grouped": lambda q, k, v: q.scaled_dot_product_attention(
        k[:, :1], v[:, :1], is_causal=True, enable_gqa=True
    ),
    "dropout": dropped,
    "capped": capped,
    "penalty": with_penalty,
    "by columns": lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-2).transpose(-1, -2) @ v,
    "side by side": lambda q, k, v: (
        q.scaled_dot_product_attention(k, v, is_causal=True).transpose(1, 2).flatten(2)
    ),
}


def results(form, dtype, device):
    q, k, v, seed = (Tensor(x, device=device).cast(dtype).realize() for x in QKV)
    y = FORMS[form](q, k, v)
    gradients = y.gradient(q, k, v, gradient=seed.reshape(y.shape))
    Tensor.realize(y, *gradients)
    return [x.float().numpy() if dtype.itemsize < 4 else x.numpy() for x in (y, *gradients)]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, dtypes.float32) for form in FORMS]
    + [("causal", dtype) for dtype in (dtypes.float64, dtypes.float16, dtypes.bfloat16)],
)
def test_values_and_gradients(form, dtype, compiled, reference):
    near = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype.name]
    wanted = results(form, dtype, reference)
    for got, expected in zip(results(form, dtype, compiled), wanted, strict=True):
        assert np.abs(got - expected).max() <= near * np.abs(expected).max()
