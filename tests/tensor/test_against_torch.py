"""Hundreds of small comparisons with PyTorch: values, shapes, dtypes, gradients.

Each line is an expression, evaluated once with minigrad's tensors and once with PyTorch's; where
the two are written differently, ours stands before "::", after which a line may be broken. The
expressions follow PyTorch's public documentation. A leading "!" compares values only: gradients
differ by convention (ties), or the result has none. All of a family's results are realized in one
program.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from minigrad import Tensor, dtypes
from minigrad.errors import GradientError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

FAMILIES = {
    "arithmetic": """
        x + y
        x - y
        x * y
        x / y
        x + 2
        2 - x
        3 * x
        1 / p
        x + v
        t + v.reshape(1, 1, 4)
        s * x
        -x
        +x
        abs(x)
        !x // y
        x % y
        !x // 2
        !-7 % p
        i + j
        i - 3
        i * 2.5
        i / j
        i // j
        i % j
        -7 // j
        i + x
        i + d
        h + 1
        h * x
        x + d
        b + i
        b * x
        a + 1
        a + i
        a * 2
        x ** 2
        x ** 3
        p ** 0.5
        p ** -0.5
        p ** y
        2 ** x
        j ** 2
        x.add(y) :: x + y
        x.sub(y)
        x.mul(y)
        x.div(y)
        x.div(y, rounding_mode="floor")
        x.div(y, rounding_mode="trunc")
        i.div(j)
        i.div(j, rounding_mode="floor")
        i.div(j, rounding_mode="trunc")
        x.pow(2)
        x.fmod(p)
        i.fmod(j)
        x.mod(p) :: x.remainder(p)
        x.neg()
        x.lerp(y, 0.25)
        x.lerp(y, p)
        x.maximum(y)
        x.minimum(y)
        i.maximum(j)
        x.copysign(y)
        x.logaddexp(y)
    """,
    "comparison and bits": """
        x == y
        x != y
        x < y
        x <= 0
        0 < x
        x >= y
        i > j
        i == 3
        a < i
        b == b
        x.eq(y)
        x.lt(0)
        x.isclose(x + 1e-7)
        x.isclose(y)
        z.isnan()
        z.isinf()
        z.isfinite()
        i & j
        i | j
        i ^ j
        ~i
        ~b
        b & (x > 0)
        b | (x > 0)
        b ^ (x > 0)
        a & 6
        i << 2
        i >> 1
        i << j
        i.bitwise_and(j)
        i.bitwise_or(j)
        i.bitwise_xor(j)
        i.bitwise_not()
        x.logical_not()
        i.logical_not()
        b.where(x, y) :: torch.where(b, x, y)
        b.where(x, 0.5) :: torch.where(b, x, 0.5)
        b.where(i, x) :: torch.where(b, i, x)
        x.masked_fill(b, -1.0)
        x.masked_fill(x > 0, float("-inf"))
    """,
    "functions": """
        x.exp()
        x.exp2()
        x.expm1()
        p.log()
        p.log2()
        p.log10()
        p.log1p()
        p.sqrt()
        p.rsqrt()
        x.square()
        p.reciprocal()
        x.sin()
        x.cos()
        q.tan()
        x.sinh()
        x.cosh()
        x.tanh()
        x.asinh()
        (p + 1).acosh()
        q.atanh()
        x.erf()
        x.abs()
        x.sign()
        x.floor()
        x.ceil()
        x.round()
        x.trunc()
        (x * 4).round()
        x.clip(-0.5, 0.5)
        x.clamp(min=0.1)
        x.clamp(max=0.1)
        x.clamp(-0.5, 0.5)
        i.clamp(-2, 2)
        i.abs()
        i.sign()
        i.exp()
        j.sqrt()
        j.log()
        i.sin()
        b.exp()
        h.exp()
        h.sqrt()
        d.exp()
        d.tanh()
        z.exp()
        z.tanh()
        z.abs()
        !z.relu()
        z.sigmoid()
    """,
    "activations": """
        x.relu()
        (x * 4).relu6() :: F.relu6(x * 4)
        x.leaky_relu() :: F.leaky_relu(x)
        x.leaky_relu(0.2) :: F.leaky_relu(x, 0.2)
        x.elu() :: F.elu(x)
        x.elu(0.5) :: F.elu(x, 0.5)
        x.celu(0.5) :: F.celu(x, 0.5)
        x.selu() :: F.selu(x)
        x.sigmoid()
        x.logsigmoid() :: F.logsigmoid(x)
        x.silu() :: F.silu(x)
        x.swish() :: F.silu(x)
        x.gelu("none") :: F.gelu(x)
        x.gelu() :: F.gelu(x, approximate="tanh")
        x.mish() :: F.mish(x)
        x.softplus() :: F.softplus(x)
        x.softplus(2.0) :: F.softplus(x, 2.0)
        x.softsign() :: F.softsign(x)
        (x * 4).hardsigmoid() :: F.hardsigmoid(x * 4)
        (x * 4).hardswish() :: F.hardswish(x * 4)
        x.hardtanh() :: F.hardtanh(x)
        x.hardtanh(-0.3, 0.4) :: F.hardtanh(x, -0.3, 0.4)
        x.quick_gelu() :: x * torch.sigmoid(1.702 * x)
        h.relu()
        h.sigmoid()
        d.gelu("none") :: F.gelu(d)
    """,
    "reductions": """
        x.sum()
        x.sum(0)
        x.sum(-1)
        x.sum(1, keepdim=True)
        t.sum((0, 2))
        t.sum((0, -1), keepdim=True)
        x.sum(dim=1)
        i.sum()
        i.sum(1)
        a.sum()
        b.sum()
        h.sum()
        d.sum(0)
        x.prod()
        x.prod(1)
        i.prod(0)
        x.mean()
        x.mean(0)
        t.mean((1, 2))
        h.mean(1)
        x.var()
        x.var(1)
        x.var(1, correction=0)
        t.var((0, 2), keepdim=True)
        x.std()
        x.std(0)
        d.std(1, correction=0)
        x.std_mean(1) :: torch.std_mean(x, 1)
        x.max()
        x.min()
        x.max(1) :: x.max(1).values
        x.min(0) :: x.min(0).values
        t.max((0, 2)) :: t.amax((0, 2))
        i.max()
        i.min(1) :: i.min(1).values
        a.max()
        x.any()
        x.all()
        b.any(1)
        b.all(0)
        b.any()
        x.argmax()
        x.argmax(1)
        x.argmin(0)
        x.argmax(1, keepdim=True)
        i.argmin()
        x.logsumexp(1)
        t.logsumexp((0, 1))
        x.softmax(1)
        x.softmax(0)
        t.softmax(-1)
        x.log_softmax(1)
        t.log_softmax(1)
        x.softmin(1) :: F.softmin(x, 1)
        x.softmax(1, dtype=float64)
        h.softmax(1)
        x.normalize() :: F.normalize(x)
        x.normalize(p=1, axis=0) :: F.normalize(x, p=1, dim=0)
        (x * 50).logsumexp(1)
        (x * 50).log_softmax(1)
        (x * b).prod(1)
        z.sum()
        z.max()
        z.argmax(1)
    """,
    "scans and order": """
        x.cumsum(0)
        x.cumsum(1)
        i.cumsum(1)
        t.cumsum(-1)
        x.cumprod(1)
        i.cumprod(0)
        x.cummax(1) :: tuple(x.cummax(1))
        x.cummin(0) :: tuple(x.cummin(0))
        x.logcumsumexp(1)
        x.sort() :: tuple(x.sort(stable=True))
        x.sort(0, descending=True) :: tuple(x.sort(dim=0, descending=True, stable=True))
        i.sort(1) :: tuple(i.sort(dim=1, stable=True))
        x.argsort(1)
        x.argsort(0, descending=True)
        x.topk(2) :: tuple(x.topk(2))
        x.topk(3, largest=False) :: tuple(x.topk(3, largest=False))
        t.topk(1, 1) :: tuple(t.topk(1, 1))
    """,
    "movement": """
        x.reshape(4, 3)
        x.reshape(2, -1)
        x.view(12)
        t.flatten()
        t.flatten(1)
        t.unflatten(2, (2, 2))
        x.unsqueeze(1)
        x.unsqueeze(-1)
        t[:1].squeeze(0)
        t[:1].squeeze()
        t.permute(2, 0, 1)
        t.transpose(0, 2)
        x.T
        t.mT
        v.expand(3, 4)
        x.unsqueeze(1).expand(-1, 2, -1)
        x.repeat(2, 3)
        v.repeat(2, 1, 2)
        x.repeat_interleave(2, 1)
        x.repeat_interleave(3)
        x.flip(0)
        t.flip((0, 2))
        x.roll(1, 0)
        x.roll((1, -2), (0, 1))
        x.roll(5)
        img.roll((1, 2), (0, 3)).flip((1, 2)).transpose(1, 3).diagonal(1, 1, 2)
        x.split(2, 1)
        x.split((1, 3), 1)
        x.chunk(2, 1)
        x.chunk(2)
        x.diagonal()
        x.diagonal(1)
        t.diagonal(-1, 1, 2)
        x.unfold(1, 2, 1)
        t.unfold(2, 3, 1)
        x.unfold(0, 2, 2)
        x.tril()
        x.triu(1)
        t.triu(-1)
        v.diag()
        x.cat(y) :: torch.cat([x, y])
        x.cat(i, dim=1) :: torch.cat([x, i], 1)
        Tensor.cat([x, y, x], dim=1) :: torch.cat([x, y, x], dim=1)
        x.stack(y) :: torch.stack([x, y])
        Tensor.stack([x, y], dim=2) :: torch.stack([x, y], dim=2)
        x.pad((1, 2)) :: F.pad(x, (1, 2))
        x.pad((1, 0, 2, 1), value=7.0) :: F.pad(x, (1, 0, 2, 1), value=7.0)
        x.pad((-1, 2, 0, -1)) :: F.pad(x, (-1, 2, 0, -1))
        img.pad((1, 2, 3, 0), mode="reflect") :: F.pad(img, (1, 2, 3, 0), mode="reflect")
        img.pad((1, 2, 3, 0), mode="replicate") :: F.pad(img, (1, 2, 3, 0), mode="replicate")
        img.pad((1, 2, 3, 0), mode="circular") :: F.pad(img, (1, 2, 3, 0), mode="circular")
        v.meshgrid(n) :: torch.meshgrid(v, n, indexing="ij")
        v.meshgrid(n, indexing="xy") :: torch.meshgrid(v, n, indexing="xy")
        t.rearrange("a b c -> c (a b)") :: t.permute(2, 0, 1).reshape(4, 6)
        t.rearrange("a b (c d) -> (a d) b c", d=2) ::
            t.reshape(2,3,2,2).permute(0,3,1,2).flatten(0,1)
    """,
    "indexing": """
        x[1]
        x[-1]
        x[1, 2]
        x[:, 1]
        x[1:]
        x[:, ::2]
        x[:-1, 1:3]
        t[..., 1]
        t[0, ..., 2]
        t[:, None, 1]
        t[None]
        x[k]
        x[:, k]
        x[k, k]
        t[:, k]
        t[k % 2, :, k]
        t[:, k, k]
        x[k.unsqueeze(1), k]
        x.gather(1, k.reshape(3, 1))
        x.gather(0, k.reshape(1, 3))
        x.scatter(1, k.reshape(3, 1), 9.0)
        x.scatter(1, k.reshape(3, 1), y[:, :1])
        x.scatter_add(1, j % 4, y) :: x.scatter_add(1, (j % 4).long(), y)
        x.scatter_add(1, k.reshape(3, 1), y[:, :1])
        x.scatter_reduce(0, k.reshape(1, 3), y[:1, :3], "sum")
        !x.scatter_reduce(0, k.reshape(1, 3), y, "amax")
        !x.scatter_reduce(0, k.reshape(1, 3), y, "mean", include_self=False)
        x.take(k) :: x.take(k)
        k.embedding(e) :: F.embedding(k, e)
        k.one_hot(4) :: F.one_hot(k, 4)
    """,
    "products": """
        x @ y.T
        x.matmul(v)
        v @ y.T
        v @ v
        v.dot(v)
        t @ u
        t @ u[0]
        x @ u
        i @ j.T
        d @ d.T
        (x @ m).relu()
        x.linear(m, n) :: F.linear(x, m.T, n)
        x.linear(m) :: F.linear(x, m.T)
        Tensor.einsum("ij,jk->ik", x, m) :: torch.einsum("ij,jk->ik", x, m)
        Tensor.einsum("ij,jk", x, m) :: torch.einsum("ij,jk", x, m)
        Tensor.einsum("bij,bjk->bik", t, u) :: torch.einsum("bij,bjk->bik", t, u)
        Tensor.einsum("...ij,...jk->...ik", t, u) :: torch.einsum("...ij,...jk->...ik", t, u)
        Tensor.einsum("ij->ji", x) :: torch.einsum("ij->ji", x)
        Tensor.einsum("ij->", x) :: torch.einsum("ij->", x)
        Tensor.einsum("ij->j", x) :: torch.einsum("ij->j", x)
        Tensor.einsum("ii->i", sq) :: torch.einsum("ii->i", sq)
        Tensor.einsum("ii", sq) :: torch.einsum("ii", sq)
        Tensor.einsum("bii->bi", sq[None]) :: torch.einsum("bii->bi", sq[None])
        Tensor.einsum("i,j->ij", v, n) :: torch.einsum("i,j->ij", v, n)
        Tensor.einsum("i,ij,j->", v, m, n) :: torch.einsum("i,ij,j->", v, m, n)
        Tensor.einsum("b...c->...bc", t) :: torch.einsum("b...c->...bc", t)
        Tensor.einsum("ij,ij->i", x, y) :: torch.einsum("ij,ij->i", x, y)
        Tensor.einsum("...i,i", t, v) :: torch.einsum("...i,i", t, v)
        Tensor.einsum("ab,cd->abcd", x, sq) :: torch.einsum("ab,cd->abcd", x, sq)
        Tensor.einsum("ba", x) :: torch.einsum("ba", x)
        t.scaled_dot_product_attention(t, t) :: sdpa(t, t, t)
        t.scaled_dot_product_attention(t, t, is_causal=True) :: sdpa(t, t, t, is_causal=True)
        t.scaled_dot_product_attention(t, t, scale=0.3) :: sdpa(t, t, t, scale=0.3)
        t.scaled_dot_product_attention(t, t, sq[:3, :3]) :: sdpa(t, t, t, sq[:3, :3])
        t.scaled_dot_product_attention(t, t, tri) :: sdpa(t, t, t, tri)
        t4.repeat(1, 2, 1, 1).scaled_dot_product_attention(t4, t4, enable_gqa=True) ::
            sdpa(t4.repeat(1, 2, 1, 1), t4, t4, enable_gqa=True)
        x.layernorm() :: F.layer_norm(x, (4,))
        t.layernorm((1, 2), 1e-3) :: F.layer_norm(t, (3, 4), eps=1e-3)
        x.layernorm(weight=v, bias=v) :: F.layer_norm(x, (4,), v, v)
        x.rmsnorm(eps=1e-6, weight=v) :: F.rms_norm(x, (4,), v, 1e-6)
        x.batchnorm(v, v, v, v.square()) :: (x - v) * v.square() * v + v
    """,
    "windows": """
        img.conv2d(w) :: F.conv2d(img, w)
        img.conv2d(w, c4) :: F.conv2d(img, w, c4)
        img.conv2d(w, c4, stride=2, padding=1) :: F.conv2d(img, w, c4, stride=2, padding=1)
        img.conv2d(w, padding=(2, 1), dilation=(2, 1)) ::
            F.conv2d(img, w, padding=(2, 1), dilation=(2, 1))
        img.conv2d(w, padding="same") :: F.conv2d(img, w, padding="same")
        img.conv2d(w, padding="valid") :: F.conv2d(img, w, padding="valid")
        img.conv2d(w, padding=(1, 2, 3, 0)) :: F.conv2d(F.pad(img, (1, 2, 3, 0)), w)
        img.conv2d(w[:3, :1], groups=3) :: F.conv2d(img, w[:3, :1], groups=3)
        img[0].conv2d(w, c4) :: F.conv2d(img[0], w, c4)
        img[:, :, 0].conv2d(w[:, :, 0]) :: F.conv1d(img[:, :, 0], w[:, :, 0])
        img[:, :, None].conv2d(w[:, :, None], padding=1) ::
            F.conv3d(img[:, :, None], w[:, :, None], padding=1)
        img.conv_transpose2d(w[:3]) :: F.conv_transpose2d(img, w[:3])
        img.conv_transpose2d(w[:3], stride=2, padding=1, output_padding=1) ::
            F.conv_transpose2d(img, w[:3], stride=2, padding=1, output_padding=1)
        img.conv_transpose2d(w[:3], stride=(1, 3), dilation=2) ::
            F.conv_transpose2d(img, w[:3], stride=(1, 3), dilation=2)
        img.conv_transpose2d(w[:3, :2], groups=3) :: F.conv_transpose2d(img, w[:3, :2], groups=3)
        img[..., 0].conv_transpose2d(w[:3, ..., 0], stride=2) ::
            F.conv_transpose1d(img[..., 0], w[:3, ..., 0], stride=2)
        img.avg_pool2d() :: F.avg_pool2d(img, 2)
        img.avg_pool2d(3, 2, padding=1) :: F.avg_pool2d(img, 3, 2, padding=1)
        img.avg_pool2d((2, 3), 2, ceil_mode=True) :: F.avg_pool2d(img, (2, 3), 2, ceil_mode=True)
        img.avg_pool2d(3, 2, padding=1, ceil_mode=True) ::
            F.avg_pool2d(img, 3, 2, padding=1, ceil_mode=True)
        img.avg_pool2d(3, 1, padding=1, count_include_pad=False) ::
            F.avg_pool2d(img, 3, 1, padding=1, count_include_pad=False)
        t.avg_pool2d((2,), 1) :: F.avg_pool1d(t, 2, 1)
        img.max_pool2d() :: F.max_pool2d(img, 2)
        img.max_pool2d(3, 2, padding=1) :: F.max_pool2d(img, 3, 2, padding=1)
        img.max_pool2d((2, 3), 2, ceil_mode=True) :: F.max_pool2d(img, (2, 3), 2, ceil_mode=True)
        img.max_pool2d(2, 1, dilation=2) :: F.max_pool2d(img, 2, 1, dilation=2)
        img.max_pool2d(3, 2, return_indices=True) :: F.max_pool2d(img, 3, 2, return_indices=True)
        t.max_pool2d((3,), 1, padding=1) :: F.max_pool1d(t, 3, 1, padding=1)
        img[..., :6].max_unpool2d(places, 2) :: F.max_unpool2d(img[..., :6], places.long(), 2)
        img.interpolate((4, 9)) :: F.interpolate(img, (4, 9))
        img.interpolate(scale_factor=2) :: F.interpolate(img, scale_factor=2)
        img.interpolate(scale_factor=(1.5, 0.7)) :: F.interpolate(img, scale_factor=(1.5, 0.7))
        img.interpolate((4, 9), mode="nearest-exact") ::
            F.interpolate(img, (4, 9), mode="nearest-exact")
        img.interpolate((4, 9), mode="area") :: F.interpolate(img, (4, 9), mode="area")
        img.interpolate((4, 9), mode="bilinear") :: F.interpolate(img, (4, 9), mode="bilinear")
        img.interpolate((4, 9), mode="bilinear", align_corners=True) ::
            F.interpolate(img, (4, 9), mode="bilinear", align_corners=True)
        img.interpolate(scale_factor=1.7, mode="bilinear") ::
            F.interpolate(img, scale_factor=1.7, mode="bilinear")
        img.interpolate((4, 9), mode="bicubic") :: F.interpolate(img, (4, 9), mode="bicubic")
        img.interpolate((8, 3), mode="bicubic", align_corners=True) ::
            F.interpolate(img, (8, 3), mode="bicubic", align_corners=True)
        t.interpolate(7, mode="linear") :: F.interpolate(t, 7, mode="linear")
        img[:, :, None].interpolate((2, 3, 9), mode="trilinear") ::
            F.interpolate(img[:, :, None], (2, 3, 9), mode="trilinear")
    """,
    "losses": """
        x.cross_entropy(k) :: F.cross_entropy(x, k)
        x.cross_entropy(k, reduction="sum") :: F.cross_entropy(x, k, reduction="sum")
        x.cross_entropy(k, reduction="none") :: F.cross_entropy(x, k, reduction="none")
        x.cross_entropy(k, label_smoothing=0.1) :: F.cross_entropy(x, k, label_smoothing=0.1)
        x.cross_entropy(k, ignore_index=1) :: F.cross_entropy(x, k, ignore_index=1)
        x.cross_entropy(ign) :: F.cross_entropy(x, ign)
        x.cross_entropy(ign, label_smoothing=0.2) :: F.cross_entropy(x, ign, label_smoothing=0.2)
        x.cross_entropy(ign, reduction="none") :: F.cross_entropy(x, ign, reduction="none")
        x.cross_entropy(y.softmax(1)) :: F.cross_entropy(x, y.softmax(1))
        x.cross_entropy(y.softmax(1), label_smoothing=0.1) ::
            F.cross_entropy(x, y.softmax(1), label_smoothing=0.1)
        x.cross_entropy(y.softmax(1), reduction="sum") ::
            F.cross_entropy(x, y.softmax(1), reduction="sum")
        img.cross_entropy(lab) :: F.cross_entropy(img, lab)
        img.cross_entropy(img.softmax(1), axis=1) :: F.cross_entropy(img, img.softmax(1))
        img.cross_entropy(lab, reduction="none") :: F.cross_entropy(img, lab, reduction="none")
        x.sparse_categorical_crossentropy(k) :: F.cross_entropy(x, k)
        x.sparse_categorical_crossentropy(k, ignore_index=2, reduction="sum") ::
            F.cross_entropy(x, k, ignore_index=2, reduction="sum")
        x.log_softmax(1).nll_loss(k) :: F.nll_loss(x.log_softmax(1), k)
        x.log_softmax(1).nll_loss(k, reduction="none") ::
            F.nll_loss(x.log_softmax(1), k, reduction="none")
        x.log_softmax(1).nll_loss(k, weight=v.square()) ::
            F.nll_loss(x.log_softmax(1), k, weight=v.detach().square())
        x.log_softmax(1).nll_loss(k, v.square(), 1) ::
            F.nll_loss(x.log_softmax(1), k, v.detach().square(), ignore_index=1)
        x.log_softmax(1).nll_loss(ign) :: F.nll_loss(x.log_softmax(1), ign)
        img.log_softmax(1).nll_loss(lab) :: F.nll_loss(img.log_softmax(1), lab)
        x.mse_loss(y) :: F.mse_loss(x, y)
        x.mse_loss(y, reduction="sum") :: F.mse_loss(x, y, reduction="sum")
        x.mse_loss(y, reduction="none") :: F.mse_loss(x, y, reduction="none")
        x.sigmoid().binary_crossentropy(y.sigmoid()) ::
            F.binary_cross_entropy(x.sigmoid(), y.sigmoid())
        x.sigmoid().binary_crossentropy(y.sigmoid(), reduction="none") ::
            F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), reduction="none")
        x.binary_crossentropy_logits(y.sigmoid()) :: bce_logits(x, y.sigmoid())
        x.binary_crossentropy_logits(y.sigmoid(), reduction="sum") ::
            bce_logits(x, y.sigmoid(), reduction="sum")
        x.binary_crossentropy_logits(y.sigmoid(), pos_weight=v.square()) ::
            bce_logits(x, y.sigmoid(), pos_weight=v.detach().square())
        h.mse_loss(h * 2) :: F.mse_loss(h, h * 2)
        d.cross_entropy(k) :: F.cross_entropy(d, k)
    """,
    "creation and casts": """
        Tensor.zeros(2, 3) :: torch.zeros(2, 3)
        Tensor.ones(2, 3, dtype=int32) :: torch.ones(2, 3, dtype=int32)
        Tensor.full((2, 3), 7.5) :: torch.full((2, 3), 7.5)
        Tensor.full((2,), True) :: torch.full((2,), True)
        Tensor.arange(5) :: torch.arange(5)
        Tensor.arange(2, 9, 3) :: torch.arange(2, 9, 3)
        Tensor.arange(1.0, 2.0, 0.25) :: torch.arange(1.0, 2.0, 0.25)
        Tensor.arange(5, 0, -2) :: torch.arange(5, 0, -2)
        Tensor.linspace(0, 1, 5) :: torch.linspace(0, 1, 5)
        Tensor.eye(3) :: torch.eye(3)
        Tensor.eye(2, 4) :: torch.eye(2, 4)
        x.zeros_like() :: torch.zeros_like(x)
        i.ones_like() :: torch.ones_like(i)
        x.full_like(3) :: torch.full_like(x, 3)
        x.half()
        x.double()
        x.bfloat16()
        x.int()
        (x * 9).long()
        x.bool()
        i.float()
        i.half()
        b.int()
        b.float()
        a.float()
        x.cast(float64) :: x.to(float64)
        x.bitcast(int32) :: x.view(int32)
        i.bitcast(float32) :: i.view(float32)
        x.detach()
        x.clone()
        x.contiguous()
        x.T.contiguous()
        Tensor([1, 2]) :: torch.tensor([1, 2])
        Tensor([[1.5], [2]]) :: torch.tensor([[1.5], [2]])
        Tensor([True, False]) :: torch.tensor([True, False])
        Tensor(3.5) :: torch.tensor(3.5)
    """,
}


def _inputs():
    g = np.random.default_rng(5)

    def normal(*shape):
        return g.standard_normal(shape).astype(np.float32)

    positive = g.uniform(0.2, 3, (3, 4)).astype(np.float32)
    odd = normal(3, 4)
    odd.flat[[0, 3, 5, 6]] = np.nan, np.inf, -np.inf, -0.0
    return {
        "x": normal(3, 4), "y": normal(3, 4), "t": normal(2, 3, 4), "u": normal(2, 4, 3),
        "t4": normal(1, 2, 3, 4),
        "v": normal(4), "m": normal(4, 5), "n": normal(5), "s": normal(), "p": positive,
        "q": g.uniform(-0.9, 0.9, (3, 4)).astype(np.float32), "sq": normal(4, 4), "z": odd,
        "d": g.standard_normal((3, 4)), "h": normal(3, 4).astype(np.float16), "e": normal(6, 4),
        "i": g.integers(-9, 10, (3, 4)).astype(np.int32),
        "j": g.integers(1, 6, (3, 4)).astype(np.int32),
        "k": np.array([2, 0, 1]), "b": g.integers(0, 2, (3, 4)).astype(bool),
        "a": g.integers(0, 200, (3, 4)).astype(np.uint8), "tri": np.tri(3, dtype=bool),
        "img": normal(2, 3, 6, 7), "w": normal(4, 3, 3, 3), "c4": normal(4),
        "lab": g.integers(0, 3, (2, 6, 7)), "ign": np.array([2, -100, 1]),
        "places": g.permuted(np.tile(np.arange(144), (2, 3, 1)), axis=-1)[..., :36]
        .reshape(2, 3, 6, 6).astype(np.int32),
    }  # fmt: skip


INPUTS = _inputs()
NAMES = ("float16", "float32", "float64", "int32", "int64")


def tensors(make):
    return {
        name: make(value, value.dtype.kind == "f" and name != "z") for name, value in INPUTS.items()
    }


def torch_tensor(value, wants_gradient):
    return torch.from_numpy(np.array(value)).requires_grad_(wants_gradient)


def ours_tensor(value, wants_gradient):
    return Tensor(value, requires_grad=wants_gradient)


def as_list(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def cases(text):
    for line in re.sub(r"::\n\s*", ":: ", text.strip()).splitlines():
        ours, _, theirs = line.strip().partition(" :: ")
        yield ours.removeprefix("!"), theirs or ours.removeprefix("!"), line.strip()[0] != "!"


def array(tensor):
    tensor = tensor.detach()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def same_dtype(found, wanted):
    """Positions are int32 here, sums of unsigned integers uint64 (as numpy's); int64 in PyTorch."""
    wide = {"int64": ("int64", "int32", "uint64")}
    return found in wide.get(wanted, (wanted,))


def difference(name, found, wanted):
    if found.shape != wanted.shape:
        return f"{name}: shape {found.shape}, PyTorch's {wanted.shape}"
    half = wanted.dtype == np.float16
    tolerance = {"rtol": 4e-3, "atol": 4e-3} if half else {"rtol": 2e-4, "atol": 2e-5}
    try:
        np.testing.assert_allclose(
            found.astype(np.float64), wanted.astype(np.float64), **tolerance
        )
    except AssertionError as error:
        return f"{name}: {str(error).strip()[:400]}"
    return None


def test_there_are_enough():
    assert sum(len(list(cases(text))) for text in FAMILIES.values()) >= 300


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, on_device):
    problems, waiting, checks = [], [], []
    theirs_in = tensors(torch_tensor)
    theirs_scope = {
        "torch": torch, "F": F, "sdpa": F.scaled_dot_product_attention,
        "bce_logits": F.binary_cross_entropy_with_logits,
        "float": float, "tuple": tuple, "abs": abs,
        **{name: getattr(torch, name) for name in NAMES}, **theirs_in,
    }  # fmt: skip
    ours_in = tensors(ours_tensor)
    ours_scope = {
        "Tensor": Tensor, "float": float, "abs": abs, "tuple": tuple,
        **{name: getattr(dtypes, name) for name in NAMES}, **ours_in,
    }  # fmt: skip
    for number, (ours, theirs, differentiable) in enumerate(cases(FAMILIES[family])):
        wanted = as_list(eval(theirs, theirs_scope))
        try:
            found = as_list(eval(ours, ours_scope))
            if len(found) != len(wanted):
                problems.append(f"{ours}: {len(found)} results, PyTorch {len(wanted)}")
                continue
            for f, w in zip(found, wanted, strict=True):
                kind = str(w.dtype).removeprefix("torch.")
                if not same_dtype(f.dtype.name, kind):
                    problems.append(f"{ours}: {f.dtype.name}, PyTorch {kind}")
                waiting.append(f)
                checks.append((ours, f, array(w)))
            if differentiable and any(w.requires_grad for w in wanted):
                _gradients(number, ours, found, wanted, ours_in, theirs_in, waiting, checks)
        except Exception as error:
            problems.append(f"{ours}: {type(error).__name__}: {error}")
    Tensor.realize(*waiting)
    for name, tensor, value in checks:
        found = tensor.float().numpy() if tensor.dtype is dtypes.bfloat16 else tensor.numpy()
        problem = difference(name, found, value)
        if problem:
            problems.append(problem)
    assert not problems, "\n".join([f"{len(problems)} differences", *problems])


