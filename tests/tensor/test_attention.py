"""All forms of attention, with enough positions for blocked kernels, against the reference device.

Masked keys and values must not affect results, not even as NaN: checked against numpy, which
computes each row from the visible keys only.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minigrad import Tensor, dtypes, nn
from minigrad.tensor.contraction import matmul_where
from minigrad.tensor.live_tensors import lazy_holders

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


@pytest.mark.parametrize("length", [1, 2, 4, 7, 8, 9, 14, 15, 16, 17, 24, 32])
@pytest.mark.parametrize("form", ["all", "causal"])
def test_a_block_or_two(form, length, compiled, reference):
    """Lengths around a tile's rows and around a block, in several batch sizes."""
    generator = np.random.default_rng(length)

    def results(device, array):
        x = Tensor(array, device=device).realize()
        q, k, v = (x * 2).contiguous().unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        alone = FORMS[form](q, k, v).numpy()
        y = FORMS[form](q, k, v).sin()
        (gradient,) = y.sum().gradient(x)
        Tensor.realize(y, gradient)
        return alone, y.numpy(), gradient.numpy()

    for batch in (64, 96):  # the second batch size compiles a general program for all sizes
        array = generator.standard_normal((batch, length, 48)).astype(np.float32)
        both = results(compiled, array), results(reference, array)
        for got, expected in zip(*both, strict=True):
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


# --- bfloat16 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [True, False])
def test_weights_are_rounded_to_bfloat16(is_causal, device):
    """0.6·2 − 0.4·3 with rounded weights is twice what the exact weights give."""
    q, k, v = (Tensor(x, device=device).cast(dtypes.bfloat16).unsqueeze(1) for x in (
        [1.0, 1.0], np.log([0.6, 0.4]).astype(np.float32), [2.0, -3.0]
    ))  # fmt: skip
    powers = np.exp(k.float().numpy()[:, 0])
    weights = powers / powers.sum()
    expected = weights.astype(ml_dtypes.bfloat16).astype(np.float32) @ [2, -3]
    assert expected > 1.5 * (weights @ [2, -3]) > 0
    found = q.scaled_dot_product_attention(k, v, is_causal=is_causal).float().numpy()[-1, 0]
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "queries, keys", [(96, 96), (97, 97), (50, 130), (64, 65), (97, 98), (98, 97)]
)
@pytest.mark.parametrize("kind", ["all", "causal", "bool"])
def test_blocks_of_bfloat16(kind, queries, keys, compiled, reference):
    """bfloat16 dots add products in pairs: even and odd numbers of keys and queries."""
    generator = np.random.default_rng(queries)
    shapes = (queries, 32), (keys, 32), (keys, 48), (queries, 48)
    arrays = [generator.standard_normal((1, 9, *shape)).astype(np.float32) for shape in shapes]
    seen = generator.random((queries, keys)) < 0.7

    def results(device):
        q, k, v, g = (Tensor(x, device=device).cast(dtypes.bfloat16).realize() for x in arrays)
        given = Tensor(seen, device=device) if kind == "bool" else None
        y = q.scaled_dot_product_attention(k, v, given, is_causal=kind == "causal")
        alone = q.scaled_dot_product_attention(k * 2, v, given, is_causal=kind == "causal")
        found = [y, *y.gradient(q, k, v, gradient=g), alone.realize()]
        Tensor.realize(*found)
        return [x.float().numpy() for x in found]

    for got, expected in zip(results(compiled), results(reference), strict=True):
        assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()


# --- what a mask excludes -------------------------------------------------------------------------

MASKS = ("causal", "bool", "float")


def seen_by(kind: str, length: int, generator: np.random.Generator) -> np.ndarray:
    """Mask of the keys (columns) each query sees; if not causal, query 1 sees none."""
    if kind == "causal":
        return np.tril(np.ones((length, length), bool))
    seen = generator.random((length, length)) < 0.6
    seen[1] = False
    return seen


def by_rows(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, seen: np.ndarray
) -> list[np.ndarray]:
    """Attention and its gradients in float64, each row computed from the keys it sees only."""
    scale = q.shape[-1] ** -0.5
    y, dq, dk, dv = (np.zeros_like(x, np.float64) for x in (q, q, k, v))
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    with np.errstate(all="ignore"):
        for row, columns in enumerate(map(np.flatnonzero, seen)):
            if not columns.size:
                continue
            scores = k[columns] @ q[row] * scale
            powers = np.exp(scores - scores.max())
            weights = powers / powers.sum()
            y[row] = weights @ v[columns]
            towards = v[columns] @ g[row]
            slopes = weights * (towards - weights @ towards) * scale
            dq[row] = slopes @ k[columns]
            dk[columns] += np.outer(slopes, q[row])
            dv[columns] += np.outer(weights, g[row])
    return [y, dq, dk, dv]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("length", [9, 33, 160])  # stored scores; below and above a block's length
