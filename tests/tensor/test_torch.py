"""Values and gradients against PyTorch, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
rng = np.random.default_rng(7)
X = rng.normal(size=(4, 6)).astype(np.float32)
Y = rng.normal(size=(4, 6)).astype(np.float32)
Z = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
CLASS = rng.integers(0, 6, 4)
PLACES = rng.integers(0, 6, (4, 6))
POSITIVE = np.abs(X) + 0.1

# name → (ours, theirs, inputs)
CASES = {
    "pow": (lambda x, y: x**y, lambda x, y: x**y, (POSITIVE, Y)),
    "rpow": (lambda x: 2**x, lambda x: 2**x, (X,)),
    "cube": (lambda x: x**3 + x**0.5, lambda x: x**3 + x**0.5, (POSITIVE,)),
    "div": (lambda x, y: x / y + 1 / x, lambda x, y: x / y + 1 / x, (X, POSITIVE)),
    "logs": (
        lambda x: x.log() + x.log2() + x.log10() + x.log1p(),
        lambda x: x.log() + x.log2() + x.log10() + x.log1p(),
        (POSITIVE,),
    ),
    "expm1": (lambda x: x.expm1(), lambda x: x.expm1(), (X * 0.01,)),
    "trigonometry": (
        lambda x: x.sin() + x.cos() * x.tan(),
        lambda x: x.sin() + x.cos() * x.tan(),
        (X,),
    ),
    "hyperbolic": (
        lambda x: x.sinh() + x.cosh() + x.tanh(),
        lambda x: x.sinh() + x.cosh() + x.tanh(),
        (X,),
    ),
    "inverse hyperbolic": (
        lambda x: x.asinh() + (x * 0.2).tanh().atanh() + (x.abs() + 1.1).acosh(),
        lambda x: x.asinh() + (x * 0.2).tanh().atanh() + (x.abs() + 1.1).acosh(),
        (X,),
    ),
    "erf": (lambda x: x.erf(), lambda x: x.erf(), (X,)),
    "gelu": (lambda x: x.gelu(), lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "gelu exact": (lambda x: x.gelu("none"), lambda x: F.gelu(x), (X,)),
    **{
        name: (lambda x, n=name: getattr(x, n)(), lambda x, n=name: getattr(F, n)(x), (X * 3,))
        for name in (
            "relu",
            "relu6",
            "elu",
            "celu",
            "selu",
            "silu",
            "mish",
            "sigmoid",
            "logsigmoid",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "softplus",
            "softsign",
            "leaky_relu",
        )
    },
    "clip": (lambda x: x.clip(-1, 0.5), lambda x: x.clip(-1, 0.5), (X,)),
    "maximum": (
        lambda x, y: x.maximum(y) * x.minimum(y),
        lambda x, y: x.maximum(y) * x.minimum(y),
        (X, Y),
    ),
    "fmod": (lambda x, y: x.fmod(y) + x % y, lambda x, y: x.fmod(y) + x % y, (X, POSITIVE)),
    "logaddexp": (lambda x, y: x.logaddexp(y), lambda x, y: torch.logaddexp(x, y), (X, Y)),
    "lerp": (lambda x, y: x.lerp(y, 0.3), lambda x, y: x.lerp(y, 0.3), (X, Y)),
    "copysign": (lambda x, y: x.copysign(y), lambda x, y: torch.copysign(x, y), (X, Y)),
    "sums": (
        lambda x: x.sum(0) * x.mean(0) + x.sum(),
        lambda x: x.sum(0) * x.mean(0) + x.sum(),
        (X,),
    ),
    "prod": (lambda x: x.prod(1), lambda x: x.prod(1), (X,)),
    "prod with zeros": (
        lambda x: x.prod(1),
        lambda x: x.prod(1),
        (np.where(X > 1, 0, X).astype(np.float32),),
    ),
    "max": (lambda x: x.max(1) + x.min(1), lambda x: x.max(1).values + x.min(1).values, (X,)),
    "var": (
        lambda x: x.var(1) + x.std(0).sum() + x.var(correction=0),
        lambda x: x.var(1) + x.std(0).sum() + x.var(correction=0),
        (X,),
    ),
    "logsumexp": (lambda x: x.logsumexp(1), lambda x: x.logsumexp(1), (X * 50,)),
    "softmax": (lambda x: x.softmax(0), lambda x: x.softmax(0), (X * 20,)),
    "log_softmax": (lambda x: x.log_softmax(-1), lambda x: x.log_softmax(-1), (X * 50,)),
    "cumsum": (lambda x: x.cumsum(1), lambda x: x.cumsum(1), (X,)),
    "cumprod": (lambda x: x.cumprod(0), lambda x: x.cumprod(0), (X,)),
    "matmul": (lambda x, y: x @ y.T, lambda x, y: x @ y.T, (X, Y)),
    "batched": (lambda z, y: z @ y.T, lambda z, y: z @ y.T, (Z, Y)),
    "vector": (lambda x, y: x[0] @ y.T + y @ x[1], lambda x, y: x[0] @ y.T + y @ x[1], (X, Y)),
    "einsum": (
        lambda z, x: Tensor.einsum("abci,di->bacd", z, x),
        lambda z, x: torch.einsum("abci,di->bacd", z, x),
        (Z, X),
    ),
    "einsum trace": (
        lambda z: Tensor.einsum("...ii->...", z[..., :5]),
        lambda z: torch.einsum("...ii->...", z[..., :5]),
        (Z,),
    ),
    "attention": (
        lambda q, k, v: q.scaled_dot_product_attention(k, v),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        (Z, Z * 0.5, Z + 1),
    ),
    "causal attention": (
        lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (Z, Z * 0.5, Z + 1),
    ),
    "grouped attention": (
        lambda q, k: q.scaled_dot_product_attention(k[:, :2], k[:, :2] * 2, enable_gqa=True),
        lambda q, k: F.scaled_dot_product_attention(q, k[:, :2], k[:, :2] * 2, enable_gqa=True),
        (Z, Z * 0.5),
    ),
    "layer norm": (
        lambda z, x: z.layernorm(-1, weight=x[0], bias=x[1]),
        lambda z, x: F.layer_norm(z, (6,), x[0], x[1]),
        (Z, X),
    ),
    "layer norm 2": (lambda z: z.layernorm((-2, -1)), lambda z: F.layer_norm(z, (5, 6)), (Z,)),
    "rms norm": (
        lambda z, x: z.rmsnorm(-1, 1e-5, x[0]),
        lambda z, x: F.rms_norm(z, (6,), x[0], 1e-5),
        (Z, X),
    ),
    "normalize": (lambda x: x.normalize(), lambda x: F.normalize(x), (X,)),
    "cross entropy": (
        lambda x: x.cross_entropy(Tensor(CLASS)),
        lambda x: F.cross_entropy(x, torch.tensor(CLASS)),
        (X * 10,),
    ),
    "smoothed": (
        lambda x: x.cross_entropy(Tensor(CLASS), label_smoothing=0.1, reduction="sum"),
        lambda x: F.cross_entropy(x, torch.tensor(CLASS), label_smoothing=0.1, reduction="sum"),
        (X,),
    ),
    "ignored": (
        lambda x: x.cross_entropy(Tensor(CLASS), ignore_index=int(CLASS[0])),
        lambda x: F.cross_entropy(x, torch.tensor(CLASS), ignore_index=int(CLASS[0])),
        (X,),
    ),
    "probabilities": (
        lambda x, y: x.cross_entropy(y.softmax()),
        lambda x, y: F.cross_entropy(x, y.softmax(-1)),
        (X, Y),
    ),
    "nll": (
        lambda x: x.log_softmax().nll_loss(Tensor(CLASS)),
        lambda x: F.nll_loss(x.log_softmax(-1), torch.tensor(CLASS)),
        (X,),
    ),
    "nll weighted": (
        lambda x: x.log_softmax().nll_loss(Tensor(CLASS), Tensor(POSITIVE[0]), int(CLASS[1])),
        lambda x: F.nll_loss(
            x.log_softmax(-1),
            torch.tensor(CLASS),
            torch.tensor(POSITIVE[0]),
            ignore_index=int(CLASS[1]),
        ),
        (X,),
    ),
    "mse": (lambda x, y: x.mse_loss(y), lambda x, y: F.mse_loss(x, y), (X, Y)),
    "bce": (
        lambda x, y: x.sigmoid().binary_crossentropy(y.sigmoid()),
        lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
        (X, Y),
    ),
    "bce logits": (
        lambda x, y: x.binary_crossentropy_logits(y.sigmoid()),
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        (X * 30, Y),
    ),
    "pad reflect": (
        lambda x: x.pad((2, 1), mode="reflect"),
        lambda x: F.pad(x, (2, 1), mode="reflect"),
        (X,),
    ),
    "unfold": (lambda x: x.unfold(1, 3, 2), lambda x: x.unfold(1, 3, 2), (X,)),
    "movement": (
        lambda z: z.roll((1, 2), (0, 3)).flip(1, 2).transpose(1, 3).diagonal(1, 1, 2),
        lambda z: z.roll((1, 2), (0, 3)).flip(1, 2).transpose(1, 3).diagonal(1, 1, 2),
        (Z,),
    ),
    "tril": (lambda z: z.tril(1) + z.triu(-1), lambda z: z.tril(1) + z.triu(-1), (Z,)),
    "repeat": (
        lambda x: x.repeat(2, 1, 3) * x.repeat_interleave(3, 1),
        lambda x: x.repeat(2, 1, 3) * x.repeat_interleave(3, 1),
        (X,),
    ),
    "chunks": (
        lambda x: x.chunk(4, 1)[1] * x.split([2, 3, 1], 1)[1][:, :2],
        lambda x: x.chunk(4, 1)[1][:, :2] * x.split([2, 3, 1], 1)[1][:, :2],
        (X,),
    ),
    "gather": (
        lambda x: x.gather(1, Tensor(CLASS[:, None])),
        lambda x: x.gather(1, torch.tensor(CLASS[:, None])),
        (X,),
    ),
    "scatter_add": (
        lambda x, y: x.scatter_add(1, Tensor(PLACES), y),
        lambda x, y: x.scatter_add(1, torch.tensor(PLACES), y),
        (X, Y),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(on_device, name):
    ours, theirs, inputs = CASES[name]
    mine = [Tensor(x, requires_grad=True) for x in inputs]
    other = [torch.tensor(x, requires_grad=True) for x in inputs]
    a, b = ours(*mine), theirs(*other)
    assert tuple(a.shape) == tuple(b.shape)
    np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=2e-5, atol=2e-6)
    seed = rng.normal(size=tuple(b.shape)).astype(np.float32)
    a.backward(gradient=Tensor(seed))
    b.backward(gradient=torch.tensor(seed))
    for x, y in zip(mine, other, strict=True):
        if x.grad is None:  # PyTorch gives zeros where nothing flows
            assert float(y.grad.abs().max()) == 0
            continue
        scale = max(float(y.grad.abs().max()), 1e-6)
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), atol=2e-5 * scale, rtol=2e-4)


PROMOTIONS = [
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
]


@pytest.mark.parametrize("left", PROMOTIONS)
def test_promotion(left):
    for right in PROMOTIONS:
        ours = (Tensor.ones(2, dtype=left) * Tensor.ones(2, dtype=right)).dtype.name
        theirs = (
            torch.ones(2, dtype=getattr(torch, left)) * torch.ones(2, dtype=getattr(torch, right))
        ).dtype
        assert f"torch.{ours}" == str(theirs), (left, right)
    for scalar in (2, 2.5, True):
        ours = (Tensor.ones(2, dtype=left) * scalar).dtype.name
        theirs = str((torch.ones(2, dtype=getattr(torch, left)) * scalar).dtype)
        wide = theirs.replace("int64", "int32") if left == "bool" else theirs  # our default int
        assert f"torch.{ours}" == wide, (left, scalar)
