"""Rows that only PyTorch judges: dtype promotion, numbers instead of tensors, forms of calls.

Each line is one row, as in `expressions`; a family's lines are computed in one program.
"""

from __future__ import annotations

BESIDE = {
    "dtypes together": """
        i + x
        i + d
        x + d
        h + 1
        h * x
        b + i
        b * x
        n8 + 1
        n8 + i
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
        n8 < i
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
        n8 * 2
        !x // 2
        n8 & 6
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
        n8.isclose(n8 + 1, atol=3) :: n8.int().isclose(n8.int() + 1, atol=3)
        (i.char() * 14).isclose((j * 20).char()) :: (i * 14).isclose(j * 20)
        b.isclose(b)
        b ** 2
        d[0, 0].quantile(0.3, 0, True)
        (h * 2000).round(decimals=2)
        (n8 // 2).char().histc(8, 0, 100) :: (n8 // 2).float().histc(8, 0, 100).long()
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
        pic.pad((1, 2, 3, 0), mode="reflect") :: F.pad(pic, (1, 2, 3, 0), mode="reflect")
        x.cummax(1) :: tuple(x.cummax(1))
        x[:1].cov()
        F.prelu(x[0, 0], c4[:1])
        t.scaled_dot_product_attention(t, t, tri) ::
            F.scaled_dot_product_attention(t, t, t, tri)
        t.scaled_dot_product_attention(t, t, scale=0.3) ::
            F.scaled_dot_product_attention(t, t, t, scale=0.3)
        t.layernorm((1, 2), 1e-3) :: F.layer_norm(t, (3, 4), eps=1e-3)
        x.rmsnorm(eps=1e-6, weight=v) :: F.rms_norm(x, (4,), v, 1e-6)
        pic.conv2d(w, padding="same") :: F.conv2d(pic, w, padding="same")
        pic.conv2d(w, padding="valid") :: F.conv2d(pic, w, padding="valid")
        pic.conv2d(w, padding=(1, 2, 3, 0)) :: F.conv2d(F.pad(pic, (1, 2, 3, 0)), w)
        pic[0].conv2d(w, c4) :: F.conv2d(pic[0], w, c4)
        F.conv2d(pic, w, c4, 2, (1, 2), 1, 1)
        F.conv_transpose2d(pic, w.transpose(0, 1), c4, 2, 1, 1, 1, 1)
        pic.max_pool2d(3, 2, return_indices=True) :: F.max_pool2d(pic, 3, 2, return_indices=True)
        pic.interpolate(scale_factor=2) :: F.interpolate(pic, scale_factor=2)
        pic.interpolate(scale_factor=(1.5, 0.7)) :: F.interpolate(pic, scale_factor=(1.5, 0.7))
        pic.interpolate(scale_factor=1.7, mode="bilinear") ::
            F.interpolate(pic, scale_factor=1.7, mode="bilinear")
        pic[:, :, None].interpolate((2, 3, 9), mode="trilinear") ::
            F.interpolate(pic[:, :, None], (2, 3, 9), mode="trilinear")
    """,
    "what is seldom asked": """
        linalg.qr(x)[1].abs() :: torch.linalg.qr(x)[1].abs()
        linalg.qr(x)[0].abs() @ linalg.qr(x)[1].abs() ::
            torch.linalg.qr(x)[0].abs() @ torch.linalg.qr(x)[1].abs()
        linalg.eigh(x @ x.T)[1].abs() :: torch.linalg.eigh(x @ x.T)[1].abs()
        F.adaptive_max_pool1d(pic.reshape(2, 1, 126), 100)
        F.max_pool2d(pic, 3, padding=[1])
        F.max_pool2d(pic, 2, 5, 1, ceil_mode=True)
        F.avg_pool2d(pic, 2, 5, 1, ceil_mode=True)
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