def _gradients(number, name, found, wanted, ours_in, theirs_in, waiting, checks):
    """Gradients of a weighted sum of all float results, with respect to what it depends on."""
    generator = np.random.default_rng(number)
    loss, total = None, None
    for f, w in zip(found, wanted, strict=True):
        if not w.requires_grad:
            continue
        weights = generator.standard_normal(tuple(w.shape))
        kind = str(array(w).dtype)
        mine = (f * Tensor(weights.astype(kind))).sum().double()
        its = (w * torch.from_numpy(np.asarray(weights.astype(kind)))).sum().double()
        loss = mine if loss is None else loss + mine
        total = its if total is None else total + its
    names = [n for n, tensor in theirs_in.items() if tensor.requires_grad]
    grads = torch.autograd.grad(total, [theirs_in[n] for n in names], allow_unused=True)
    used = [(n, g) for n, g in zip(names, grads, strict=True) if g is not None]
    for n, wanted_grad in used:
        try:
            (grad,) = loss.gradient(ours_in[n])
        except GradientError:  # PyTorch gives zeros where a derivative is 0 everywhere
            grad = ours_in[n].detach() * 0
        waiting.append(grad)
        checks.append((f"d({name})/d{n}", grad, array(wanted_grad)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: (x * x * x).sum(), lambda x: (x * x * x).sum()),
        (lambda x: (x @ x.T).tanh().sum(), lambda x: (x @ x.T).tanh().sum()),
        (lambda x: x.softmax(1).square().sum(), lambda x: x.softmax(1).square().sum()),
    ],
)
def test_second_derivatives(ours, theirs, on_device):
    x, tx = Tensor(INPUTS["x"], requires_grad=True), torch_tensor(INPUTS["x"], True)
    (first,) = ours(x).gradient(x)
    (tfirst,) = torch.autograd.grad(theirs(tx), tx, create_graph=True)
    (second,) = (first * first).sum().gradient(x)
    (tsecond,) = torch.autograd.grad((tfirst * tfirst).sum(), tx)
    assert not (difference("first", first.numpy(), array(tfirst))
                or difference("second", second.numpy(), array(tsecond)))  # fmt: skip


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


def test_dropout_keeps_the_mean(on_device):
    with Tensor.train():
        Tensor.manual_seed(0)
        kept = Tensor.ones(20000).dropout(0.25).numpy()
    assert set(np.unique(kept)) <= {0.0, np.float32(1 / 0.75)}
    assert math.isclose(kept.mean(), 1, abs_tol=0.02)