@pytest.mark.parametrize("extreme", [np.nan, np.inf])
def test_what_a_mask_excludes_reaches_nobody(kind, length, extreme, device):
    check_hidden(kind, length, extreme, device, dtypes.float32)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("depth", [DEPTH, 32])  # 32: in matrix registers, if any
def test_nor_in_bfloat16(kind, depth, device):
    check_hidden(kind, 160, np.nan, device, dtypes.bfloat16, depth)


def check_hidden(kind, length, extreme, device, dtype, depth=DEPTH):
    generator = np.random.default_rng(length)
    seen = seen_by(kind, length, generator)
    given = {None: seen, "bool": seen, "float": np.where(seen, 0.5, -np.inf)}
    for spoiled in range(4):  # q, k, v, and the gradient of the result
        for place in (length // 2, length - 1):
            arrays = [generator.standard_normal((length, depth)).astype(np.float32) for _ in "qkvg"]
            arrays[spoiled][place, 3] = extreme
            q, k, v, seed = (Tensor(x, device=device).cast(dtype) for x in arrays)
            arrays = [x.float().numpy() for x in (q, k, v, seed)]
            values = given.get(kind)
            mask_ = None if values is None else Tensor(values.astype(
                np.float32 if kind == "float" else bool), device=device)  # fmt: skip
            y = q.scaled_dot_product_attention(k, v, mask_, is_causal=kind == "causal")
            found = [y, *y.gradient(q, k, v, gradient=seed)]
            Tensor.realize(*found)
            for name, got, wanted in zip(
                ("y", "dq", "dk", "dv"), found, by_rows(*arrays, seen), strict=True
            ):
                got, spared = got.float(), np.isfinite(wanted)
                where = f"{name}, with {extreme} in {'qkvg'[spoiled]}[{place}]"
                assert np.isfinite(got.numpy())[spared].all(), where
                near = 1e-4 if dtype is dtypes.float32 else 1e-2
                near *= np.abs(wanted[spared]).max(initial=1)
                assert np.abs(got.numpy()[spared] - wanted[spared]).max(initial=0) <= near, where
                assert not np.isfinite(got.numpy())[~spared].any(), where


def test_a_second_derivative_does_not_see_it_either(device):
    def slope(change: float) -> np.ndarray:
        q, k, v = (Tensor(x[0, 0], device=device) for x in QKV[:3])
        places = Tensor.arange(LENGTH, device=device)
        v = places.unsqueeze(1).ne(30).where(v, change)
        seen = places.ne(30) & (places <= places.unsqueeze(1))
        y = q.scaled_dot_product_attention(k, v, seen)
        (first,) = y.square().sum().gradient(k)
        (second,) = first.square().sum().gradient(q)
        return second.numpy()

    expected = slope(0.0)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    for extreme in (np.nan, np.inf):
        np.testing.assert_allclose(slope(extreme), expected, rtol=1e-4, atol=1e-5)


# --- sums that would overflow or vanish if they were scaled late ----------------------------------


def shares(x, scale):
    scores = (x @ x.transpose(-1, -2)).abs() * scale
    return scores * scores.sum(-1, keepdim=True).reciprocal()


SCALED = {
    # Σ (x·y)·z where Σ x·z alone would overflow, or underflow to 0
    "large scores": lambda q, k, v: shares(q * 1e10, 1.0) @ (v * 1e18),
    "tiny scores": lambda q, k, v: shares(q * 1e-18, 1.0) @ (v * 1e-10),
    "largest values": lambda q, k, v: q.scaled_dot_product_attention(k, v * 0 + 3e38),
    "largest values, causal": lambda q, k, v: (
        q.scaled_dot_product_attention(k, v * 0 + 3e38, is_causal=True)
    ),
    "by a constant": lambda q, k, v: (
        ((q @ k.transpose(-1, -2)).tanh() * 1e-5) @ (v * 0 + 3e38) + (v * 0)
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaling_late_does_not_change_a_value(name, compiled, reference):
    def results(device):
        q, k, v = (Tensor(x, device=device).realize() for x in QKV[:3])
        return SCALED[name](q, k, v).numpy()

    expected, found = results(reference), results(compiled)
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_on_the_way_is_kept(form):
    """Lazy tensors alive after a capture are stored by the step: no rule may hold scores."""
    before = {id(holder) for holder in lazy_holders()}
    q, k, v = (Tensor(x).requires_grad_() for x in QKV[:3])
    output = FORMS[form](q, k, v)
    gradients = output.gradient(q, k, v, gradient=Tensor.ones(*output.shape))
    mine = {id(x) for x in (q, k, v, output, *gradients)}
    alive = [x for x in lazy_holders() if id(x) not in before | mine]
    assert [x for x in alive if x.ndim > 1] == []  # the random state stays alive


@pytest.mark.parametrize("queries, keys", [(39, 300), (7, 700), (130, 3000)])
def test_what_a_mask_hides_reaches_nobody_beyond_a_line_of_keys(on_device, queries, keys):
    generator = np.random.default_rng(keys)
    seen = np.tril(np.ones((queries, keys), bool), keys - queries - 5)
    x, y = (generator.standard_normal(s).astype(np.float32) for s in ((queries, keys), (keys, 33)))
    y[-5:] = np.array([np.nan, np.inf, -np.inf, 1e30, np.nan], np.float32)[:, None]
    found = matmul_where(Tensor(seen), Tensor(x), Tensor(y))
    expected = np.where(seen, x, 0)[:, :-5] @ y[:-5]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("weights", ["softmax", "relu"])
@pytest.mark.parametrize("extreme", [0.5, np.inf, np.nan])
def test_terms_that_are_masked_as_products(weights, extreme, compiled, reference):
    """where(mask, weight · value, 0): neither factor is 0 where the mask excludes the product."""
    generator = np.random.default_rng(0)
    q, k, v = generator.standard_normal((3, 2, 2, 64, 16)).astype(np.float32)
    v[:, :, 50] = extreme  # which earlier rows must not see
    results = []
    for device in (compiled, reference):
        x, y, z = (Tensor(given, device=device) for given in (q, k, v))
        row = Tensor.arange(64, device=device)
        seen = (row.reshape(64, 1) >= row).unsqueeze(-1)
        scores = x @ y.transpose(2, 3) / 4
        scores = scores.softmax(-1) if weights == "softmax" else scores.relu()
        results.append(seen.where(scores.unsqueeze(-1) * z.unsqueeze(2), 0.0).sum(3).numpy())
    assert np.isfinite(results[0][:, :, :50]).all()
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 1, 9])
def test_a_moved_window_of_keys(shift, compiled, reference):
    """The rows of one block start at different keys."""
    given = np.random.default_rng(1).standard_normal((1, 2, 512, 16)).astype(np.float32)
    results = []
    for device in (compiled, reference):
        x = Tensor(given, device=device)
        column = Tensor.arange(512, device=device)
        row = column.reshape(512, 1)
        seen = (row + shift >= column) & (row - column < 64)
        scores = seen.where(x @ x.transpose(2, 3) / 4, float("-inf"))
        results.append((scores.softmax(-1) @ x).numpy())
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["plain", "causal", "mask", "added", "dropout"])
def test_no_keys_at_all(how: str, on_device: str) -> None:
    """Zeros, and gradients of zeros, as in PyTorch."""
    q = Tensor.ones(1, 2, 3, 4, requires_grad=True)
    k, v = Tensor.ones(1, 2, 0, 4), Tensor.ones(1, 2, 0, 5)
    given = {"mask": Tensor.ones(3, 0, dtype="bool"), "added": Tensor.ones(3, 0)}.get(how)
    with Tensor.train():
        found = q.scaled_dot_product_attention(
            k, v, given, dropout_p=0.5 * (how == "dropout"), is_causal=how == "causal"
        )
    assert found.shape == (1, 2, 3, 5) and not found.any().item()
    assert found.sum().gradient(q)[0].tolist() == q.zeros_like().tolist()


@pytest.mark.parametrize("masks", [{}, {"key_padding_mask": (1, 0)}, {"attn_mask": (2, 3, 0)}])
def test_a_layer_without_keys(masks: dict[str, tuple[int, ...]], on_device: str) -> None:
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    none = Tensor.zeros(1, 0, 4)
    given = {name: Tensor.zeros(shape, dtype="bool") for name, shape in masks.items()}
    found, weights = layer(Tensor.ones(1, 3, 4), none, none, **given)
    assert found.tolist() == layer.out_proj.bias.expand(1, 3, 4).tolist()
    assert weights is not None and weights.shape == (1, 3, 0)
