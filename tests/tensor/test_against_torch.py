"""What PyTorch says where the operation table (tests/property) does not: dtypes that meet, numbers
in place of tensors, names and forms of arguments.

Each line is an expression (see `expressions`), which follows PyTorch's public documentation. All of
a family's results are realized in one program.
"""

from __future__ import annotations

import numpy as np
import pytest
from expressions import NAMES, Comparison, cases

from minigrad import Tensor, dtypes, linalg, nn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

FAMILIES = {
    "dtypes together": """
        i + x
        i + d
        x + d
        h + 1
        h * x
        b + i
        b * x
        a + 1
        a + i
        i * 2.5
        i / j
        i.div(j)
        i.div(j, rounding_mode="floor")
        i.div(j, rounding_mode="trunc")
        i.atan2(h)
        i.hypot(h)
        i.copysign(h)
        i.logaddexp(h)
        i.half().nextafter(h)
        a < i
        b & (x > 0)
        b.where(i, x) :: torch.where(b, i, x)
        i.half()
        i.bitcast(float32) :: i.view(float32)
        x.softmax(1, dtype=float64)
        x.cat(i, dim=1) :: torch.cat([x, i], 1)
        x.scatter_add(1, j % 4, y) :: x.scatter_add(1, (j % 4).long(), y)
        x[k]
        t[k % 2, :, k]
        Tensor.ones(2, 3, dtype=int32) :: torch.ones(2, 3, dtype=int32)
        Tensor.full((2,), True) :: torch.full((2,), True)
        Tensor([1, 2]) :: torch.tensor([1, 2])
        Tensor([[1.5], [2]]) :: torch.tensor([[1.5], [2]])
        Tensor([True, False]) :: torch.tensor([True, False])
        Tensor(3.5) :: torch.tensor(3.5)
    """,
    "numbers in place of tensors": """
        x + 2
        a * 2
        !x // 2
        a & 6
        x <= 0
        0 < x
        x ** 2
        x ** 3
        j ** 2
        p ** 0.5
        p ** -0.5
        x.lerp(y, 0.25)
        b.where(x, 0.5) :: torch.where(b, x, 0.5)
        x.masked_fill(x > 0, float("-inf"))
        x.scatter(1, k.reshape(3, 1), 9.0)
    """,
    "names and forms of arguments": """
        x.clamp(min=0.1)
        x.clamp(max=0.1)
        a.isclose(a + 1, atol=3) :: a.int().isclose(a.int() + 1, atol=3)
        (i.char() * 14).isclose((j * 20).char()) :: (i * 14).isclose(j * 20)
        b.isclose(b)
        b ** 2
        d[0, 0].quantile(0.3, 0, True)
        (h * 2000).round(decimals=2)
        (a // 2).char().histc(8, 0, 100) :: (a // 2).float().histc(8, 0, 100).long()
        linalg.diagonal(t)
        len(x[:, :0].chunk(3, 1)) + x[0] :: 3 + x[0]
        x.to(d)
        i.to(h)
        x.sum(dim=1)
        x.permute(1, 0)
        v.expand(3, 4)
        x.repeat(2, 3)
        x.flip(0)
        x.cat(y) :: torch.cat([x, y])
        x.pad((-1, 2, 0, -1)) :: F.pad(x, (-1, 2, 0, -1))
        img.pad((1, 2, 3, 0), mode="reflect") :: F.pad(img, (1, 2, 3, 0), mode="reflect")
        x.cummax(1) :: tuple(x.cummax(1))
        x[:1].cov()
        F.prelu(x[0, 0], c4[:1])
        t.scaled_dot_product_attention(t, t, tri) :: sdpa(t, t, t, tri)
        t.scaled_dot_product_attention(t, t, scale=0.3) :: sdpa(t, t, t, scale=0.3)
        t.layernorm((1, 2), 1e-3) :: F.layer_norm(t, (3, 4), eps=1e-3)
        x.rmsnorm(eps=1e-6, weight=v) :: F.rms_norm(x, (4,), v, 1e-6)
        img.conv2d(w, padding="same") :: F.conv2d(img, w, padding="same")
        img.conv2d(w, padding="valid") :: F.conv2d(img, w, padding="valid")
        img.conv2d(w, padding=(1, 2, 3, 0)) :: F.conv2d(F.pad(img, (1, 2, 3, 0)), w)
        img[0].conv2d(w, c4) :: F.conv2d(img[0], w, c4)
        F.conv2d(img, w, c4, 2, (1, 2), 1, 1)
        F.conv_transpose2d(img, w.transpose(0, 1), c4, 2, 1, 1, 1, 1)
        img.max_pool2d(3, 2, return_indices=True) :: F.max_pool2d(img, 3, 2, return_indices=True)
        img.interpolate(scale_factor=2) :: F.interpolate(img, scale_factor=2)
        img.interpolate(scale_factor=(1.5, 0.7)) :: F.interpolate(img, scale_factor=(1.5, 0.7))
        img.interpolate(scale_factor=1.7, mode="bilinear") ::
            F.interpolate(img, scale_factor=1.7, mode="bilinear")
        img[:, :, None].interpolate((2, 3, 9), mode="trilinear") ::
            F.interpolate(img[:, :, None], (2, 3, 9), mode="trilinear")
    """,
    "what is seldom asked": """
        linalg.qr(x)[1].abs() :: torch.linalg.qr(x)[1].abs()
        linalg.qr(x)[0].abs() @ linalg.qr(x)[1].abs() ::
            torch.linalg.qr(x)[0].abs() @ torch.linalg.qr(x)[1].abs()
        linalg.eigh(x @ x.T)[1].abs() :: torch.linalg.eigh(x @ x.T)[1].abs()
        F.adaptive_max_pool1d(img.reshape(2, 1, 126), 100)
        F.max_pool2d(img, 3, padding=[1])
        F.max_pool2d(img, 2, 5, 1, ceil_mode=True)
        F.avg_pool2d(img, 2, 5, 1, ceil_mode=True)
        x.diag(1)
        x.squeeze(1)
        x.scatter_reduce(0, j[:2, :3] % 3, y[:2, :3], "mean") ::
            x.scatter_reduce(0, (j[:2, :3] % 3).long(), y[:2, :3], "mean")
        !b.sort(1) :: tuple(b.sort(dim=1, stable=True))
        !b.sort(0, descending=True) :: tuple(b.sort(dim=0, stable=True, descending=True))
        !k[0].nonzero()
        !k[1].nonzero()
        !k[0].nonzero(as_tuple=True)
        !k[1].nonzero(as_tuple=True)
        !(x > 0).where() :: torch.where(x > 0)
        !k.where()[0] :: torch.where(k)[0]
        x.max(y)
        x.min(v)
    """,
    "labels that count for nothing by default": """
        x.cross_entropy(ign) :: F.cross_entropy(x, ign)
        x.log_softmax(1).nll_loss(ign) :: F.nll_loss(x.log_softmax(1), ign)
    """,
}


def _inputs():
    g = np.random.default_rng(5)

    def normal(*shape):
        return g.standard_normal(shape).astype(np.float32)

    positive = g.uniform(0.2, 3, (3, 4)).astype(np.float32)
    return {
        "x": normal(3, 4), "y": normal(3, 4), "t": normal(2, 3, 4), "v": normal(4), "p": positive,
        "d": g.standard_normal((3, 4)), "h": normal(3, 4).astype(np.float16),
        "i": g.integers(-9, 10, (3, 4)).astype(np.int32),
        "j": g.integers(1, 6, (3, 4)).astype(np.int32),
        "k": np.array([2, 0, 1]), "b": g.integers(0, 2, (3, 4)).astype(bool),
        "a": g.integers(0, 200, (3, 4)).astype(np.uint8), "tri": np.tri(3, dtype=bool),
        "img": normal(2, 3, 6, 7), "w": normal(4, 3, 3, 3), "c4": normal(4),
        "ign": np.array([2, -100, 1]),
    }  # fmt: skip


INPUTS = _inputs()
def tensors(make):
    return {
        name: make(value, value.dtype.kind == "f") for name, value in INPUTS.items()
    }


def torch_tensor(value, wants_gradient):
    return torch.from_numpy(np.array(value)).requires_grad_(wants_gradient)


def ours_tensor(value, wants_gradient):
    return Tensor(value, requires_grad=wants_gradient)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, on_device):
    theirs_in = tensors(torch_tensor)
    theirs = {
        "torch": torch, "linalg": torch.linalg, "F": F, "sdpa": F.scaled_dot_product_attention,
        "float": float, "tuple": tuple, "len": len,
        **{name: getattr(torch, name) for name in NAMES}, **theirs_in,
    }  # fmt: skip
    ours = {
        "Tensor": Tensor, "linalg": linalg, "F": nn.functional, "float": float,
        "len": len,
        **{name: getattr(dtypes, name) for name in NAMES}, **tensors(ours_tensor),
    }  # fmt: skip
    leaves = [name for name, tensor in theirs_in.items() if tensor.requires_grad]
    comparison = Comparison(ours, theirs, leaves)
    for number, case in enumerate(cases(FAMILIES[family])):
        comparison.add(number, *case)
    comparison.finish()


PROMOTIONS = (
    "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool",
)  # fmt: skip


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
